"""The global model on its way to a site: the adapter that is trained, and perhaps a frozen one beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord

from fedtune.aggregation.carrying import Carried, as_carried, side_car_of, with_side_car
from fedtune.aggregation.ranks import first_rows, other_rows
from fedtune.errors import Problem, UpdateError
from fedtune.models.adapted import AdaptedModel
from fedtune.models.adapter import FACTORS, Adapter, AdapterSpec, rank_of
from fedtune.updates.codec import from_arrays, to_arrays
from fedtune.updates.problems import shown

__all__ = ["GlobalModel", "downlink", "placed", "received"]

_NOTHING = np.empty(0)


@dataclass(frozen=True, kw_only=True)
class GlobalModel:
    """What a site received.

    Attributes:
        adapter: The global adapter.
        side_car: What stands beside it; empty for nothing.
        controls: The federation's control variates of the round's factors; empty without them.
    """

    adapter: Adapter
    side_car: Adapter
    controls: Adapter


def downlink(adapter: Adapter, carried: Carried) -> ArrayRecord:
    """Encode what sites need of the global model: the adapter, and the side-car among what is remembered."""
    return to_arrays(adapter | as_carried(side_car_of(carried)))


def received(
    record: ArrayRecord, spec: AdapterSpec, *, has_side_car: bool, where: str
) -> tuple[Adapter, Adapter]:
    """Decode the adapter and the side-car, which is empty where none came.

    Args:
        record: What arrived.
        spec: Of the trained adapter; the side-car has its names and another rank.
        has_side_car: Whether the configured method has one; otherwise its tensors are refused as unknown.
        where: As of `fedtune.updates.codec.from_arrays`.

    Raises:
        UpdateError: FT501 to FT505, as of `fedtune.updates.codec.from_arrays`.
    """
    short = dict(zip(as_carried(dict.fromkeys(spec.shapes, _NOTHING)), spec.shapes, strict=True))
    beside = {short[name]: record[name] for name in record if has_side_car and name in short}
    if not beside:
        return from_arrays(record, spec, FACTORS, where=where), {}
    trained = ArrayRecord({name: record[name] for name in record if name not in short})
    adapter = from_arrays(trained, spec, FACTORS, where=where)
    of_side_car = spec.with_rank(_rank(beside, spec, where))
    return adapter, from_arrays(ArrayRecord(beside), of_side_car, FACTORS, where=f"{where}, side-car")


def _rank(beside: Mapping[str, Array], spec: AdapterSpec, where: str) -> int:
    """Return the rank that the first tensor claims, if a side-car can have it; the others have to agree."""
    most = max(max(shape) for shape in spec.shapes.values())
    name, array = next(iter(beside.items()))
    shape = tuple(array.shape)
    claimed = shape[0 if spec.factor(name) == "A" else 1] if len(shape) == 2 else None
    if isinstance(claimed, int) and 1 <= claimed <= most:
        return claimed
    raise UpdateError(
        Problem(
            code="FT502",
            what=f"a side-car's tensor has the shape {shown(shape)}, its rank is from 1 to {most}",
            where=f"{where}, tensor {shown(name)}",
            fix="install the same fedtune on the server and on every site",
        )
    )


@contextmanager
def placed(
    model: AdaptedModel, adapter: Adapter, side_car: Adapter, *, rows: int | None = None, rest: bool = True
) -> Iterator[None]:
    """Have the global model on a site's base inside the block; afterwards nothing stands beside the adapter.

    Args:
        model: The site's base with an adapter.
        adapter: The global adapter.
        side_car: What stands beside it; empty for nothing.
        rows: Have the first so many rows of the adapter trainable alone; None for all.
        rest: Whether the other rows stand beside them, frozen.
    """
    whole = rank_of(adapter)
    rank = whole if rows is None else rows
    others = other_rows(adapter, rank) if rest else {}
    try:
        model.set_rank(rank)
        model.load_adapter(adapter if rank == whole else first_rows(adapter, rank))
        model.set_side_car(with_side_car(others, side_car) if others else side_car)
        yield
    finally:
        model.set_side_car({})
        model.set_rank(whole)
