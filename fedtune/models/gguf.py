"""GGUF files, which transformers reads slowly, as safetensors in the cache, which load at once.

Dequantization is exact: a GGUF block is a scale times small integers, and the products are kept in float32.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedConfig

from fedtune.errors import FedtuneError, ModelError, Problem
from fedtune.models.cache import cache_key, file_sha256, make_once
from fedtune.models.messages import bars_on_terminals_only, quiet_loading

__all__ = ["converted", "gguf_config", "is_converted"]

CONVERTER_VERSION = "1"
"""Part of the key of a converted file: another one makes every file be converted anew."""

logger = logging.getLogger(__name__)


def converted(path: Path, cache: Path) -> Path:
    """Return a directory in the Hugging Face layout that holds what the GGUF file holds.

    The first call for a content converts it, which takes about 25 s for 135 M parameters and needs memory
    for all of them in float32; later calls find it. The key is the file's content, not its name.

    Args:
        path: The ``.gguf`` file.
        cache: Folder of converted models.

    Returns:
        A directory with ``config.json``, ``model.safetensors`` (float32), the tokenizer and its chat
        template.

    Raises:
        ModelError: FT304, the file is damaged or of an architecture that transformers cannot read.
        MachineError: FT802, the cache cannot be written.
    """
    return make_once(_folder(path, cache), lambda folder: _convert(path, folder))


def is_converted(path: Path, cache: Path) -> bool:
    """Return whether `converted` would find the file converted already."""
    return _folder(path, cache).is_dir()


def gguf_config(path: Path, cache: Path) -> PreTrainedConfig:
    """Return the architecture that a GGUF file describes, reading no weights.

    Raises:
        ModelError: FT304, as `converted`.
    """
    folder = _folder(path, cache)
    if folder.is_dir():
        return _config(folder)
    try:
        return _config(path.parent, gguf_file=path.name)
    except Exception as error:
        raise _unreadable(path, error) from error


def _folder(path: Path, cache: Path) -> Path:
    return cache / "converted" / cache_key("gguf", CONVERTER_VERSION, file_sha256(path, cache))


def _config(folder: Path, **which: str) -> PreTrainedConfig:
    config: PreTrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False, **which)
    return config


def _convert(path: Path, folder: Path) -> None:
    started = time.perf_counter()
    size_mib = path.stat().st_size / 2**20
    logger.info(
        "converting %s (%.1f MiB), once on this machine; 100 MiB take about 25 s", path.name, size_mib
    )
    try:
        with quiet_loading(), bars_on_terminals_only():
            tokenizer = AutoTokenizer.from_pretrained(
                path.parent, gguf_file=path.name, trust_remote_code=False
            )
            model = AutoModelForCausalLM.from_pretrained(
                path.parent,
                gguf_file=path.name,
                dtype=torch.float32,
                quantization_config=GgufConfig(dequantize=True),
                trust_remote_code=False,
            )
    except FedtuneError:
        raise
    except Exception as error:
        raise _unreadable(path, error) from error
    with quiet_loading():
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)
    logger.info("converted %s in %.0f s", path.name, time.perf_counter() - started)


def _unreadable(path: Path, error: Exception) -> ModelError:
    # Whatever the readers raise (ValueError, KeyError, struct.error, NotImplementedError) is about the file.
    first_line = str(error).strip().partition("\n")[0]
    return ModelError(
        Problem(
            code="FT304",
            what=f"this GGUF file cannot be read: {type(error).__name__}: {first_line}",
            where=str(path),
            fix="fetch it again if it was cut short; else take the model's safetensors",
        )
    )
