"""Checks of the machine itself: processors, memory, disk, folders, clock."""

from __future__ import annotations

import shutil
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from fedtune.config.schema import Config
from fedtune.site.findings import Finding, failed, ok, warning

__all__ = ["arithmetic", "clock", "disk_space", "memory", "writable"]

_RELEASED = datetime(2025, 1, 1, tzinfo=UTC)
_FAR_FUTURE = datetime(2100, 1, 1, tzinfo=UTC)
_LITTLE_DISK_BYTES = 1 * 2**30
_COMFORTABLE_DISK_BYTES = 5 * 2**30
_MIB = 2**20


def arithmetic(config: Config) -> Finding:
    """Which cores and which arithmetic will be used?"""
    from fedtune.models.hardware import (  # noqa: PLC0415
        compute_dtype,
        machine_facts,
        physical_cores,
        resolve_device,
    )

    device = resolve_device(config.model.device)
    dtype = str(compute_dtype(config.model, device)).removeprefix("torch.")
    bf16 = machine_facts()["bf16_cpu"] or "no bfloat16 instructions"
    return ok(f"{physical_cores()} physical cores ({bf16}); the base computes in {dtype} on {device}")


def memory(config: Config) -> Finding:
    """Is there enough free memory for what the configuration is estimated to take?"""
    import psutil  # noqa: PLC0415

    from fedtune.models.estimate import estimate  # noqa: PLC0415

    found = estimate(config)
    # What this process holds is free again when it has ended.
    free_mib = psutil.virtual_memory().available / _MIB + found.libraries_mib
    needed_mib = found.total_mib
    text = f"{free_mib:,.0f} MiB free, {config.name} is estimated to take {needed_mib:,.0f} MiB"
    if free_mib < needed_mib:
        return failed(
            "FT805",
            text,
            fix="end other programs, or choose training=low_memory or a smaller training.microbatch_tokens",
        )
    return ok(text)


def disk_space(folder: Path) -> Finding:
    """Is there room in a folder that need not exist yet?"""
    free = shutil.disk_usage(_existing(folder)).free
    text = f"{free / 2**30:,.1f} GiB free for {folder}"
    if free < _LITTLE_DISK_BYTES:
        return failed("FT806", text, fix="free some space: a converted model takes about 1 GiB")
    if free < _COMFORTABLE_DISK_BYTES:
        return warning(text, fix="enough for the demo; larger models need more")
    return ok(text)


def writable(folder: Path, *, key: str) -> Finding:
    """Can a file be written there?"""
    place = _existing(folder)
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".fedtune-doctor-") as file:
            file.write(b"x")
            file.flush()
    except OSError as error:
        return failed(
            "FT809",
            f"nothing can be written to {folder}: {error.strerror}",
            fix=f"make {place} writable, or set {key} to another folder",
        )
    return ok(f"{folder} can be written")


def clock() -> Finding:
    """Is the time plausible? Certificates and the order of events depend on it."""
    now = datetime.fromtimestamp(time.time(), tz=UTC)
    if not _RELEASED < now < _FAR_FUTURE:
        return failed(
            "FT807",
            f"the clock says {now:%Y-%m-%d}",
            fix="set the clock, best by a time service such as systemd-timesyncd",
        )
    return ok(f"{now:%Y-%m-%d %H:%M} UTC")


def _existing(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    path = folder.expanduser().absolute()
    while not path.is_dir():
        path = path.parent
    return path
