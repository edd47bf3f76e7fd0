"""What a method costs a round, from the shapes alone: bytes on the wire, and work and memory at the server.

Operations are counted as in Golub and Van Loan, "Matrix Computations", 4th ed., 2013: 4 m k^2 for a QR
decomposition (m, k) with its Q, 22 k^3 for a small singular value decomposition, 2 m k n for a product.
Memory is what an aggregation holds at most beside the global adapter; a server that collects updates before
it adds them up holds these in any case.

Legend: n clients, P values of the adapter that travel, r its rank, K = n r, k width of a sketch.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from fedtune.config.derived import rounds_a_training, schedule_of, update_bytes
from fedtune.config.methods import Method, method
from fedtune.config.schema import Config
from fedtune.models.adapter import AdapterSpec

__all__ = ["Costs", "costs"]

_DOUBLE = 8
_STATES = {"none": 0, "fedavgm": 1, "fedadagrad": 2, "fedadam": 2, "fedyogi": 2}


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Of one round.

    Attributes:
        clients: In a round, that the rest is for.
        uplink_bytes: From a client, mean over the rounds of the schedule, that of the largest rank.
        downlink_bytes: To a client, in the last round: a side-car grows to what it may.
        server_flops: Of aggregation.
        server_memory_bytes: Of aggregation, at most, beside the global adapter.
        streams: Whether that memory stays the same with any number of clients.
        rounds: That one training takes; the numbers above are means over them.
    """

    clients: int
    uplink_bytes: int
    downlink_bytes: int
    server_flops: int
    server_memory_bytes: int
    streams: bool
    rounds: int


def costs(config: Config, spec: AdapterSpec, clients: int) -> Costs:
    """Return what the configured method costs.

    Args:
        config: The run's.
        spec: Of the global adapter (`fedtune.models.adapted.adapter_spec`).
        clients: In a round.
    """
    known = method(config.aggregation.method)
    itemsize = np.dtype(spec.dtype).itemsize
    width = config.aggregation.sketch_width if known.sketches else None
    sent = spec if width is None else spec.with_rank(width)
    schedule = schedule_of(config)
    travelling = sum(sent.parameters(factors) for factors in schedule) // len(schedule)
    sizes = [[prod(sent.shapes[name]) for name in sent.names(factors)] for factors in schedule]
    beside = _side_car_parameters(config, known, spec, clients)
    variates = travelling if config.training.control_variates else 0
    clustered = config.personal.name == "clusters"
    sums = known.summable or known.sketches or config.secagg.enabled
    streams = sums and config.defence.name == "none" and not clustered
    held = 2 * _DOUBLE * travelling + itemsize * travelling if streams else clients * itemsize * travelling
    flops, scratch = _work(config, known, spec, clients, travelling)
    return Costs(
        clients=clients,
        uplink_bytes=sum(update_bytes(config, each, itemsize=itemsize) for each in sizes) // len(sizes)
        + variates * itemsize,
        downlink_bytes=(spec.parameters() + beside + variates) * itemsize,
        server_flops=flops,
        server_memory_bytes=held
        + scratch
        + (config.personal.clusters or 0) * spec.nbytes()
        + _STATES[config.server_optimizer.name] * _DOUBLE * spec.parameters()
        + 2 * _DOUBLE * variates,
        streams=streams,
        rounds=rounds_a_training(config),
    )


def _work(config: Config, known: Method, spec: AdapterSpec, clients: int, travelling: int) -> tuple[int, int]:
    """Return operations, and bytes of the largest scratch."""
    rank = spec.shapes[spec.pairs[0][0]][0]
    layers = [(spec.shapes[name_B][0], spec.shapes[name_A][1]) for name_A, name_B in spec.pairs]
    name = config.aggregation.method
    flops, scratch = 2 * clients * travelling, 0
    if name in {"svd", "fedex", "flora"}:
        inner = clients * rank + (_side_car_rank(config, spec, clients) if known.has_side_car else 0)
        flops += sum(4 * (out + into) * inner**2 + 22 * inner**3 for out, into in layers)
        scratch = max(2 * _DOUBLE * (out + into) * inner for out, into in layers)
    elif name == "projection" and config.secagg.enabled:
        flops += sum(14 * into * rank**2 for _, into in layers) // rounds_a_training(config)
        scratch = max(2 * _DOUBLE * into * rank for _, into in layers)
    elif name == "projection":
        flops += sum(4 * into * rank**2 + 2 * clients * (out + into) * rank**2 for out, into in layers)
        scratch = max(2 * _DOUBLE * (out + into) * rank for out, into in layers)
    elif known.sketches:
        width = config.aggregation.sketch_width or rank
        flops += sum(8 * out * width**2 + 4 * into * width**2 + 22 * width**3 for out, into in layers)
        scratch = max(3 * _DOUBLE * (out + into) * width for out, into in layers)
    if config.personal.name == "clusters":  # once: two Gram matrices of all sites' factors for each layer
        inner = 2 * clients * rank
        flops += sum(2 * (out + into) * inner**2 for out, into in layers)
        scratch += max(_DOUBLE * ((out + into) * inner + 3 * inner**2) for out, into in layers)
    if config.defence.name != "none":
        pairs = clients * clients if config.defence.name in {"krum", "multi_krum", "bulyan"} else clients
        flops += 3 * pairs * travelling
        scratch += 2 * clients * _DOUBLE * travelling
    return flops, scratch


def _side_car_parameters(config: Config, known: Method, spec: AdapterSpec, clients: int) -> int:
    rank = _side_car_rank(config, spec, clients) if known.has_side_car else 0
    return spec.with_rank(rank).parameters() if rank else 0


def _side_car_rank(config: Config, spec: AdapterSpec, clients: int) -> int:
    """Return the largest rank that a side-car reaches: all rounds' stacks, a full matrix, or its limit."""
    rank = spec.shapes[spec.pairs[0][0]][0]
    full = max(min(spec.shapes[name_B][0], spec.shapes[name_A][1]) for name_A, name_B in spec.pairs)
    grown = min(clients * rank * config.federation.rounds, full)
    limit = config.aggregation.side_car_rank
    return grown if limit is None else min(grown, limit)
