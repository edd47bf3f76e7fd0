"""One model instead of base and adapter, for readers that know nothing of adapters."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedtune.errors import Problem, RunError
from fedtune.models.messages import quiet_loading, without_peft_warnings
from fedtune.observability.disk import TEMPORARY_SUFFIX, disk_errors, sync_directory

__all__ = ["merge_adapter"]


def merge_adapter(base: Path, adapter: Path, directory: Path) -> None:
    """Add the adapter to the base's weights, W + (alpha / rank) B A, and save the whole model in float32.

    With ``model.quantization`` the adapter was trained beside a quantized base; here it is added to the
    unquantized one. The merged model's loss therefore differs from the run's by about what quantization
    costs.

    Args:
        base: Folder of the base model in the Hugging Face layout, with its tokenizer.
        adapter: Folder that `fedtune.export.adapter.save_adapter` wrote.
        directory: The folder to write: not there yet, or empty.

    Raises:
        RunError: FT740 the folder holds something; FT705 or FT707 it cannot be written.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise RunError(
            Problem(
                code="FT740",
                what="the folder for the merged model holds something already",
                where=str(directory),
                fix="name a new folder: a merged model is not written over other files",
            )
        )
    with quiet_loading(), without_peft_warnings():
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, local_files_only=True)
        merged = PeftModel.from_pretrained(model, adapter).merge_and_unload(safe_merge=True)
        tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    with _written_whole(directory) as staging, quiet_loading():
        merged.save_pretrained(staging)
        tokenizer.save_pretrained(staging)


@contextmanager
def _written_whole(directory: Path) -> Iterator[Path]:
    """Give a folder beside ``directory`` to write to, and rename it when that went well."""
    staging = directory.with_name(f".{directory.name}.new{TEMPORARY_SUFFIX}")
    with disk_errors(directory, kept="everything else; nothing of the merged model"):
        try:
            shutil.rmtree(staging, ignore_errors=True)  # a killed process may have left one
            staging.mkdir(parents=True)
            with _safetensors_errors():
                yield staging
            for file in staging.iterdir():
                _sync(file)
            sync_directory(staging)
            os.rename(staging, directory)  # an empty folder is renamed over
            sync_directory(directory.parent)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def _safetensors_errors() -> Iterator[None]:
    """Turn the error in which safetensors wraps the disk's refusal into the OSError that it was."""
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, str(error)) from error


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
