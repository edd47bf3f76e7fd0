"""A server and four sites, made and run by fedtune's own commands, over TLS on loopback."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.canary import assert_no_trace
from support.cli_federation import CANARY, CliFederation, tiny_run
from support.outcomes import last_adapter, simulated

from fedtune.cli import main
from fedtune.config.compose import compose
from fedtune.federation.secure import round_encoding
from fedtune.models.adapted import adapter_spec
from fedtune.observability.events import ClientFailed, RoundAggregated, SecureSum
from fedtune.secagg.files import read_roster
from fedtune.secagg.identity import Identity
from fedtune.site.audit import verify_audit

pytestmark = pytest.mark.e2e

EVERYBODY = ("ear", "eye", "heart", "skin")


def audit_lines(federation: CliFederation, site: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in federation.sites[site].audit_log.read_bytes().splitlines()]


def test_a_plain_run_gives_the_adapter_of_a_simulation_bit_for_bit(
    federation: CliFederation, tiny_model_dir: Path, tmp_path: Path
) -> None:
    metrics = "federation.metrics=[examples,held_out_loss]"
    summary = federation.run("name=plain", "secagg=off", metrics, *tiny_run())
    assert summary["status"] == "completed"
    deployed = last_adapter(federation.coordinator.runs / "plain", 2, tiny_model_dir)
    expected = simulated(federation, tmp_path, tiny_model_dir)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(deployed[name], tensor, strict=True)


def test_a_secure_run_gives_the_mean_within_the_encoders_bound(
    federation: CliFederation, tiny_model_dir: Path, tmp_path: Path
) -> None:
    federation.run("name=secure", *tiny_run(federation__rounds=1))
    (opened,) = (event for event in federation.events("secure") if isinstance(event, SecureSum))
    assert opened.opened
    assert opened.clients == EVERYBODY
    secure = last_adapter(federation.coordinator.runs / "secure", 1, tiny_model_dir)
    one = ("federation.rounds=1", "aggregation.weighting=uniform")
    plain = simulated(federation, tmp_path, tiny_model_dir, *one)
    config = compose([*tiny_run(model__name=tiny_model_dir), "name=x", "secagg=on", "backend=deployment"])
    spec = adapter_spec(config.model, config.peft)
    encoding = round_encoding(config, spec, ("A", "B"), read_roster(federation.coordinator.roster))
    for tensor in encoding.tensors:
        bound = encoding.error_bound(tensor, count=4, total_weight=4)
        rounding = np.finfo(np.float32).eps * float(np.abs(plain[tensor.name]).max())
        assert float(np.abs(secure[tensor.name] - plain[tensor.name]).max()) <= bound + rounding


def test_one_process_with_one_base_model_serves_a_site_over_all_runs(federation: CliFederation) -> None:
    for site in EVERYBODY:
        lines = audit_lines(federation, site)
        assert sum(line["event"] == "started" for line in lines) == 1
        answered = [line for line in lines if line["event"] == "left"]
        assert len(answered) > 10
        log = (federation.sites[site].logs / "client.jsonl").read_text(encoding="utf-8")
        assert log.count("the base model is loaded") == 1


def test_a_paused_site_is_named_and_the_others_go_on(federation: CliFederation) -> None:
    skin = str(federation.sites["skin"].path)
    assert main(["client", "pause", skin, "--reason", "maintenance"]) == 0
    try:
        # Another seed: no site opens the same update twice, and this run would ask for one that was opened.
        quick = tiny_run(
            seed=1, federation__min_replies=3, federation__rounds=1, federation__join_timeout_seconds=10
        )
        summary = federation.run("name=paused", *quick)
    finally:
        assert main(["client", "resume", skin]) == 0
    assert summary["status"] == "completed"
    events = federation.events("paused")
    assert {(each.client, each.code) for each in events if isinstance(each, ClientFailed)} == {
        ("skin", "FT641")
    }
    (aggregated,) = (event for event in events if isinstance(event, RoundAggregated))
    assert aggregated.clients == ("ear", "eye", "heart")


def test_the_audit_log_of_every_site_verifies(federation: CliFederation) -> None:
    for site in federation.sites.values():
        assert verify_audit(site.audit_log, Identity.load(site.audit_key).public).intact


def test_no_word_of_a_row_is_in_any_log_message_or_file(federation: CliFederation) -> None:
    assert_no_trace(federation.path, CANARY)
