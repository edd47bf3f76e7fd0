"""The figures of secure aggregation, ours and Flower's SecAgg+ in one run.

=============================  =======================================================================
key                            what is measured
=============================  =======================================================================
``mask_time_over_bound``       masking 10M parameters in a cohort of 10, over AES keystream + adds alone
``speedup_over_flower``        quantizing and masking the same vector, Flower's time over ours
``wire_bytes_over_flower_*``   all that a client sends in a round, over Flower's masked arrays alone
``relative_error_*``           decoded mean of 10 updates of std 1e-4 and weights 1 … 50 against the exact
``unmask_seconds_*``           server's last step, 10M parameters, 10 % dropped after sharing
``scale_*``                    1,000 virtual clients, 100k parameters, 5 % dropped, the whole protocol
=============================  =======================================================================

Everything runs in this process on one core. Times are medians; ``*_spread`` beside them is [min, max].
"""

from __future__ import annotations

import math
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedtune.secagg import bench_peer
from fedtune.secagg.bench_parties import Parties, uniform_encoding
from fedtune.secagg.collected import SecureSum, Trip
from fedtune.secagg.encoding import RingBits
from fedtune.secagg.masks import CHUNK_BYTES, Mask, keystream, pair_sign
from fedtune.secagg.messages import Kind
from fedtune.secagg.rounding import EncodedUpdate, decode_mean, encode_update
from fedtune.secagg.rounds import finish_attempt
from fedtune.secagg.server import ServerAttempt
from fedtune.secagg.steps import masked_bytes
from fedtune.secagg.unmasking import open_sum

__all__ = ["bench_secagg"]

Figures = dict[str, float | bool | list[float]]

PARAMETERS: Final = 10_000_000
COHORT: Final = 10
CLIENTS: Final = 1000
DELTA_STD: Final = 1e-4
MAX_WEIGHT: Final = 50


def bench_secagg(*, scale: bool, on_part: Callable[[str], None] | None = None) -> Figures:
    """All figures of the module's table.

    Args:
        scale: Also the 1,000 clients, which take some minutes.
        on_part: Called with a part's name before it is measured.

    Raises:
        ImportError: Flower's SecAgg+ is not where it was.
    """
    figures: Figures = {}
    for name, measure in _parts(scale=scale).items():
        if on_part is not None:
            on_part(name)
        figures |= measure()
    return figures


def _parts(*, scale: bool) -> dict[str, Callable[[], Figures]]:
    parts: dict[str, Callable[[], Figures]] = {}
    if scale:  # first, so that its peak of memory is its own
        parts[f"the whole protocol with {CLIENTS:,} clients"] = lambda: _scale(
            clients=CLIENTS, parameters=100_000, dropped=CLIENTS // 20
        )
    return parts | {
        f"masking of {PARAMETERS:,} parameters": lambda: _masking(parameters=PARAMETERS, repeats=7),
        "bytes that a client sends": lambda: _wire(parameters=PARAMETERS),
        "errors of the decoded mean": lambda: _errors(parameters=100_000),
        "unmasking in a cohort of 10": lambda: _unmasking(members=10, parameters=PARAMETERS, repeats=5),
        "unmasking in a cohort of 100": lambda: _unmasking(members=100, parameters=PARAMETERS, repeats=3),
    }


