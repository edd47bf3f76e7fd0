"""A preflight of four sites in four states, by fedtune's own commands, over TLS on loopback."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.canary import assert_no_trace
from support.cli_federation import CANARY, CliFederation, edit, tiny_run

from fedtune.cli import main
from fedtune.observability.events import DryRound, Preflight
from fedtune.secagg.identity import Identity
from fedtune.site.approvals import Approvals
from fedtune.site.audit import verify_audit

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

RUN = [
    "name=pilot",
    "secagg=off",
    "federation.metrics=[examples,held_out_loss]",
    *tiny_run(federation__join_timeout_seconds=25),
]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[CliFederation]:
    """``ear`` is ready but for its approval, ``eye`` has a broken row, ``heart`` allows a smaller rank alone,
    and ``skin`` is away."""
    path = tmp_path_factory.mktemp("cli") / "federation"
    path.mkdir(parents=True)
    federation = CliFederation(path=path)
    federation.make(tiny_model_dir)
    edit(federation.sites["ear"].policy, "preapproved: [any]", "preapproved: []")
    edit(federation.sites["heart"].policy, "max_rank: 16", "max_rank: 2")
    with (federation.rows / "eye.jsonl").open("a", encoding="utf-8") as file:
        file.write(f'{{"instruction": "{CANARY}", "output":\n')
    try:
        federation.start_server()
        for name in ("ear", "eye", "heart"):
            federation.start_site(name)
        federation.wait("the start", lambda: _connected(federation) == {"ear", "eye", "heart"}, seconds=180)
        yield federation
    finally:
        federation.stop()


def _connected(federation: CliFederation) -> set[str]:
    federation.require_alive()
    if not federation.coordinator.status.exists():
        return set()
    return {site.site for site in federation.status().sites if site.online}


def preflight(federation: CliFederation, *arguments: str) -> tuple[int, dict[str, Any], str]:
    command = [sys.executable, "-m", "fedtune", "server", "preflight", str(federation.coordinator.path)]
    done = subprocess.run(
        [*command, *arguments, "--json"], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout, f"{done.stderr}\n{federation.logs()}"
    found: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, found, done.stderr


def test_before_any_approval_each_site_is_told_with_its_own_reason(federation: CliFederation) -> None:
    code, found, _ = preflight(federation, *RUN, "--no-dry-round")
    assert code == 7
    assert found["dry_round"] is None
    sites = {site["name"]: site for site in found["sites"]}
    assert list(sites) == ["ear", "eye", "heart", "skin"]
    assert (sites["skin"]["connected"], sites["skin"]["code"]) == (False, "FT612")
    assert {name: site["approval"] for name, site in sites.items()} == {
        "ear": "waits",
        "eye": "approved",
        "heart": "approved",
        "skin": None,
    }
    assert sites["heart"]["train_refused"] == sites["heart"]["evaluate_refused"] == ["peft.rank"]
    assert sites["ear"]["train_refused"] == sites["eye"]["train_refused"] == []
    failed = {
        name: {(check["name"], check["code"]) for check in site["checks"] if check["status"] == "failed"}
        for name, site in sites.items()
    }
    assert failed == {"ear": set(), "eye": {("data", "FT855")}, "heart": set(), "skin": set()}
    assert sites["ear"]["version"] == found["version"]
    assert sites["ear"]["days_left"] > 300
    blocking = {each["site"] for each in found["advice"] if each["blocks"]}
    assert blocking == {"ear", "eye", "heart", "skin"}


def test_the_run_can_be_approved_before_it_begins_and_a_dry_round_says_who_takes_part(
    federation: CliFederation,
) -> None:
    ear = federation.sites["ear"]
    assert main(["client", "approve", str(ear.path), "pilot"]) == 0
    ended = threading.Event()

    def approve_the_dry_round() -> None:
        approvals = Approvals(ear.approvals, ear.pending)
        while not ended.wait(0.2):
            for waiting in approvals.waiting():
                approvals.approve(waiting.subject, operator="test")

    operator = threading.Thread(target=approve_the_dry_round)
    operator.start()
    try:
        code, found, _ = preflight(federation, *RUN)
    finally:
        ended.set()
        operator.join()
    assert code == 7
    assert "ear" not in {each["site"] for each in found["advice"] if each["blocks"]}
    dry = found["dry_round"]
    assert dry["finished"]
    assert dry["uplink_bytes"] > 0 < dry["downlink_bytes"]
    tried = {site["name"]: site for site in dry["sites"]}
    assert tried["ear"]["code"] is None
    assert tried["ear"]["seconds"] > 0
    assert (tried["heart"]["stage"], tried["heart"]["code"]) == ("hello", "FT640")
    assert tried["eye"]["code"].startswith("FT2")
    assert "skin" not in tried
    kinds = [type(event) for event in federation.events(found["preflight"])]
    assert kinds.count(Preflight) == kinds.count(DryRound) == 1


def test_what_was_asked_and_told_is_in_every_audit_log_and_no_word_of_a_row_is_anywhere(
    federation: CliFederation,
) -> None:
    for name in ("ear", "eye", "heart"):
        site = federation.sites[name]
        assert verify_audit(site.audit_log, Identity.load(site.audit_key).public).intact
        lines = [json.loads(line) for line in site.audit_log.read_bytes().splitlines()]
        told = [line for line in lines if line["details"].get("message") == "query.preflight"]
        assert [line["event"] for line in told] == ["asked", "left"] * 2
    assert_no_trace(federation.path, CANARY)
