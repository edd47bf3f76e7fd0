"""The frozen quantized base model and the low-rank adapter on top of it."""

import logging

__all__: list[str] = []


def _is_not_the_optional_kernel(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Failed to load CPU gemm_4bit_forward")


# On CPUs with AVX512-BF16, importing bitsandbytes (peft does) warns that it could not fetch a kernel for
# inference from the Hugging Face hub. fedtune wants no code from a network and never uses that kernel (see
# base.py), and the advice to install one would mislead. Packages that import peft import this one before.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_not_the_optional_kernel)
