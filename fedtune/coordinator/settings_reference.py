"""The reference page of ``server.yaml``, written from the typed settings themselves.

``python -m fedtune.coordinator.settings_reference > docs/reference/server-settings.md`` renews it; a test
keeps it equal.
"""

from __future__ import annotations

import sys

from fedtune.config.typed_reference import reference_table
from fedtune.coordinator.settings import SETTINGS, written

__all__ = ["reference_page"]

_HEAD = """\
# The settings of a server

`server.yaml` in the coordinator's folder says where the server listens and whom it tells. `fedtune server
init` writes it with comments; `fedtune server start` reads it as it starts, so a change asks for a restart.
What a run does is not in it: that is the run's own [configuration](configuration.md).

- Every key has to be there, and no other may.
- The file is YAML 1.2: `no` is a text. A key that stands twice is refused.
- It must not be writable by others than its owner.

Everything wrong in the file is said at once; [FT660](errors/FT660.md) to [FT663](errors/FT663.md) explain it.

This page is written by `python -m fedtune.coordinator.settings_reference`; *written* is what
`fedtune server init coordinator --federation lungs --dns fedtune.example.org` writes.
"""


def reference_page() -> str:
    """The page as Markdown."""
    text = written(
        federation="lungs",
        address="fedtune.example.org:9092",
        listen="0.0.0.0:9092",
        superlink_port=9091,
    )
    table = reference_table(SETTINGS, SETTINGS.parse(text, where="server.yaml"), column="written")
    return "\n".join((_HEAD, *table, ""))


if __name__ == "__main__":
    sys.stdout.write(reference_page())
