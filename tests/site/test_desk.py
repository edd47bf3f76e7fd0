"""Every message to a site passes its desk: each guarantee of the desk, with Flower's own messages."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
import pickle
import subprocess
import sys
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from support.asking import CANARY, AskedSite, body_of
from support.canary import forms
from support.site_folder import federation_config
from support.tiny_model import make_tiny_model

import fedtune
from fedtune.config.wire import config_to_json
from fedtune.errors import FedtuneError, MachineError
from fedtune.federation.optimizer_memory import OptimizerMemory
from fedtune.federation.wire import ARRAYS, RECORD, EvaluateReply, HelloReply, TrainReply
from fedtune.models.base_hash import base_hash
from fedtune.observability.json_log import log_to
from fedtune.site import admission as admission_module
from fedtune.site.approvals import write_standing
from fedtune.site.envelope import METRIC_OF_FIELD, told_metrics
from fedtune.updates.codec import to_arrays

OTHER_BUNDLE = "c" * 64


@pytest.fixture
def site(tmp_path: Path, tiny_model_dir: Path) -> AskedSite:
    return AskedSite(root=tmp_path, model=tiny_model_dir)


def refused(site: AskedSite, reply: Message, code: str, *reasons: str) -> str:
    """Check that a message was refused, on the wire and in the audit log; returns the sentence."""
    body = body_of(reply)
    assert (body["kind"], body["site"], body["code"]) == ("failure", "ear", code)
    assert list(reply.content) == [RECORD]
    line = site.lines()[-1]
    assert (line["event"], line["details"]["code"]) == ("refused", code)
    assert tuple(line["details"]["reasons"]) == reasons
    assert site.state.snapshot().last_error is None
    return str(body["reason"])


# What is done, and what is written down of it


def test_a_message_that_may_be_answered_is_answered_and_both_are_in_the_audit_log(site: AskedSite) -> None:
    assert body_of(site.ask("query.hello"))["kind"] == "hello"
    reply = site.ask("train")
    assert body_of(reply)["examples"] == 8
    assert [line["event"] for line in site.lines()] == ["asked", "left", "asked", "left"]
    left = site.lines("left")[-1]["details"]
    assert left["metrics"] == ["examples", "train_loss"]
    arrays = reply.content[ARRAYS]
    assert isinstance(arrays, ArrayRecord)
    for tensor, (name, array) in zip(left["tensors"], arrays.items(), strict=True):
        values = array.numpy()
        assert (tensor["name"], tensor["shape"], tensor["dtype"]) == (name, list(values.shape), "float32")
        assert tensor["norm"] == pytest.approx(np.linalg.norm(values.astype(np.float64)))
    snapshot = site.state.snapshot()
    assert (snapshot.rounds_trained, snapshot.model_loaded, snapshot.bytes_sent > 30_000) == (1, True, True)


def test_what_the_base_model_is_called_here_does_not_leave(site: AskedSite) -> None:
    assert body_of(site.ask())["base_name"] == "tiny"


def test_the_base_model_is_read_once_for_all_messages(
    site: AskedSite, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="fedtune.site.deployed")
    for kind in ("query.hello", "train", "evaluate", "train"):
        site.ask(kind)
    assert sum("the base model is loaded" in record.getMessage() for record in caplog.records) <= 1


def test_a_request_is_in_the_audit_log_before_it_is_looked_at(
    site: AskedSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def look(*_: object, **__: object) -> None:
        seen.extend(line["event"] for line in site.lines())
        raise ValueError

    monkeypatch.setattr(admission_module, "config_from_json", look)
    site.ask()
    assert seen == ["asked"]


def test_an_exception_that_nobody_foresaw_says_its_type_alone_and_is_written_down(
    site: AskedSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ZeroDivisionError(CANARY)

    monkeypatch.setattr(admission_module, "config_from_json", fails)
    assert refused(site, site.ask(), "FT609") == "unexpected ZeroDivisionError"


# Whom and what a site answers


def test_another_bundle_of_the_same_version_is_refused(site: AskedSite) -> None:
    assert OTHER_BUNDLE in refused(site, site.ask(bundle=OTHER_BUNDLE), "FT620")
    site.allow(bundles=["installed", OTHER_BUNDLE])
    site.start()
    assert body_of(site.ask(bundle=OTHER_BUNDLE))["kind"] == "hello"


def test_the_installed_bundle_is_refused_by_a_policy_that_does_not_name_it(site: AskedSite) -> None:
    site.allow(bundles=[OTHER_BUNDLE])
    site.start()
    refused(site, site.ask(), "FT620")


def test_a_coordinator_of_another_version_is_told_both_versions(site: AskedSite) -> None:
    said = refused(site, site.ask(bundle=OTHER_BUNDLE, version="9.9.9" * 100), "FT601")
    assert "fedtune 9.9.9" in said
    assert fedtune.__version__ in said
    assert len(said) < 200


def test_a_message_type_that_no_site_knows_is_refused(site: AskedSite) -> None:
    for kind in ("query.shell", "train.mine", "query", "evaluate." + "x" * 500):
        refused(site, site.ask(kind), "FT645")


def test_a_simulations_configuration_is_refused(site: AskedSite) -> None:
    assert "simulation" in refused(site, site.ask(config=site.config("backend=inprocess")), "FT645")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda text: "", "FT107"),
        (lambda text: "no JSON", "FT107"),
        (lambda text: "[1]", "FT107"),
        (lambda text: "[" * 100_000, "FT107"),
        (lambda text: text + " " * 2**20, "FT107"),
        (lambda text: "x" * 2**20, "FT107"),
        (lambda text: text.replace('"seed":', '"shell":"rm","seed":'), "FT101"),
        (lambda text: text.replace('"rank":4', '"rank":"4"'), "FT103"),
        (lambda text: text.replace('"rank":4', '"rank":NaN'), "FT103"),
        (lambda text: text.replace('"seed":0,', ""), "FT104"),
        (lambda text: text.replace('"name":"lungs-1"', '"name":"../../etc"'), "FT103"),
        (lambda text: text.replace('"name":"lungs-1"', '"name":"\\ud800"'), "FT107"),
        (lambda text: text.replace('"name":"lungs-1"', '"name":{"a":' + "9" * 3000 + "}"), "FT103"),
    ],
)
def test_a_configuration_that_is_none_is_refused(
    site: AskedSite, change: Callable[[str], str], code: str
) -> None:
    text = config_to_json(site.config())
    refused(site, site.ask(config=change(text)), code)
    assert not site.folder.approvals.exists()
    assert body_of(site.ask())["kind"] == "hello"


def test_rows_and_folders_that_a_coordinator_names_are_not_looked_at(site: AskedSite) -> None:
    config = site.config()
    data = dataclasses.replace(config.data, source="files", files=("/etc/passwd",))
    asked = site.ask(config=dataclasses.replace(config, data=data))
    refused(site, asked, "FT105")
    assert body_of(site.ask("train", site.config("runs_dir=/proc/nowhere")))["kind"] == "train"


# The policy


@pytest.mark.parametrize(
    ("limits", "overrides", "reason"),
    [
        ({"peft__max_rank": 4}, ["peft.rank=5"], "peft.rank"),
        ({"limits__steps_per_round": 2}, ["training.steps_per_round=3"], "steps"),
        ({"limits__tokens_per_round": 2 * 4 * 96}, ["training.examples_per_step=5"], "tokens"),
        ({"limits__seconds_per_round": 60}, ["federation.round_timeout_seconds=61"], "seconds"),
        ({"limits__memory_mib": 1}, [], "memory"),
        ({"metrics": ["examples"]}, [], "metrics"),
        ({"secure_aggregation__required": True}, [], "secure_aggregation"),
        ({"secure_aggregation__k_min": 6}, ["secagg=on", "secagg.k_min=5"], "k_min"),
        ({"hours": {"start": "20:00", "end": "06:00"}}, [], "hours"),
        ({"base_models": ["b" * 64]}, [], "base_model"),
        ({"coordinators": {"lungs": "-".join(["abcd"] * 8)}}, [], "coordinator"),
    ],
)
@pytest.mark.parametrize("kind", ["query.hello", "train"])
def test_what_the_policy_does_not_allow_is_refused_by_reason_codes_alone(
    site: AskedSite, limits: dict[str, Any], overrides: list[str], reason: str, kind: str
) -> None:
    site.allow(**limits)
    site.start()
    said = refused(site, site.ask(kind, site.config(*overrides)), "FT640", reason)
    assert said == f"the site's policy refuses this: {reason}"
    assert site.state.snapshot().refused[reason] == 1


def test_a_larger_model_under_the_same_name_is_refused_before_it_is_loaded(
    site: AskedSite, tmp_path: Path
) -> None:
    larger = make_tiny_model(tmp_path / "larger", intermediate_size=256)
    settings = site.folder.settings
    settings.write_text(settings.read_text(encoding="utf-8").replace(str(site.model), str(larger)))
    site.start()
    refused(site, site.ask(), "FT640", "base_model")
    assert not site.state.snapshot().model_loaded


def test_a_model_that_client_yaml_does_not_name_is_not_looked_for(site: AskedSite) -> None:
    config = site.config()
    for name in (str(site.model), "HuggingFaceTB/SmolLM2-135M", "/etc"):
        asked = dataclasses.replace(config, model=dataclasses.replace(config.model, name=name))
        assert name in refused(site, site.ask(config=asked), "FT644")


def test_a_trip_of_a_secure_sum_is_held_to_the_policy_but_for_the_time_of_day(site: AskedSite) -> None:
    asked = site.config("secagg=on", "secagg.k_min=3", "training.steps_per_round=3")
    site.allow(limits__steps_per_round=2, hours={"start": "20:00", "end": "06:00"}, limits__rounds_per_day=0)
    site.start()
    refused(site, site.ask("query.secagg", asked), "FT640", "steps")
    site.allow(limits__steps_per_round=3)
    site.start()
    assert body_of(site.ask("query.secagg", asked))["code"] == "FT918"  # nothing but the roster is missing


def test_the_hours_pass(site: AskedSite) -> None:
    site.allow(hours={"start": "20:00", "end": "06:00"}, timezone="Etc/UTC")
    site.start()
    refused(site, site.ask(), "FT640", "hours")
    site.now = site.now.replace(hour=20)
    assert body_of(site.ask())["kind"] == "hello"


def test_the_limits_of_a_day_outlive_the_process_and_end_with_the_day(site: AskedSite) -> None:
    site.allow(limits__rounds_per_day=2, limits__evaluations_per_day=1)
    site.start()
    assert body_of(site.ask("train"))["kind"] == "train"
    assert body_of(site.ask("evaluate"))["kind"] == "evaluate"
    site.start()
    assert body_of(site.ask("train"))["kind"] == "train"
    for _ in range(2):
        site.start()
        refused(site, site.ask("train"), "FT640", "rounds")
        refused(site, site.ask("evaluate"), "FT640", "evaluations")
    site.now = site.now.replace(day=23)
    assert body_of(site.ask("train"))["kind"] == "train"


def test_a_round_that_failed_counts_for_the_day_as_one_that_did_not(site: AskedSite) -> None:
    site.allow(limits__rounds_per_day=1)
    site.start()
    assert body_of(site.train_with(ArrayRecord({})))["code"] == "FT501"
    assert body_of(site.ask("train"))["reason"].endswith("rounds")


def test_a_configuration_has_the_same_memory_at_every_call(site: AskedSite) -> None:
    one, two = (federation_config(site.model, f"peft.rank={rank}") for rank in (4, 8))
    site.ask("train")
    found = [
        site.desk._admission._memory_mib(config, str(number)) for number, config in enumerate((one, two, one))
    ]
    assert found[0] == found[2]


# The operator


def test_a_run_waits_until_it_is_approved_and_begins_then(site: AskedSite) -> None:
    site.allow(preapproved=[])
    site.start()
    for _ in range(2):
        refused(site, site.ask("train"), "FT642")
    (pending,) = site.desk._admission._approvals.waiting()
    assert pending.subject.run == "lungs-1"
    assert any("2 steps of 4 rows" in line for line in pending.summary)
    site.desk._admission._approvals.approve(pending.subject, operator="me")
    assert body_of(site.ask("train"))["kind"] == "train"
    assert site.desk._admission._approvals.waiting() == []
    site.start()
    assert body_of(site.ask("train"))["kind"] == "train"


def test_a_run_waits_again_when_its_configuration_bundle_or_base_model_changes(
    site: AskedSite, tmp_path: Path
) -> None:
    site.allow(preapproved=[], bundles=["installed", OTHER_BUNDLE])
    site.start()
    site.ask()
    (pending,) = site.desk._admission._approvals.waiting()
    site.desk._admission._approvals.approve(pending.subject, operator="me")
    refused(site, site.ask(config=site.config("training.learning_rate=0.02")), "FT642")
    refused(site, site.ask(bundle=OTHER_BUNDLE), "FT642")
    larger = make_tiny_model(tmp_path / "larger", seed=1)
    settings = site.folder.settings
    settings.write_text(settings.read_text(encoding="utf-8").replace(str(site.model), str(larger)))
    own = dataclasses.replace(site.config().model, name=str(larger))
    site.allow(base_models=[pending.subject.base_model, base_hash(own)])
    site.start()
    refused(site, site.ask(), "FT642")
    assert len(site.desk._admission._approvals.waiting()) == 3


def test_a_configuration_that_the_policy_names_need_not_wait(site: AskedSite) -> None:
    config = site.config()
    site.allow(preapproved=[admission_module.config_hash(config)])
    site.start()
    assert body_of(site.ask(config=config))["kind"] == "hello"
    refused(site, site.ask(config=site.config("seed=1")), "FT642")


def test_what_the_policy_refuses_does_not_wait(site: AskedSite) -> None:
    site.allow(preapproved=[], peft__max_rank=1)
    site.start()
    refused(site, site.ask(), "FT640", "peft.rank")
    assert site.desk._admission._approvals.waiting() == []


@pytest.mark.parametrize(("state", "word"), [("paused", "has paused"), ("left", "has left")])
def test_a_site_that_paused_or_left_does_nothing(site: AskedSite, state: Any, word: str) -> None:
    write_standing(site.folder.standing, state, operator="me", reason="a secret reason")
    for kind in ("query.hello", "train", "query.secagg", "evaluate"):
        said = refused(site, site.ask(kind), "FT641")
        assert word in said
        assert "secret" not in said
    write_standing(site.folder.standing, "open", operator="me", reason="")
    assert body_of(site.ask())["kind"] == "hello"


def test_a_damaged_record_of_the_operators_word_stops_everything(site: AskedSite) -> None:
    site.folder.standing.parent.mkdir(exist_ok=True)
    site.folder.standing.write_text("{")
    said = refused(site, site.ask("train"), "FT684")
    assert str(site.root) not in said


@pytest.mark.parametrize("how", ["paused", "left", "stopping"])
def test_a_training_ends_with_the_next_step_after_the_operators_word(
    site: AskedSite, how: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 0
    before = site.desk._site.on_step

    def on_step(*seen: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == 2 and how == "stopping":
            site.desk.stopping = lambda: True
        elif steps == 2:
            write_standing(site.folder.standing, how, operator="me", reason="")
        before(*seen)

    site.desk._site.on_step = on_step
    reply = site.ask("train", site.config("training.steps_per_round=9"))
    assert body_of(reply)["code"] == "FT641"
    assert steps == 2
    assert site.lines("left")[-1]["details"]["message"] == "train: FT641"
    assert site.lines("left")[-1]["details"]["tensors"] == []


@pytest.mark.parametrize("how", ["paused", "left", "stopping"])
def test_an_evaluation_ends_before_the_next_rows_after_the_operators_word(site: AskedSite, how: Any) -> None:
    seen = 0
    before = site.desk._site.on_microbatch

    def on_microbatch() -> None:
        nonlocal seen
        seen += 1
        if seen == 2 and how == "stopping":
            site.desk.stopping = lambda: True
        elif seen == 2:
            write_standing(site.folder.standing, how, operator="me", reason="")
        before()

    site.desk._site.on_microbatch = on_microbatch
    reply = site.ask("evaluate", site.config("evaluation.microbatch_tokens=96", "data.held_out_fraction=0.5"))
    assert body_of(reply)["code"] == "FT641"
    assert seen == 2
    snapshot = site.state.snapshot()
    assert (snapshot.rounds_trained, snapshot.last_error) == (0, None)
    assert not list(site.folder.runs.rglob("*.json"))


# Arrays and records from outside


def arrays_with(site: AskedSite, change: Callable[[np.ndarray[Any, Any]], Array]) -> ArrayRecord:
    arrays = to_arrays(site.adapter(site.config()))
    name = next(iter(arrays))
    arrays[name] = change(arrays[name].numpy())
    return arrays


def claims_two_gib(values: np.ndarray[Any, Any]) -> Array:
    header = Array(values).data[:10] + b"{'descr': '<f4', 'fortran_order': False, 'shape': (536870912,), }\n"
    return Array(dtype="float32", shape=(2**29,), stype="numpy.ndarray", data=header)


class Shell:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned",)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda values: Array(values * np.float32("nan")), "FT504"),
        (lambda values: Array(values + np.float32("inf")), "FT504"),
        (lambda values: Array(values[:1]), "FT502"),
        (lambda values: Array(values.T.copy()), "FT502"),
        (lambda values: Array(values.astype(np.float64)), "FT503"),
        (claims_two_gib, "FT502"),
        (
            lambda values: Array(dtype="object", shape=(), stype="numpy.ndarray", data=pickle.dumps(Shell())),
            "FT503",
        ),
        (lambda values: Array(dtype="float32", shape=(4, 64), stype="pickle", data=b"x"), "FT505"),
    ],
)
def test_arrays_that_are_not_the_adapter_are_refused_and_nothing_is_trained(
    site: AskedSite,
    change: Callable[[np.ndarray[Any, Any]], Array],
    code: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    body = body_of(site.train_with(arrays_with(site, change)))
    assert body["code"] == code
    assert not (tmp_path / "pwned").exists()
    assert site.lines("left")[-1]["details"]["message"] == f"train: {body['code']}"
    assert body_of(site.ask("train"))["kind"] == "train"


@pytest.mark.parametrize(
    "records",
    [
        RecordDict(),
        RecordDict({RECORD: ConfigRecord({"json": '{"kind": "shell"}'})}),
        RecordDict({RECORD: ConfigRecord({"json": "[" * 100_000})}),
        RecordDict({RECORD: ConfigRecord({"json": '{"round": 1' + "0" * 400 + "}"})}),
        RecordDict({RECORD: ConfigRecord({"json": '{"round": -5}'})}),
        RecordDict({RECORD: ConfigRecord({"json": "x" * 2**20})}),
        RecordDict({RECORD: ConfigRecord({"json": pickle.dumps(Shell())})}),
        RecordDict({RECORD: ConfigRecord({"json": 4})}),
        RecordDict({RECORD: MetricRecord({"json": 4})}),
        RecordDict({RECORD: ArrayRecord({"json": Array(np.zeros(3, np.float32))})}),
        RecordDict({ARRAYS: ConfigRecord({"json": "{}"})}),
    ],
)
@pytest.mark.parametrize("kind", ["query.hello", "train", "evaluate"])
def test_a_record_that_is_no_request_is_refused(site: AskedSite, records: RecordDict, kind: str) -> None:
    assert body_of(site.ask(kind, records=records))["code"] == "FT520"
    assert site.lines()[-1]["event"] == "left"


def test_a_run_whose_name_is_no_text_for_a_log_is_written_down_all_the_same(site: AskedSite) -> None:
    refused(site, site.ask(config=json.dumps({"name": "\ud800\x1b[2J" * 5000})), "FT107")
    assert len(site.lines("refused")[0]["details"]["run"]) <= 512


# What may not leave


def texts_of(site: AskedSite) -> tuple[str, ...]:
    return (CANARY, str(site.root), str(site.model), "private-rows", "Define finding")


def trace_in(data: bytes, texts: tuple[str, ...]) -> list[str]:
    return [text for text in texts for mark in forms(text).values() if mark in data]


def wire_bytes(reply: Message) -> bytes:
    data = json.dumps(body_of(reply)).encode()
    for record in reply.content.values():
        if isinstance(record, ArrayRecord):
            data += b"".join(name.encode() + array.data for name, array in record.items())
    return data


def spoil_rows(site: AskedSite) -> None:
    (site.root / "private-rows.jsonl").write_text(json.dumps({"instruction": CANARY}) + "\n" + CANARY)


def remove_rows(site: AskedSite) -> None:
    (site.root / "private-rows.jsonl").unlink()


def spoil_model(site: AskedSite) -> None:
    folder = make_tiny_model(site.root / "spoilt")
    (folder / "tokenizer.json").write_text("{")
    settings = site.folder.settings
    settings.write_text(settings.read_text(encoding="utf-8").replace(str(site.model), str(folder)))


def remove_model(site: AskedSite) -> None:
    settings = site.folder.settings
    settings.write_text(settings.read_text().replace(str(site.model), str(site.root / "no-such-model")))


def spoil_moments(site: AskedSite) -> None:
    folder = site.folder.of_run("lungs-1")
    folder.mkdir(parents=True)
    OptimizerMemory(folder, "ear").keep(1, {})
    (path,) = (folder / "ear.moments").iterdir()
    path.write_bytes(b"no tensors")


def spoil_position(site: AskedSite) -> None:
    folder = site.folder.of_run("lungs-1")
    folder.mkdir(parents=True)
    (folder / "ear.json").write_text("{")


def lock_state(site: AskedSite) -> None:
    site.folder.runs.parent.mkdir(exist_ok=True)
    site.folder.runs.write_text("no folder")


def nothing(_: AskedSite) -> None:
    pass


@pytest.mark.parametrize(
    "spoil",
    [nothing, spoil_rows, remove_rows, spoil_model, remove_model, spoil_moments, spoil_position, lock_state],
)
def test_no_word_of_a_row_and_no_path_is_in_an_answer_a_log_line_or_the_audit_log(
    site: AskedSite, spoil: Callable[[AskedSite], None], tmp_path: Path
) -> None:
    spoil(site)
    site.start()
    config = site.config("training.keep_optimizer_state=true")
    with log_to(tmp_path / "log", "client"):
        replies = [site.ask(kind, config, round_number=2) for kind in ("query.hello", "train", "evaluate")]
    kinds = {body_of(reply)["kind"] for reply in replies}
    assert ("failure" in kinds) == (spoil is not nothing)
    for reply in replies:
        assert trace_in(wire_bytes(reply), texts_of(site)) == []
    assert trace_in(site.folder.audit_log.read_bytes(), texts_of(site)) == []
    log = (tmp_path / "log" / "client.jsonl").read_bytes() if (tmp_path / "log").exists() else b""
    assert trace_in(log, (CANARY, "Define finding")) == []


def test_where_the_audit_log_cannot_be_written_there_is_no_answer(
    site: AskedSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, full = os.write, False

    def write(file: int, data: Any) -> int:
        if full and os.path.samestat(os.fstat(file), site.folder.audit_log.stat()):
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(file, data)

    before = site.desk._site.on_step

    def on_step(*seen: Any) -> None:
        nonlocal full
        full = True
        before(*seen)

    site.ask()
    monkeypatch.setattr(os, "write", write)
    site.desk._site.on_step = on_step
    with pytest.raises(MachineError, match="FT830"):
        site.ask("train")
    for kind in ("query.hello", "train", "query.shell"):
        with pytest.raises(MachineError, match="FT830"):
            site.ask(kind)
    full = False
    site.desk._site.on_step = before
    assert body_of(site.ask("train"))["kind"] == "train"
    assert [line["event"] for line in site.lines()] == ["asked", "left", "asked", "asked", "left"]


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="a tmpfs takes root on Linux")
def test_on_a_disk_that_is_full_nothing_leaves_and_the_chain_verifies(
    tmp_path: Path, tiny_model_dir: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("this machine mounts no tmpfs")
    try:
        site = AskedSite(root=disk, model=tiny_model_dir)
        answered = 0

        def ask_on() -> None:
            nonlocal answered
            while answered < 1000:
                assert body_of(site.ask("query.hello"))["kind"] == "hello"
                answered += 1

        with pytest.raises(FedtuneError) as caught:
            ask_on()
        assert caught.value.problems[0].code == "FT830"
        assert len(site.lines("left")) == answered
        assert len(site.lines("asked")) in (answered, answered + 1)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# Numbers that leave


@pytest.mark.parametrize("reply", [HelloReply, TrainReply, EvaluateReply])
def test_every_field_that_may_be_null_tells_a_metric(reply: type) -> None:
    hints = typing.get_type_hints(reply)
    nullable = {name for name, hint in hints.items() if types.NoneType in typing.get_args(hint)}
    assert nullable == {name for name in hints if name in METRIC_OF_FIELD}
    assert nullable


def test_numbers_that_leave_are_told_in_the_order_of_the_policy() -> None:
    assert told_metrics({"loss": 1.0, "examples": 3, "tokens": None, "other": 4}) == (
        "examples",
        "held_out_loss",
    )
    assert told_metrics({"loss_after": 0.0, "skipped_rows": 0}) == ("examples", "train_loss")
    assert told_metrics({}) == ()
