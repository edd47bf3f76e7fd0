"""The summary against slow and plain computations of the same figures."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.synthetic_run import SITES, UPLINK_BYTES, synthetic_run

from fedtune.observability.events import (
    BaselineFinished,
    ClientEvaluated,
    ClientTrained,
    Event,
    Generated,
    ModelLoaded,
    RoundAggregated,
    RunFinished,
    RunStarted,
)
from fedtune.observability.statistics import mean
from fedtune.observability.summary import summarise
from fedtune.observability.timing import covered_seconds

CONTRACT = {
    "name", "status", "reason", "rounds", "clients", "seconds", "load_seconds", "overhead_fraction",
    "held_out_loss", "sites", "aggregation_error", "aggregation_errors", "exact", "uplink_bytes",
    "downlink_bytes", "tokens", "tokens_per_second", "peak_memory_mib", "failures",
    "federated_gain_over_centralized_gain",
}  # fmt: skip


def evaluations(events: list[Event], round_: int) -> dict[str, float]:
    return {
        event.client: event.loss
        for event in events
        if isinstance(event, ClientEvaluated) and event.round == round_ and event.loss is not None
    }


def average(values: list[float]) -> float:
    return sum(values) / len(values)


def test_own_models_are_compared_with_the_federated_one_on_the_same_rows() -> None:
    events = synthetic_run()
    plain = summarise(events)
    last, names = plain["last_evaluated_round"], list(plain["sites"])
    worse = names[0]

    def with_own(event: Event) -> Event:
        if not isinstance(event, ClientEvaluated) or event.round != last or event.loss is None:
            return event
        return replace(event, personal_loss=event.loss + (0.5 if event.client == worse else -0.25))

    summary = summarise([with_own(event) for event in events])
    for name, site in summary["sites"].items():
        by = 0.5 if name == worse else -0.25
        assert site["personalised"] == pytest.approx(site["federated"] + by)
        assert site["better_personalised"] is (name != worse)
    assert summary["not_better_personalised"] == [worse]
    assert plain["not_better_personalised"] == []
    assert {**summary["held_out_loss"], "personalised": None} == plain["held_out_loss"]


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=12),
    st.randoms(use_true_random=False),
)
def test_covered_seconds_counts_every_instant_once(intervals: list[tuple[int, int]], random) -> None:  # type: ignore[no-untyped-def]
    instants = {second for start, end in intervals for second in range(start, end)}
    random.shuffle(intervals)
    assert covered_seconds(intervals) == len(instants)


def test_a_mean_is_null_rather_than_flattered_by_leaving_a_value_out() -> None:
    assert mean([]) is None
    assert mean([1.0, None]) is None
    assert mean([1.0, 2.0]) == 1.5


def test_every_key_of_the_interface_is_there_and_the_object_is_standard_json() -> None:
    for events in (
        synthetic_run(),
        synthetic_run(rounds=1, baselines=False, finish=False),
        synthetic_run()[:1],
        [],
    ):
        summary = summarise(events)
        assert set(summary) >= CONTRACT
        assert set(summary["held_out_loss"]) == {
            "base", "federated", "personalised", "local", "centralized",
        }  # fmt: skip
        assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_losses_are_unweighted_means_over_sites() -> None:
    events = synthetic_run()
    local = [
        event.held_out_loss[event.site]
        for event in events
        if isinstance(event, BaselineFinished) and event.site
    ]
    pooled = [event for event in events if isinstance(event, BaselineFinished) and event.site is None]
    loss = summarise(events)["held_out_loss"]
    assert loss["base"] == pytest.approx(average(list(evaluations(events, 0).values())))
    assert loss["federated"] == pytest.approx(average(list(evaluations(events, 4).values())))
    assert loss["local"] == pytest.approx(average(local))  # type: ignore[arg-type]
    assert loss["centralized"] == pytest.approx(average(list(pooled[0].held_out_loss.values())))  # type: ignore[arg-type]
    gain = (loss["base"] - loss["federated"]) / (loss["base"] - loss["centralized"])
    assert summarise(events)["federated_gain_over_centralized_gain"] == pytest.approx(gain)


def test_every_site_that_federation_did_not_help_is_named() -> None:
    summary = summarise(synthetic_run())
    assert summary["not_better_than_local"] == ["Ear"]
    assert [site["better_than_local"] for site in summary["sites"].values()] == [True] * 5 + [False]


def test_a_tie_with_local_training_does_not_count_as_help() -> None:
    events = synthetic_run()
    final = evaluations(events, 4)
    events = [
        replace(event, held_out_loss={event.site: final[event.site]})
        if isinstance(event, BaselineFinished) and event.site == "Eye"
        else event
        for event in events
    ]
    assert summarise(events)["not_better_than_local"] == ["Eye", "Ear"]


def test_a_site_missing_from_the_last_evaluation_is_left_out_of_both_means() -> None:
    events = [
        event
        for event in synthetic_run()
        if not (isinstance(event, ClientEvaluated) and event.round == 4 and event.client == "Eye")
    ]
    summary = summarise(events)
    base = evaluations(events, 0)
    del base["Eye"]
    assert "Eye" not in summary["sites_compared"]
    assert summary["sites"]["Eye"]["federated"] is None
    assert summary["sites"]["Eye"]["better_than_local"] is None
    assert summary["held_out_loss"]["base"] == pytest.approx(average(list(base.values())))
    assert summary["held_out_loss"]["federated"] == pytest.approx(
        average(list(evaluations(events, 4).values()))
    )


def test_a_site_whose_loss_diverged_makes_the_mean_null_instead_of_better() -> None:
    events = [
        replace(event, loss=math.nan)
        if isinstance(event, ClientEvaluated) and event.round == 4 and event.client == "Eye"
        else event
        for event in synthetic_run()
    ]
    loss = summarise(events)["held_out_loss"]
    assert loss["federated"] is None
    assert loss["base"] == pytest.approx(average(list(evaluations(events, 0).values())))


def test_a_baseline_that_lacks_a_site_has_no_mean() -> None:
    events = [e for e in synthetic_run() if not (isinstance(e, BaselineFinished) and e.site == "Ear")]
    loss = summarise(events)["held_out_loss"]
    assert loss["local"] is None
    assert loss["centralized"] is not None


def test_the_federated_loss_is_that_of_the_last_finished_round() -> None:
    events = synthetic_run(baselines=False, finish=False)
    cut = [
        index for index, event in enumerate(events) if isinstance(event, ClientEvaluated) and event.round == 3
    ]
    interrupted = events[: cut[0] + 1]  # one site of round 3 evaluated, then killed
    summary = summarise(interrupted)
    assert summary["status"] == "unfinished"
    assert summary["rounds"] == 2
    assert summary["last_evaluated_round"] == 2
    assert summary["held_out_loss"]["federated"] == pytest.approx(
        average(list(evaluations(events, 2).values()))
    )


@pytest.mark.parametrize("method", ["fedavg", "alternating"])
@pytest.mark.parametrize("rounds", [1, 2, 3, 4])
def test_uplink_bytes_are_the_mean_per_client_and_round(method: str, rounds: int) -> None:
    events = synthetic_run(rounds=rounds, method=method)  # type: ignore[arg-type]
    sent = [event.uplink_bytes for event in events if isinstance(event, ClientTrained)]
    summary = summarise(events)
    assert summary["uplink_bytes"] == pytest.approx(sum(sent) / len(sent))
    assert summary["uplink_bytes_total"] == sum(sent)
    if method == "fedavg":
        assert summary["uplink_bytes"] == sum(UPLINK_BYTES.values())


def test_the_aggregation_error_is_the_largest_and_exact_means_all_rounds() -> None:
    summary = summarise(synthetic_run())
    assert summary["aggregation_error"] == 0.31
    assert len(summary["aggregation_errors"]) == 4
    assert summary["exact"] is False
    assert summarise(synthetic_run(method="alternating"))["exact"] is True
    unmetered = [
        replace(event, aggregation_error=None) if isinstance(event, RoundAggregated) else event
        for event in synthetic_run()
    ]
    assert summarise(unmetered)["aggregation_error"] is None


def test_overhead_is_the_share_of_tenths_of_seconds_in_which_no_client_worked() -> None:
    events = synthetic_run()
    work = [(e.started, e.finished) for e in events if isinstance(e, ClientTrained | ClientEvaluated)]
    begin = events[0].time
    finished = next(event for event in events if isinstance(event, RunFinished))
    steps = range(int(finished.load_seconds * 10), int(finished.seconds * 10))
    idle = sum(not any(a <= begin + step / 10 < b for a, b in work) for step in steps)
    assert summarise(events)["overhead_fraction"] == pytest.approx(idle / len(steps), abs=0.005)


@given(shift=st.floats(0, 30))
def test_clients_that_work_at_the_same_time_cover_it_once(shift: float) -> None:
    events: list[Event] = [
        RunStarted(time=0.0, name="x", config={}, version="1", machine={}),
        *(
            ClientEvaluated(
                time=50.0,
                round=0,
                client=name,
                loss=1.0,
                tokens=1,
                examples=1,
                started=start,
                finished=start + 20,
            )
            for name, start in (("a", 10.0), ("b", 10.0 + shift))
        ),
        RunFinished(
            time=60.0, status="completed", reason=None, seconds=60.0, load_seconds=10.0, peak_memory_mib=1.0
        ),
    ]
    covered = 20 + min(shift, 20)
    assert summarise(events)["overhead_fraction"] == pytest.approx(1 - covered / 50)


def test_time_adds_up_over_sessions_and_a_killed_one_counts_to_its_last_event() -> None:
    first = synthetic_run(baselines=False, failure=False)
    at = next(index for index, event in enumerate(first) if getattr(event, "round", 0) == 3)
    killed = first[: at + 3]  # round 3 has begun: two clients trained, then SIGKILL
    second = synthetic_run(baselines=False, failure=False, start=first[0].time + 10_000)
    resumed = [
        replace(event, resumed_after=2) if isinstance(event, RunStarted) else event
        for event in second
        if not hasattr(event, "round") or event.round > 2
    ]
    summary = summarise([*killed, *resumed])
    end = next(event for event in second if isinstance(event, RunFinished))
    loaded = next(event for event in first if isinstance(event, ModelLoaded))
    assert summary["sessions"] == 2
    assert summary["seconds"] == pytest.approx(killed[-1].time - first[0].time + end.seconds)
    assert summary["load_seconds"] == pytest.approx(loaded.seconds + end.load_seconds)
    assert summary["rounds"] == 4
    # The two deltas that the resume voided are not counted as traffic or tokens.
    trained = [event for event in [*killed[:at], *resumed] if isinstance(event, ClientTrained)]
    assert len(trained) == 4 * len(SITES)
    assert summary["uplink_bytes_total"] == sum(event.uplink_bytes for event in trained)
    assert summary["tokens"] == sum(event.tokens for event in trained)


def test_work_outside_a_sessions_seconds_does_not_hide_its_overhead() -> None:
    def work(start: float, end: float) -> ClientEvaluated:
        return ClientEvaluated(
            time=end, round=1, client="a", loss=1.0, tokens=1, examples=1, started=start, finished=end
        )

    events: list[Event] = [
        RunStarted(time=1000.0, name="x", config={}, version="1", machine={}),
        work(1010.0, 1030.0),
        work(1060.0, 1500.0),  # a round that was cut short: seconds end before it
        RunFinished(
            time=1500.0, status="failed", reason="x", seconds=50.0, load_seconds=10.0, peak_memory_mib=1.0
        ),
    ]
    assert summarise(events)["overhead_fraction"] == pytest.approx(0.5)


def test_baselines_and_generations_are_not_part_of_a_killed_sessions_time() -> None:
    events = [event for event in synthetic_run() if not isinstance(event, RunFinished)]
    federation = [event for event in events if not isinstance(event, BaselineFinished | Generated)]
    assert summarise(events)["seconds"] == pytest.approx(federation[-1].time - events[0].time)


def test_failures_are_listed_with_their_reasons() -> None:
    failures = summarise(synthetic_run())["failures"]
    assert [(f["round"], f["client"], f["stage"], f["code"]) for f in failures] == [
        (2, "Cardiovascular system", "train", "FT402"),
        (3, "Cardiovascular system", "evaluate", "FT604"),
    ]
    assert failures[1]["reason"] == "no reply within 120 s"


def test_the_round_table_adds_up_to_the_whole() -> None:
    events = synthetic_run()
    summary = summarise(events)
    rows = summary["round_table"]
    assert [row["round"] for row in rows] == [0, 1, 2, 3, 4]
    assert sum(row["tokens"] for row in rows) == summary["tokens"]
    assert sum(row["uplink_bytes"] for row in rows) == summary["uplink_bytes_total"]
    assert rows[2]["failed"] == ["Cardiovascular system"]
    assert "Cardiovascular system" not in rows[2]["clients"]
    work = sum(row["training_seconds"] + row["evaluation_seconds"] for row in rows)
    other = sum(row["other_seconds"] for row in rows)
    assert work + other == pytest.approx(summary["seconds"] - summary["load_seconds"], rel=0.01)
