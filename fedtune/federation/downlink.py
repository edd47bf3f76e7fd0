"""The global model on its way to a site: the adapter that is trained, and perhaps a frozen one beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Array, ArrayRecord

from fedtune.aggregation.carrying import Carried, as_carried, side_car_of, with_side_car
from fedtune.aggregation.clusters import adapter_of, clusters_of
from fedtune.aggregation.ranks import first_rows, other_rows
from fedtune.errors import Problem, UpdateError
from fedtune.models.adapted import AdaptedModel
from fedtune.models.adapter import FACTORS, Adapter, AdapterSpec, rank_of
from fedtune.updates.codec import from_arrays, to_arrays
from fedtune.updates.problems import shown

__all__ = [
    "GlobalModel",
    "downlink",
    "downlink_to_test",
    "downlink_to_train",
    "placed",
    "received",
    "with_own_apart",
]

_NOTHING = np.empty(0)
_OWN = "own/"


@dataclass(frozen=True, kw_only=True)
class GlobalModel:
    """What a site received.

    Attributes:
        adapter: The global adapter.
        side_car: What stands beside it; empty for nothing.
        controls: The federation's control variates of the round's factors; empty without them.
        own: The adapter of the site's cluster, which comes with the global one to be tested; empty without.
    """

    adapter: Adapter
    side_car: Adapter
    controls: Adapter
    own: Adapter = field(default_factory=dict)


def downlink(adapter: Adapter, carried: Carried) -> ArrayRecord:
    """Encode what sites need of the global model: the adapter, and the side-car among what is remembered."""
    return to_arrays(adapter | as_carried(side_car_of(carried)))


def downlink_to_train(adapter: Adapter, carried: Carried) -> Callable[[str], ArrayRecord]:
    """Return what each site trains, by its name: the adapter of its cluster, or the global one."""
    clusters = clusters_of(carried)
    records = [downlink(cluster.adapter, carried) for cluster in clusters]
    of_all = downlink(adapter, carried)

    def to(site: str) -> ArrayRecord:
        mine = (record for record, each in zip(records, clusters, strict=True) if site in each.members)
        return next(mine, of_all)

    return to


def downlink_to_test(adapter: Adapter, carried: Carried) -> Callable[[str], ArrayRecord]:
    """Return what each site tests, by its name: the global adapter, and that of its cluster beside it."""
    clusters = clusters_of(carried)
    of_all = downlink(adapter, carried)

    def to(site: str) -> ArrayRecord:
        own = adapter_of(clusters, site)
        if own is None:
            return of_all
        beside = to_arrays({_OWN + name: tensor for name, tensor in own.items()})
        return ArrayRecord({**of_all, **beside})

    return to


def with_own_apart(record: ArrayRecord, spec: AdapterSpec, *, where: str) -> tuple[ArrayRecord, Adapter]:
    """Return a record without the adapter of the site's cluster, and that adapter; empty where none came.

    Args:
        record: What arrived.
        spec: Of the adapter.
        where: As of `fedtune.updates.codec.from_arrays`.

    Raises:
        UpdateError: FT501 to FT505, as of `fedtune.updates.codec.from_arrays`.
    """
    own = {name.removeprefix(_OWN): record[name] for name in record if name.startswith(_OWN)}
    if not own:
        return record, {}
    rest = ArrayRecord({name: record[name] for name in record if not name.startswith(_OWN)})
    return rest, from_arrays(ArrayRecord(own), spec, FACTORS, where=f"{where}, the cluster's adapter")


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