def _timed(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def _median(key: str, seconds: list[float]) -> Figures:
    return {key: statistics.median(seconds), f"{key}_spread": [min(seconds), max(seconds)]}


def _masking(*, parameters: int, repeats: int) -> Figures:
    """Ours, its bound, and Flower's, in turn, so that a slow moment of the machine strikes all three."""
    encoding = uniform_encoding(parameters, members=COHORT, max_weight=MAX_WEIGHT)
    values = np.random.default_rng(0).standard_normal(parameters).astype(np.float32) * np.float32(DELTA_STD)
    update = encode_update({"delta": values}, encoding, weight=MAX_WEIGHT)
    masks = [Mask(key=os.urandom(32), sign=1)]
    masks += [Mask(key=os.urandom(32), sign=pair_sign(4, peer)) for peer in range(COHORT) if peer != 4]
    ours, bound, encoding_times, flower = [], [], [], []
    for _ in range(repeats):
        bound.append(_timed(lambda: _bound(update, len(masks))))
        ours.append(_timed(lambda: masked_bytes(update, masks, prg="aes256ctr")))
        encoding_times.append(_timed(lambda: encode_update({"delta": values}, encoding, weight=MAX_WEIGHT)))
        flower.append(_timed(lambda: bench_peer.flower_mask([values], weight=MAX_WEIGHT, peers=COHORT - 1)))
    return {
        **_median("mask_seconds", ours),
        **_median("mask_bound_seconds", bound),
        **_median("encode_seconds", encoding_times),
        **_median("flower_seconds", flower),
        "mask_time_over_bound": statistics.median(ours) / statistics.median(bound),
        "speedup_over_flower": statistics.median(flower)
        / (statistics.median(ours) + statistics.median(encoding_times)),
    }


def _bound(update: EncodedUpdate, masks: int) -> None:
    """Nothing but the keystream and the additions of as many bytes, in pieces that fit the cache."""
    target = np.zeros(CHUNK_BYTES // update.vector.itemsize, dtype=update.vector.dtype)
    buffer = bytearray(CHUNK_BYTES + 16)
    words = np.frombuffer(buffer, dtype=update.vector.dtype, count=len(target))
    zeros = bytes(CHUNK_BYTES)
    streams = [keystream(os.urandom(32), "aes256ctr") for _ in range(masks)]
    for _ in range(math.ceil(update.vector.nbytes / CHUNK_BYTES)):
        for stream in streams:
            stream.update_into(zeros, buffer)
            np.add(target, words, out=target)


def _wire(*, parameters: int) -> Figures:
    """Every byte that one client sends from R0 to R4; of Flower's, the masked arrays alone."""
    small = [np.zeros(1000, np.float32)]
    masked = bench_peer.flower_mask(small, weight=MAX_WEIGHT, peers=COHORT - 1)
    per_parameter = bench_peer.flower_wire_bytes(masked[1:]) - bench_peer.flower_wire_bytes([masked[1][:0]])
    flower = bench_peer.flower_wire_bytes(masked) + per_parameter // 1000 * (parameters - 1000)
    figures: Figures = {}
    rings: tuple[RingBits, ...] = (32, 16)
    for ring in rings:
        encoding = uniform_encoding(1000, members=COHORT, ring_bits=ring)
        with tempfile.TemporaryDirectory() as folder:
            parties = Parties(COHORT, encoding=encoding, folder=Path(folder))
            parties.hold_random(std=DELTA_STD)
            sent = [0]
            finish_attempt(parties.attempt(), _counting(parties, sent))
        ours = sent[0] / COHORT + (parameters - 1000) * ring // 8
        figures[f"wire_bytes_{ring}"] = ours
        figures[f"wire_bytes_over_flower_{ring}"] = ours / flower
    return figures


def _counting(parties: Parties, sent: list[int]) -> Callable[[Mapping[bytes, bytes]], Iterable[bytes]]:
    def send(requests: Mapping[bytes, bytes]) -> Iterable[bytes]:
        for reply in parties.send()(requests):
            sent[0] += len(reply)
            yield reply

    return send


def _errors(*, parameters: int) -> Figures:
    """Root mean square of the decoded mean's error over that of the exact weighted mean."""
    rng = np.random.default_rng(1)
    weights = [1, *(int(weight) for weight in rng.integers(1, MAX_WEIGHT, COHORT - 2)), MAX_WEIGHT]
    updates = [(rng.standard_normal(parameters) * DELTA_STD).astype(np.float32) for _ in range(COHORT)]
    exact = np.average(np.stack(updates).astype(np.float64), axis=0, weights=weights)
    size = float(np.sqrt(np.mean(exact**2)))

    def relative(mean: NDArray[Any]) -> float:
        return float(np.sqrt(np.mean((mean - exact) ** 2))) / size

    figures: Figures = {"relative_error_flower": relative(bench_peer.flower_mean(updates, weights))}
    rings: tuple[RingBits, ...] = (32, 16)
    for ring in rings:
        encoding = uniform_encoding(parameters, members=COHORT, ring_bits=ring, max_weight=MAX_WEIGHT)
        vector = np.zeros(parameters, dtype=encoding.dtype)
        lanes = np.zeros(len(encoding.lane_names), dtype=np.uint64)
        for values, weight in zip(updates, weights, strict=True):
            encoded = encode_update({"delta": values}, encoding, weight=weight)
            vector += encoded.vector
            lanes += encoded.lanes
        mean = decode_mean(vector, lanes, encoding)
        limits = {"count": COHORT, "total_weight": sum(weights)}
        tensor = encoding.tensors[0]
        figures[f"relative_error_{ring}"] = relative(mean.tensors["delta"])
        figures[f"relative_error_bound_{ring}"] = encoding.error_deviation(tensor, **limits) / size
        figures[f"relative_error_worst_{ring}"] = encoding.error_bound(tensor, **limits) / size
    return figures


def _unmasking(*, members: int, parameters: int, repeats: int) -> Figures:
    """`open_sum` for a real attempt, on a vector of full size; a tenth sent shares and then no vector."""
    with tempfile.TemporaryDirectory() as folder:
        parties = Parties(members, encoding=uniform_encoding(100, members=members), folder=Path(folder))
        parties.hold_random(std=DELTA_STD)
        gone = frozenset(range(members // 10))
        attempt = parties.attempt()
        send = parties.send(absent={Kind.MASK: gone})
        while attempt.trip is not Trip.UNMASK:
            _one_trip(attempt, send)
        for reply in send(attempt.requests()):
            attempt.receive(reply)
    collected = attempt.collected
    collected.vector = np.zeros(parameters, dtype=collected.vector.dtype)
    rules = attempt.rules
    seconds = [
        _timed(lambda: open_sum(collected, roster=rules.roster, prg=rules.binding.prg))
        for _ in range(repeats)
    ]
    return _median(f"unmask_seconds_{members}", seconds)


def _one_trip(attempt: ServerAttempt, send: Callable[[Mapping[bytes, bytes]], Iterable[bytes]]) -> None:
    for reply in send(attempt.requests()):
        attempt.receive(reply)
    attempt.advance()


def _scale(*, clients: int, parameters: int, dropped: int) -> Figures:
    """The whole protocol with its real messages; those who drop out do so after dealing their shares."""
    encoding = uniform_encoding(parameters, members=clients)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        parties = Parties(clients, encoding=encoding, folder=Path(folder))
        parties.hold_random(std=DELTA_STD)
        gone = frozenset(range(0, clients, max(clients // dropped, 1)))
        attempt = parties.attempt()
        total = finish_attempt(attempt, parties.send(absent={Kind.MASK: gone}))
        seconds = time.perf_counter() - started
    shape = attempt.cohort.graph.shape
    return {
        "scale_clients": clients,
        "scale_dropped": len(gone),
        "scale_neighbours": 2 * shape.half_degree or clients - 1,
        "scale_seconds": seconds,
        "scale_peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "scale_sum_exact": _exact(total, parties, gone),
    }


def _exact(total: SecureSum, parties: Parties, gone: frozenset[int]) -> bool:
    vector, lanes = parties.plain_sum(index for index in range(len(parties.clients)) if index not in gone)
    return bool(np.array_equal(total.vector, vector) and np.array_equal(total.lanes, lanes))
