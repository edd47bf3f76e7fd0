"""What a preflight's answers mean, the table of them, and the order that the server is given."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from support.site_folder import federation_config

from fedtune.commands.preflight_advice import readiness
from fedtune.commands.preflight_view import print_preflight
from fedtune.config.wire import config_hash
from fedtune.coordinator.dry_config import dry_config
from fedtune.coordinator.wanted import PreflightOrder, WantedRuns
from fedtune.errors import RunError
from fedtune.observability.events import DryRound, DrySite, Preflight, SiteCheckResult, SiteReadiness
from fedtune.observability.summary import summarise

READY = SiteReadiness(
    name="ear",
    connected=True,
    code=None,
    reason=None,
    version="0.1.0",
    flwr="1.41.0",
    python="3.11.2",
    torch="2.13.0",
    approval="approved",
    checks=(SiteCheckResult(name="data", status="ok", code=None),),
    checks_age_seconds=0.0,
    days_left=300,
)
DRY = DrySite(name="ear", stage=None, code=None, reason=None, seconds=1.5)


def asked(*sites: SiteReadiness) -> Preflight:
    return Preflight(
        run="pilot",
        version="0.1.0",
        flwr="1.41.0",
        python="3.11.2",
        torch="2.13.0",
        seconds=2.0,
        sites=sites,
    )


def tried(*sites: DrySite, code: str | None = None, reason: str | None = None) -> DryRound:
    return DryRound(
        finished=code is None,
        code=code,
        reason=reason,
        seconds=12.0,
        uplink_bytes=4_000_000,
        downlink_bytes=5_000_000,
        sites=sites,
    )


def printed(found: Preflight, dry: DryRound | None, *, named: bool = True) -> str:
    text = io.StringIO()
    console = Console(file=text, width=200)
    print_preflight(readiness(found, dry), found, dry, named=named, console=console)
    return text.getvalue()


def test_a_federation_without_a_problem_is_ready_with_and_without_a_dry_round() -> None:
    for dry in (None, tried(DRY)):
        found = readiness(asked(READY), dry)
        assert found.ready
        assert found.advice == ()
    text = printed(asked(READY), tried(DRY))
    assert "1 of 1 sites are ready for pilot" in text
    assert "ok, 1.5 s" in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"connected": False, "code": "FT612", "reason": "away"}, "fedtune client start FOLDER"),
        ({"code": "FT641", "reason": "the site has paused"}, "fedtune client resume FOLDER"),
        ({"code": "FT601", "reason": "versions"}, "its IT lead installs"),
        ({"code": "FT645", "reason": "unknown"}, "older than preflights"),
        ({"code": "FT640", "reason": "coordinator"}, "under coordinators in site.yaml"),
        ({"code": "FT999", "reason": "new"}, "its own log"),
        ({"train_refused": ("k_min",)}, "refuse to train (k_min: a sum may be made of too few sites)"),
        ({"evaluate_refused": ("evaluations",)}, "refuse to evaluate (evaluations"),
        ({"train_refused": ("hours",), "evaluate_refused": ("hours",)}, "train and evaluate (hours"),
        ({"train_refused": ("to_come",)}, "a rule that this fedtune does not know"),
        ({"approval": "waits"}, "fedtune client approve FOLDER pilot"),
        (
            {"checks": (SiteCheckResult(name="data", status="failed", code="FT855"),)},
            "check of data failed (FT855); its operator runs `fedtune client doctor FOLDER`",
        ),
    ],
)
def test_what_keeps_a_site_from_being_ready_is_said_with_who_mends_it(
    changes: dict[str, Any], words: str
) -> None:
    found = readiness(asked(replace(READY, **changes), replace(READY, name="eye")), None)
    assert not found.ready
    assert found.blocked == ("ear",)
    (advice,) = found.advice
    assert advice.site == "ear"
    assert advice.blocks
    assert words in advice.text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"torch": "2.12.0"}, "torch is 2.12.0 there and 2.13.0 here"),
        ({"checks": (SiteCheckResult(name="disks", status="warning", code=None),)}, "disks has a remark"),
        ({"days_left": 12}, "ends in 12 days"),
        ({"days_left": -1}, "has ended"),
    ],
)
def test_what_is_only_worth_knowing_is_noted_and_blocks_nothing(changes: dict[str, Any], words: str) -> None:
    found = readiness(asked(replace(READY, **changes)), None)
    assert found.ready
    (advice,) = found.advice
    assert not advice.blocks
    assert words in advice.text


def test_a_failure_in_the_dry_round_blocks_its_site_and_no_round_blocks_the_run() -> None:
    failed = replace(DRY, stage="hello", code="FT642", reason="it waits", seconds=None)
    found = readiness(asked(READY), tried(failed))
    assert found.blocked == ("ear",)
    assert "fedtune client approve FOLDER" in found.advice[0].text
    none = readiness(asked(READY), tried(DRY, code="FT604", reason="1 sites have answered, 3 are required"))
    assert not none.ready
    assert none.blocked == ()
    assert not readiness(asked(), None).ready


def test_the_table_shows_each_site_with_what_is_wrong_and_marks_another_version() -> None:
    away = SiteReadiness(name="skin", connected=False, code="FT612", reason="it was not connected")
    other = replace(READY, name="eye", torch="2.12.0", train_refused=("k_min",), checks_age_seconds=30.0)
    text = printed(asked(READY, other, away), tried(DRY, replace(DRY, name="eye", code="FT401")), named=False)
    for words in ("torch 2.12.0*", "refuses: k_min", "FT612", "FAILED FT401", "30", "without name=…"):
        assert words in text
    assert "1 of 3 sites are ready" in text


def test_control_characters_of_a_site_do_not_reach_the_terminal() -> None:
    text = printed(asked(replace(READY, code="FT605", reason="\x1b[2Jgone")), None)
    assert "\x1b[2J" not in text


def test_an_order_is_read_as_it_was_written_and_damage_is_an_error(tmp_path: Path) -> None:
    config = federation_config(Path("tiny"))
    order = PreflightOrder(config=config, to_be_approved=True, dry_round=False, timeout_seconds=12.5)
    wanted = WantedRuns(tmp_path)
    dry = dry_config(config, name="preflight-1", timeout_seconds=12.5)
    wanted.add(dry, order)
    assert wanted.preflight("preflight-1") == order
    assert wanted.preflight("another") is None
    (path,) = tmp_path.glob("*.json")
    path.write_text(path.read_text().replace('"timeout_seconds"', '"time"'))
    with pytest.raises(RunError, match="FT666"):
        wanted.preflight("preflight-1")


def test_a_run_that_is_none_has_no_order(tmp_path: Path) -> None:
    WantedRuns(tmp_path).add(federation_config(Path("tiny")))
    assert WantedRuns(tmp_path).preflight("lungs-1") is None


@pytest.mark.parametrize(("secagg", "least"), [("off", 1), ("on", 3)])
def test_a_dry_round_is_one_step_with_a_seed_of_its_own_and_the_fewest_sites(secagg: str, least: int) -> None:
    config = federation_config(Path("tiny"), f"secagg={secagg}", "secagg.k_min=3", "federation.rounds=9")
    first, second = (dry_config(config, name=f"preflight-{n}", timeout_seconds=60.0) for n in (1, 2))
    assert (first.federation.rounds, first.training.steps_per_round) == (1, 1)
    assert first.federation.min_replies == least
    assert len({config.seed, first.seed, second.seed}) == 3
    same = replace(
        first,
        name=config.name,
        seed=config.seed,
        training=config.training,
        federation=config.federation,
    )
    assert config_hash(same) == config_hash(config)


def test_the_log_of_a_preflight_can_be_summed_up() -> None:
    summary = summarise([asked(READY), tried(DRY)])
    assert summary["rounds"] == 0
