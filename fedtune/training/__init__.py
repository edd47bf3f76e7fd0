"""Local training: a client's walk through its rows, microbatches, the loss, the steps, and the delta."""

import fedtune.models  # noqa: F401  # before peft: it quiets what bitsandbytes says on import
