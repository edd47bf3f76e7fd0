"""Checks of what is installed: Python, each dependency, and whether quantization really works."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from fedtune.site.findings import Finding, failed, ok, warning

__all__ = ["package_checks", "python_version", "quantization", "torch_devices"]

_OLDEST_PYTHON = (3, 11)
_MODULES = {"hydra-core": "hydra", "pyyaml": "yaml"}
"""Distribution -> module, where the two differ by more than a dash."""

_LARGEST_NF4_ERROR = 0.15
"""Relative L2 error of normal weights in NF4 is about 0.09 (Dettmers et al. 2023, QLoRA, section 3)."""


def python_version() -> Finding:
    """Is this Python new enough?"""
    found = ".".join(str(part) for part in sys.version_info[:3])
    if sys.version_info < _OLDEST_PYTHON:
        return failed("FT803", f"Python {found} is too old", fix="install Python 3.11 or newer")
    return ok(f"Python {found}")


def package_checks() -> Iterator[tuple[str, Callable[[], Finding]]]:
    """One check for each dependency that fedtune declares."""
    try:
        declared = requires("fedtune") or []
    except PackageNotFoundError:
        yield "fedtune", _not_installed
        return
    for requirement in map(Requirement, declared):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement.name, partial(_package, requirement)


def _not_installed() -> Finding:
    return warning(
        "fedtune runs from a folder and is not installed: versions of its dependencies are unchecked",
        fix="pip install -e . in the checkout",
    )


def _package(requirement: Requirement) -> Finding:
    wanted = f"{requirement.name}{requirement.specifier}"
    fix = f'pip install "{wanted}"'
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return failed("FT804", f"{requirement.name} is not installed", fix=fix)
    if not requirement.specifier.contains(found, prereleases=True):
        return failed("FT804", f"{requirement.name} {found} is outside {requirement.specifier}", fix=fix)
    module = _MODULES.get(requirement.name, requirement.name.replace("-", "_"))
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken binary raises whatever it likes, OSError and RuntimeError among it
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return failed(
            "FT804",
            f"{requirement.name} {found} cannot be imported: {reason}",
            fix=f'pip install --force-reinstall "{wanted}"',
        )
    return ok(found)


def torch_devices() -> Finding:
    """Which build of torch is this, and which devices does it see?"""
    import torch  # noqa: PLC0415

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        return ok(f"torch {torch.__version__} with {names}")
    return ok(f"torch {torch.__version__} on the CPU, {torch.get_num_threads()} threads; no GPU")


def quantization() -> Finding:
    """Does bitsandbytes quantize to NF4 and back on the device that will be used?"""
    import bitsandbytes.functional as bnb  # noqa: PLC0415
    import torch  # noqa: PLC0415

    from fedtune.models.hardware import resolve_device  # noqa: PLC0415

    device = resolve_device("auto")
    weights = torch.randn((128, 128), generator=torch.Generator().manual_seed(0)).to(device)
    packed, state = bnb.quantize_4bit(weights, quant_type="nf4", compress_statistics=True)
    restored = bnb.dequantize_4bit(packed, state)
    error = float((restored - weights).norm() / weights.norm())
    if not error < _LARGEST_NF4_ERROR:
        return failed(
            "FT804",
            f"NF4 on {device} gives back other weights: relative error {error:.3f}",
            fix="pip install --force-reinstall --no-deps bitsandbytes, or set model.quantization=none",
        )
    return ok(f"NF4 with double quantization works on {device}, relative error {error:.3f}")
