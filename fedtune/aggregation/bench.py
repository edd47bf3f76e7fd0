"""Measurements of aggregation: the compact decomposition beside the dense one, exactness, memory, traffic."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable

import numpy as np

from fedtune.aggregation.base import Aggregator
from fedtune.aggregation.carrying import CarryingAccumulator, begin, side_car_of
from fedtune.aggregation.linear import ALTERNATING, CORE, FEDAVG, FFA
from fedtune.aggregation.lowrank import singular_terms, stacked
from fedtune.aggregation.meter import ErrorMeter
from fedtune.aggregation.residual import fedex, flora
from fedtune.data.seeds import derive_seed
from fedtune.models.adapter import Adapter, AdapterSpec, Factor
from fedtune.training.delta import Delta
from fedtune.updates.codec import to_arrays, wire_bytes

__all__ = ["bench_aggregation"]

CLIENTS, RANK = 10, 16
FEW, MANY = 10, 200
_LAYERS = ((576, 576), (192, 576), (576, 1536), (1536, 576)) * 6
"""(out, in) of some layers of a small language model."""


def bench_aggregation(*, size: int, on_part: Callable[[str], None]) -> dict[str, float]:
    """Measure; the keys are an interface.

    Args:
        size: Inputs and outputs of the layer whose decompositions are timed; 4096 takes some minutes.
        on_part: Told of what comes next.
    """
    on_part(f"the decomposition of {size} x {size}, compact and dense")
    figures = _decompositions(size)
    on_part("the error of exact methods")
    figures["exact_error_max"] = _exact_error()
    on_part(f"memory of linear methods, {FEW} and {MANY} clients")
    _peak(FEDAVG, 1)  # what a first call leaves in caches is no client's memory
    figures["memory_ratio_200_over_10"] = max(
        _peak(method, MANY) / _peak(method, FEW) for method in (FEDAVG, FFA, ALTERNATING, CORE)
    )
    figures["uplink_ratio"] = _uplink(ALTERNATING) / _uplink(FEDAVG)
    return figures


def _decompositions(size: int) -> dict[str, float]:
    stream = np.random.default_rng(derive_seed("bench", size))
    terms = [
        (1 / CLIENTS, stream.standard_normal((size, RANK)), stream.standard_normal((RANK, size)))
        for _ in range(CLIENTS)
    ]
    started = time.perf_counter()
    B, A = singular_terms(*stacked(terms)).balanced(RANK)
    compact = time.perf_counter() - started
    started = time.perf_counter()
    mean = sum(share * (B_i @ A_i) for share, B_i, A_i in terms)
    left, singular, right = np.linalg.svd(mean, full_matrices=False)
    best = (left[:, :RANK] * singular[:RANK]) @ right[:RANK]
    dense = time.perf_counter() - started
    least, ours = (float(np.linalg.norm(mean - each)) for each in (best, B @ A))
    return {
        "svd_speedup": dense / compact,
        "svd_compact_seconds": compact,
        "svd_dense_seconds": dense,
        "svd_error_difference": abs(ours - least) / least,
    }


def _spec(rank: int = RANK) -> AdapterSpec:
    shapes: dict[str, tuple[int, ...]] = {}
    for number, (out, into) in enumerate(_LAYERS):
        shapes[f"layers.{number}.lora_A.weight"] = (rank, into)
        shapes[f"layers.{number}.lora_B.weight"] = (out, rank)
    return AdapterSpec(shapes=shapes, scaling=2.0, dtype="float32")


def _drawn(spec: AdapterSpec, *seed: str | int, factors: tuple[Factor, ...] = ("A", "B")) -> Adapter:
    """Return tensors as large as those of a real round: A of its start, changes of about 1e-2."""
    stream = np.random.default_rng(derive_seed("bench", *seed))
    return {
        name: (0.02 * stream.standard_normal(spec.shapes[name])).astype(spec.dtype)
        for name in spec.names(factors)
    }


def _exact_error() -> float:
    """Return the meter's largest value over two rounds of every exact method."""
    worst = 0.0
    for method in (FFA, ALTERNATING, CORE, fedex(None), flora(None)):
        spec = _spec() if method is not CORE else _core_spec()
        adapter, carried = _drawn(spec, "start"), dict[str, np.ndarray]()
        for number in (1, 2):
            accumulator, meter = begin(method, adapter, carried), ErrorMeter(spec, adapter)
            for client in range(CLIENTS):
                delta = Delta(tensors=_drawn(spec, number, client, factors=method.factors(number)))
                accumulator.add(delta, float(client + 1))
                meter.add(delta, float(client + 1))
            new, before = accumulator.result(), side_car_of(carried)
            if isinstance(accumulator, CarryingAccumulator):
                carried = accumulator.carried()
            worst = max(worst, meter.result(new, before, side_car_of(carried)))
            adapter = new
    return worst


def _core_spec() -> AdapterSpec:
    shapes = {
        name: shape if name.endswith("lora_A.weight") else (RANK, RANK)
        for name, shape in _spec().shapes.items()
    }
    return AdapterSpec(shapes=shapes, scaling=2.0, dtype="float32")


def _peak(method: Aggregator, clients: int) -> int:
    """Return the most bytes that aggregating so many clients takes, each update let go once it is added."""
    spec = _spec() if method is not CORE else _core_spec()
    received = _drawn(spec, "start")
    tracemalloc.start()
    try:
        accumulator = method.start(received)
        for client in range(clients):
            accumulator.add(Delta(tensors=_drawn(spec, client, factors=method.factors(1))), 1.0)
        accumulator.result()
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return most


def _uplink(method: Aggregator) -> int:
    """Return the bytes that a client sends in two rounds."""
    spec = _spec()
    return sum(
        wire_bytes(to_arrays(_drawn(spec, number, factors=method.factors(number)))) for number in (1, 2)
    )
