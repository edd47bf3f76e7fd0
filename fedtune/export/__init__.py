import fedtune.models  # noqa: F401  # before peft: it quiets what bitsandbytes says on import
