"""How a protected delta travels where nothing masks it: as it is, or in few bits with error feedback.

Only an `Encoded` becomes a message (`fedtune.updates.codec.to_arrays`), and only `encode` makes one, so that
a run which is configured to send few bits cannot send many by mistake. Secure aggregation has an encoder of
its own (`fedtune.secagg.encoding`): what is summed under masks has to lie on one grid.

With error feedback a site sends c = delta + e, quantized, and keeps the new e = c - (what was sent) for its
next round (Karimireddy et al., ICML 2019, algorithm 2). Over rounds the errors telescope: the sum of what was
sent is the sum of the deltas less the last e, but for the rounding of one float32 addition a round.

A quantized update is two arrays, whatever the number of tensors: ``codes`` and ``scales``, each the tensors'
one after the other in the order of their names. Flower moves every array by itself, with a name, a header and
requests of its own. For the 420 tensors of the demo's adapter in 4 bits, two arrays a tensor would be 15 %
more bytes, and 1,681 requests instead of 5.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import InitVar, dataclass
from typing import Any

import numpy as np

from fedtune.config.schema import UpdatesConfig
from fedtune.errors import Problem, UpdateError
from fedtune.models.adapter import Adapter
from fedtune.updates.problems import capped, not_finite, shown
from fedtune.updates.protect import Protected
from fedtune.updates.quantize import BlockQuantizer

__all__ = ["CODES", "SCALES", "Encoded", "Place", "encode", "places"]

CODES, SCALES = "codes", "scales"

_MADE_BY_ENCODE = object()
_DELTA = "the delta of local training"
_RESIDUAL = "the residual of this site's rounds before"
_DELETE = "restore the site's residual files from a backup, or delete them to go on without what they hold"


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """An update as it travels.

    Guarantee: `encode` made it.

    Attributes:
        tensors: Name to array: those of the delta, or ``codes`` and ``scales``.
    """

    tensors: Mapping[str, np.ndarray[Any, np.dtype[Any]]]
    made_by: InitVar[object] = None

    def __post_init__(self, made_by: object) -> None:
        if made_by is not _MADE_BY_ENCODE:
            raise TypeError("only encode() makes an Encoded: call encode(protect(delta), updates)")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a tensor lies in a quantized update.

    Attributes:
        name: Of the tensor.
        values: Their number.
        codes: Part of ``codes``, in bytes.
        scales: Part of ``scales``.
    """

    name: str
    values: int
    codes: slice
    scales: slice


def places(quantizer: BlockQuantizer, sizes: Mapping[str, int]) -> tuple[Place, ...]:
    """Return where each tensor lies, in the order of their names.

    Args:
        quantizer: How it is quantized.
        sizes: Name to number of values; at least one.
    """
    found: list[Place] = []
    code = scale = 0
    for name in sorted(sizes):
        code_bytes, scales = quantizer.sizes(sizes[name])
        found.append(
            Place(
                name=name,
                values=sizes[name],
                codes=slice(code, code + code_bytes),
                scales=slice(scale, scale + scales),
            )
        )
        code, scale = code + code_bytes, scale + scales
    return tuple(found)


def encode(
    update: Protected, updates: UpdatesConfig, carried: Mapping[str, np.ndarray[Any, Any]] | None = None
) -> tuple[Encoded, Adapter]:
    """Encode an update as the configuration says.

    Args:
        update: What may leave; not modified.
        updates: How it travels.
        carried: With ``error_feedback``, the residual that earlier rounds left, by tensor. A tensor without
            one has none, and one that this update does not hold is not looked at.

    Returns:
        What travels, and the residual of each of the update's tensors; none without ``error_feedback``.

    Raises:
        UpdateError: FT502 to FT504, a residual of another shape or dtype, or with values that are not finite;
            FT503, an update that is not float32; FT504, update and residual together leave its range.
    """
    if updates.quantization == "none":
        return Encoded(tensors=update.tensors, made_by=_MADE_BY_ENCODE), {}
    before = dict(carried or {}) if updates.error_feedback else {}
    problems = capped(_problems(update, before))
    if problems:
        raise UpdateError(problems)
    quantizer = BlockQuantizer(updates=updates)
    where = places(quantizer, {name: tensor.size for name, tensor in update.tensors.items()})
    codes = np.empty(where[-1].codes.stop, dtype=quantizer.code_dtype)
    scales = np.empty(where[-1].scales.stop, dtype=np.float32)
    residual: Adapter = {}
    for place in where:
        tensor = update.tensors[place.name]
        if updates.error_feedback:
            residual[place.name] = np.empty(tensor.shape, dtype=np.float32)
        finite = quantizer.quantize(
            tensor.ravel(),
            codes=codes[place.codes],
            scales=scales[place.scales],
            carried=before[place.name].ravel() if place.name in before else None,
            residual=residual[place.name].reshape(-1) if updates.error_feedback else None,
        )
        if not finite:
            problems.append(_too_large(place.name))
    if problems:
        raise UpdateError(capped(problems))
    return Encoded(tensors={CODES: codes, SCALES: scales}, made_by=_MADE_BY_ENCODE), residual


def _problems(update: Protected, residual: Mapping[str, np.ndarray[Any, Any]]) -> Iterator[Problem]:
    for name, tensor in update.tensors.items():
        if tensor.dtype != np.float32:
            yield Problem(
                code="FT503",
                what=f"the dtype is {tensor.dtype.name!r}, and only 'float32' can be quantized",
                where=f"{_DELTA}, tensor {shown(name)}",
                fix="set updates=exact, or model.compute_dtype=float32",
            )
        kept, where = residual.get(name), f"{_RESIDUAL}, tensor {shown(name)}"
        if kept is None:
            continue
        if kept.shape != tensor.shape:
            what = f"the shape is {kept.shape}, expected {tensor.shape}"
            yield Problem(code="FT502", what=what, where=where, fix=_DELETE)
        elif kept.dtype != np.float32:
            what = f"the dtype is {kept.dtype.name!r}, expected 'float32'"
            yield Problem(code="FT503", what=what, where=where, fix=_DELETE)
        elif (found := not_finite(name, kept, _RESIDUAL)) is not None:
            yield Problem(code=found.code, what=found.what, where=found.where, fix=_DELETE)


def _too_large(name: str) -> Problem:
    return Problem(
        code="FT504",
        what="the update and the residual of the rounds before are together not finite",
        where=f"{_DELTA}, tensor {shown(name)}",
        fix="lower training.learning_rate, or set training.max_gradient_norm; see the losses of this client",
    )
