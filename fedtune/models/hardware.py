"""What this machine has, and what follows from it: the device, the type of arithmetic, the threads."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from math import ceil
from pathlib import Path

import numpy as np
import psutil
import torch

from fedtune.config.schema import ModelConfig
from fedtune.errors import MachineError, ModelError, Problem

__all__ = [
    "compute_dtype",
    "machine_facts",
    "physical_cores",
    "release_memory",
    "resolve_device",
    "return_freed_memory",
    "reuse_freed_memory",
    "set_threads",
]

# Instructions that multiply bfloat16 matrices. Without them each product is converted to float32 and back,
# and a step takes 3 to 4 times as long as in float32.
_BF16_CPU_FLAGS = frozenset({"amx_bf16", "avx512_bf16"})

_M_MMAP_THRESHOLD = -3  # of glibc's mallopt(3)
_OWN_MAPPING_BYTES = 2**20
_LEARNT_FROM_BYTES = 31 * 2**20  # of more than 32 MiB nothing is learnt
_WORTH_RELEASING_BYTES = 64 * 2**20

_VERSIONS = ("torch", "transformers", "peft", "bitsandbytes", "flwr")


def resolve_device(requested: str) -> str:
    """Return ``cpu`` or ``cuda``; ``auto`` takes a GPU when there is one.

    Raises:
        MachineError: FT801, ``cuda`` was asked for and torch finds none.
    """
    available = torch.cuda.is_available()
    if requested == "cuda" and not available:
        built = "built without CUDA" if torch.version.cuda is None else f"built for CUDA {torch.version.cuda}"
        raise MachineError(
            Problem(
                code="FT801",
                what=f"torch {torch.__version__} ({built}) finds no GPU",
                where="model.device=cuda",
                fix="check `nvidia-smi` and install a CUDA build of torch, or set model.device=auto",
            )
        )
    return "cuda" if available and requested != "cpu" else "cpu"


def compute_dtype(config: ModelConfig, device: str) -> torch.dtype:
    """Return the type of the base's arithmetic.

    ``auto`` is bfloat16 where the hardware multiplies bfloat16 matrices (a GPU that does, a CPU with AMX or
    AVX512-BF16), else float32. Adapters are float32 all the same, or float64 beside a float64 base.

    Args:
        config: ``compute_dtype`` and ``quantization`` are looked at.
        device: ``cpu`` or ``cuda``, as `resolve_device` returned it.

    Raises:
        ModelError: FT309, a quantized base in float64.
    """
    if config.compute_dtype == "float64" and config.quantization != "none":
        raise ModelError(
            Problem(
                code="FT309",
                what=f"a base quantized to {config.quantization} cannot compute in float64",
                where="model.compute_dtype=float64",
                fix="set model.quantization=none, or model.compute_dtype=auto",
            )
        )
    if config.compute_dtype != "auto":
        return {
            "float32": torch.float32,
            "bfloat16": torch.bfloat16,
            "float16": torch.float16,
            "float64": torch.float64,
        }[config.compute_dtype]
    if device == "cuda":
        # Older GPUs emulate bfloat16, slowly.
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = bool(_BF16_CPU_FLAGS & _cpu_flags())
    return torch.bfloat16 if fast else torch.float32


@lru_cache
def physical_cores() -> int:
    """Return the CPU cores that this process may use, hyper-threads and a container's limit left out."""
    logical = os.cpu_count() or 1
    physical = psutil.cpu_count(logical=False) or logical
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical
    if allowed < logical:
        physical = max(1, min(physical, allowed * physical // logical))
    quota = _cgroup_cpus()
    return min(physical, quota) if quota else physical


def set_threads(threads: int | None) -> int:
    """Let torch use this many CPU threads; None takes the physical cores. Returns the number set.

    Sums are split over threads, so results repeat bit for bit only at one and the same number.
    """
    chosen = threads or physical_cores()
    if torch.get_num_threads() != chosen:
        torch.set_num_threads(chosen)
    return chosen


def return_freed_memory() -> bool:
    """Let this process give large tensors back to the system when they are freed; returns whether it can.

    glibc keeps them in its heap, where an aligned block of the same size seldom fits the hole again: of
    SmolLM2-135M with 1,024 tokens and gradient checkpointing, a step peaked at 2,300 MiB, and at 1,290 MiB
    with this. New mappings cost a tenth to a fifth more processor time, so it is for those who ask for less
    memory. It holds for the rest of the process. Other C libraries have no such switch and are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(_M_MMAP_THRESHOLD, _OWN_MAPPING_BYTES) == 1


def reuse_freed_memory() -> None:
    """Let this process keep up to 64 MiB of freed memory for what it allocates next.

    glibc gives back whatever is free at the end of its heap beyond 128 KiB, and an adapter's copies, a few
    MiB in hundreds of tensors, are then mapped and cleared anew for each message: of 10 MB, 7 ms where the
    copy itself takes 1.5. It learns better from the first large block that is freed (mallopt(3) on
    ``M_MMAP_THRESHOLD``), so it is shown one. No memory is touched, and other C libraries learn nothing.
    """
    np.empty(_LEARNT_FROM_BYTES, dtype=np.uint8)


def release_memory() -> None:
    """Give freed memory back to the system, where the C library can (glibc) and it is worth the time.

    A step's activations have another size in every step, and what is freed stays with the process in pieces
    that the next step cannot use whole: some 600 MiB after a client's round of the demo. Little is kept: to
    give an adapter's copies back after every message, and to ask for them again, takes longer than decoding.
    """
    trim = _malloc_trim()
    if trim is not None and _resident_bytes() - _Released.resident_bytes >= _WORTH_RELEASING_BYTES:
        trim(0)
        _Released.resident_bytes = _resident_bytes()


class _Released:
    """How much this process held after the last time."""

    resident_bytes = 0


def _resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


@lru_cache
def _malloc_trim() -> Callable[[int], int] | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None


def machine_facts() -> dict[str, str | int | None]:
    """Describe this machine for a run's record: nothing here names a person, a host or a path.

    Returns:
        ``cpus`` (logical), ``physical_cores``, ``cpu`` (model name), ``bf16_cpu`` (the instruction set, or
        null), ``memory_mib``, ``gpu`` (name, or null), ``platform``, ``python``, ``threads`` (of torch), and
        the versions of the libraries whose arithmetic a result depends on, null where one is missing.
    """
    bf16 = sorted(_BF16_CPU_FLAGS & _cpu_flags())
    facts: dict[str, str | int | None] = {
        "cpus": os.cpu_count() or 1,
        "physical_cores": physical_cores(),
        "cpu": _cpu_name(),
        "bf16_cpu": bf16[0] if bf16 else None,
        "memory_mib": psutil.virtual_memory().total // 2**20,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }
    return facts | {name: _version(name) for name in _VERSIONS}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@lru_cache
def _cpuinfo() -> dict[str, str]:
    """The first processor's fields in /proc/cpuinfo; empty where there is no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}


def _cpu_flags() -> frozenset[str]:
    return frozenset(_cpuinfo().get("flags", "").split())


def _cpu_name() -> str:
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def _cgroup_cpus() -> int | None:
    """Whole CPUs that a container's quota allows (cgroup v2 ``cpu.max``), or None without a quota."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else max(1, ceil(int(quota) / int(period)))
