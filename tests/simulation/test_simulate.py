"""Whole federations on a tiny model: repeatable, resumable after any kill, the same on every backend."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.processes import hears_ctrl_c

import fedtune
from fedtune.errors import ConfigError, DataError, FederationError, RunError
from fedtune.federation.site import WalkPosition
from fedtune.observability.events import ClientFailed, RunFinished, RunStarted, read_events

Overrides = Callable[..., list[str]]


def adapter(run: Path) -> dict[str, np.ndarray]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


def assert_equal_bit_for_bit(one: Path, other: Path) -> None:
    first, second = adapter(one), adapter(other)
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], strict=True)


def test_a_run_leaves_everything_that_its_reader_needs(tiny_overrides: Overrides) -> None:
    run = fedtune.simulate(tiny_overrides(aggregation="alternating", baselines="[local,centralized]"))
    names = {path.name for path in run.path.iterdir()}
    assert {"config.yaml", "rounds.jsonl", "checkpoints", "adapter", "report.html"} <= names
    summary = run.summary
    assert summary["status"] == "completed"
    assert summary["rounds"] == len(run.rounds[run.rounds["round"] > 0]) == 2
    assert set(summary["sites"]) == {"ear", "eye", "heart"}
    losses = summary["held_out_loss"]
    assert all(losses[kind] is not None for kind in ("base", "federated", "local", "centralized"))
    assert losses["federated"] < losses["base"]
    assert summary["aggregation_error"] <= 1e-6
    assert "heart" in run.report.read_text(encoding="utf-8")
    assert (run.adapter_dir / "README.md").exists()


# peft asks a model for a property that transformers has renamed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_the_saved_adapter_is_the_federated_model(tiny_overrides: Overrides, tiny_model_dir: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from fedtune.config.schema import ModelConfig
    from fedtune.models.adapted import shared_adapted_model

    run = fedtune.simulate(tiny_overrides())
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(base, run.adapter_dir).eval()
    ours = shared_adapted_model(run.config.model, run.config.peft, gradient_checkpointing=False)
    assert isinstance(run.config.model, ModelConfig)
    prefix = "base_model.model."
    ours.load_adapter(
        {
            name if name.startswith(prefix) else prefix + name: value
            for name, value in adapter(run.path).items()
        }
    )
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=ids).logits, ours.model(input_ids=ids).logits)


def test_the_same_seed_gives_the_same_adapter_bit_for_bit(tiny_overrides: Overrides) -> None:
    runs = [fedtune.simulate(tiny_overrides(name=name, peft__dropout=0.1)).path for name in ("a", "b")]
    assert_equal_bit_for_bit(*runs)
    other = fedtune.simulate(tiny_overrides(name="c", peft__dropout=0.1, seed=1)).path
    assert any(not np.array_equal(adapter(runs[0])[name], adapter(other)[name]) for name in adapter(other))


def test_other_threads_and_batch_shapes_differ_by_rounding_alone(tiny_overrides: Overrides) -> None:
    exact = {"model__compute_dtype": "float64", "evaluation__generations": 0}
    one = adapter(fedtune.simulate(tiny_overrides(name="one", **exact)).path)
    others = {
        "threads": {"training__threads": 2},
        "bins": {"training__microbatch_tokens": 96},
        "padded": {"training__packing": "false"},
    }
    for name, changed in others.items():
        other = adapter(fedtune.simulate(tiny_overrides(name=name, **exact, **changed)).path)
        for tensor in one:
            assert other[tensor].dtype == np.float64
            assert np.abs(other[tensor] - one[tensor]).max() <= 1e-9, (name, tensor)


@pytest.mark.parametrize("method", ["fedavg", "ffa", "alternating"])
def test_exact_methods_have_no_aggregation_error(tiny_overrides: Overrides, method: str) -> None:
    summary = fedtune.simulate(tiny_overrides(aggregation=method, evaluation__generations=0)).summary
    if method == "fedavg":
        assert summary["aggregation_error"] > 1e-6
    else:
        assert summary["aggregation_error"] <= 1e-6


def test_alternating_sends_half_of_what_fedavg_sends(tiny_overrides: Overrides) -> None:
    sent = {
        method: fedtune.simulate(tiny_overrides(name=method, aggregation=method)).summary["uplink_bytes"]
        for method in ("fedavg", "alternating")
    }
    assert sent["alternating"] == pytest.approx(sent["fedavg"] / 2, rel=1e-3)


def test_a_client_walks_through_its_own_data_over_rounds(tiny_overrides: Overrides) -> None:
    run = fedtune.simulate(tiny_overrides())
    for site in ("ear", "eye", "heart"):
        assert WalkPosition(run.path / "sites", site).before(3) == 2 * 3


def test_a_cohort_smaller_than_the_federation_evaluates_everywhere(tiny_overrides: Overrides) -> None:
    summary = fedtune.simulate(tiny_overrides(federation__clients_per_round=2)).summary
    assert all(site["federated"] is not None for site in summary["sites"].values())


def run_in_process(overrides: list[str]) -> subprocess.Popen[bytes]:
    code = f"import fedtune; fedtune.simulate({overrides!r})"
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=hears_ctrl_c,  # noqa: PLW1509
    )


def wait_for(log: Path, wanted: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not (log.exists() and wanted in log.read_text(encoding="utf-8")):
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.002)


KILL_AT = [
    '"event":"client_evaluated"',
    '"event":"round_started","time"',
    '"round":1,"client":"eye"',
    '"event":"round_aggregated"',
    '"event":"round_finished","time":',
    '"round":2,"clients"',
    '"round":3,"client":"heart"',
]


@pytest.mark.e2e
@pytest.mark.parametrize("moment", KILL_AT[:: 1 if os.environ.get("FEDTUNE_ALL_KILLS") else 3])
def test_a_run_killed_at_any_instant_ends_with_the_same_adapter(
    tiny_overrides: Overrides, moment: str
) -> None:
    settings = {"federation__rounds": 3, "evaluation__generations": 0, "aggregation": "alternating"}
    whole = fedtune.simulate(tiny_overrides(name="whole", **settings)).path
    log = whole.parent / "killed" / "rounds.jsonl"
    process = run_in_process(tiny_overrides(name="killed", **settings))
    wait_for(log, moment, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    killed = fedtune.simulate(tiny_overrides(name="killed", resume="true", **settings))
    assert_equal_bit_for_bit(whole, killed.path)
    assert killed.summary["status"] == "completed"


@pytest.mark.e2e
def test_ctrl_c_in_mid_round_is_recorded_and_the_run_goes_on(tiny_overrides: Overrides) -> None:
    settings = {"federation__rounds": 3, "evaluation__generations": 0}
    whole = fedtune.simulate(tiny_overrides(name="whole", **settings)).path
    path = whole.parent / "stopped"
    process = run_in_process(tiny_overrides(name="stopped", **settings))
    wait_for(path / "rounds.jsonl", '"event":"client_trained"', process)
    process.send_signal(signal.SIGINT)
    process.communicate()
    last = read_events(path / "rounds.jsonl")[-1]
    assert isinstance(last, RunFinished)
    assert last.status == "interrupted"
    assert_equal_bit_for_bit(
        whole, fedtune.simulate(tiny_overrides(name="stopped", resume="true", **settings)).path
    )


def test_a_finished_run_that_is_resumed_trains_nothing_again(tiny_overrides: Overrides) -> None:
    first = fedtune.simulate(tiny_overrides(evaluation__generations=0))
    before = adapter(first.path)
    again = fedtune.simulate(tiny_overrides(resume="true", evaluation__generations=0, baselines="[local]"))
    starts = [e for e in read_events(again.path / "rounds.jsonl") if isinstance(e, RunStarted)]
    assert [start.resumed_after for start in starts] == [None, 2]
    assert again.summary["held_out_loss"]["local"] is not None
    for name, value in before.items():
        np.testing.assert_array_equal(adapter(again.path)[name], value)


def test_a_run_does_not_go_on_under_another_configuration(tiny_overrides: Overrides) -> None:
    fedtune.simulate(tiny_overrides(evaluation__generations=0))
    changed = {"resume": "true", "training__learning_rate": 0.5, "seed": 9, "evaluation__generations": 0}
    with pytest.raises(RunError) as caught:
        fedtune.simulate(tiny_overrides(**changed))
    assert {problem.where.rsplit(", ", 1)[1] for problem in caught.value.problems} == {
        "seed",
        "training.learning_rate",
    }


def test_a_second_run_of_the_same_name_does_not_touch_the_first(tiny_overrides: Overrides) -> None:
    first = fedtune.simulate(tiny_overrides(evaluation__generations=0))
    before = (first.path / "rounds.jsonl").read_bytes()
    with pytest.raises(RunError, match="FT701"):
        fedtune.simulate(tiny_overrides())
    assert (first.path / "rounds.jsonl").read_bytes() == before


def test_a_loss_that_is_not_a_number_names_the_client_and_stops_the_run(tiny_overrides: Overrides) -> None:
    with pytest.raises(FederationError, match="FT607"):
        fedtune.simulate(
            tiny_overrides(
                training__learning_rate="1e30",
                training__max_gradient_norm="null",
                training__warmup_fraction=0,
            )
        )


def rows_file(folder: Path, sizes: dict[str, int]) -> Path:
    rows = [
        {"instruction": f"{site} {number}", "output": f"answer {number}", "site": site}
        for site, count in sizes.items()
        for number in range(count)
    ]
    path = folder / "sized.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_site_with_one_example_takes_part_and_one_with_none_is_named(
    tiny_overrides: Overrides, tmp_path: Path
) -> None:
    rows = rows_file(tmp_path, {"a": 9, "b": 1})
    summary = fedtune.simulate(
        tiny_overrides(data__files=f"[{rows}]", partition__min_examples=0, federation__rounds=1)
    ).summary
    assert summary["sites"]["b"]["train_examples"] == 1
    assert summary["sites"]["b"]["federated"] is None
    few = tiny_overrides(
        name="none",
        data__files=f"[{rows}]",
        partition="iid",
        partition__clients=11,
        partition__min_examples=0,
        data__held_out_fraction=0,
        federation__rounds=1,
    )
    run = fedtune.simulate(few)
    failed = [e for e in read_events(run.path / "rounds.jsonl") if isinstance(e, ClientFailed)]
    assert [event.code for event in failed] == ["FT611"]


def test_bad_data_is_refused_before_a_run_directory_is_made(
    tiny_overrides: Overrides, tmp_path: Path
) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError):
        fedtune.simulate(tiny_overrides(data__files=f"[{tmp_path / 'empty.jsonl'}]"))
    assert not (tmp_path / "runs").exists()


def test_a_wrong_key_is_answered_with_the_right_one(tiny_overrides: Overrides) -> None:
    with pytest.raises(ConfigError, match=r"training\.learning_rate"):
        fedtune.simulate([*tiny_overrides(), "training.learning_rat=1"])


@pytest.mark.e2e
def test_ray_and_in_process_give_the_same_adapter_bit_for_bit(tiny_overrides: Overrides) -> None:
    here = fedtune.simulate(tiny_overrides(name="here", evaluation__generations=0))
    there = fedtune.simulate(tiny_overrides(name="there", backend="ray", evaluation__generations=0))
    assert_equal_bit_for_bit(here.path, there.path)
    assert there.summary["held_out_loss"]["federated"] == here.summary["held_out_loss"]["federated"]
    assert not (there.path / "flower").exists()


def test_baselines_may_have_rates_of_their_own_and_the_federation_keeps_its_own(
    tiny_overrides: Overrides,
) -> None:
    own = fedtune.simulate(
        tiny_overrides(baselines="[local,centralized]", baseline_learning_rates="{centralized: 1e-9}")
    )
    shared = fedtune.simulate(tiny_overrides(name="shared", baselines="[local,centralized]"))
    assert_equal_bit_for_bit(own.path, shared.path)
    one, other = own.summary["held_out_loss"], shared.summary["held_out_loss"]
    assert one["centralized"] == pytest.approx(one["base"], abs=1e-4)
    assert other["centralized"] < one["centralized"] - 1e-2
    assert one["local"] == other["local"]


def test_on_validation_rows_the_same_model_is_trained_and_tested_on_other_rows(
    tiny_overrides: Overrides,
) -> None:
    apart = {"data__validation_max_rows": 4, "data__held_out_seed": 0}
    chosen = fedtune.simulate(tiny_overrides(name="chosen", evaluation__rows="validation", **apart))
    reported = fedtune.simulate(tiny_overrides(name="reported", **apart))
    assert_equal_bit_for_bit(chosen.path, reported.path)
    assert chosen.summary["held_out_loss"]["base"] != reported.summary["held_out_loss"]["base"]
