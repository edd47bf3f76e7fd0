"""``fedtune client audit``: an operator sees what the log says, and whether it is as it was written."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedtune.commands.client_audit import run_audit
from fedtune.commands.client_audit_arguments import add_audit
from fedtune.errors import MachineError, SecureAggregationError
from fedtune.secagg.identity import Identity
from fedtune.site.audit import AuditLog
from fedtune.site.audit_events import (
    Event,
    HasLeft,
    OperatorActed,
    SentTensor,
    SiteStarted,
    SiteStopped,
    TailDropped,
    WasAsked,
    WasRefused,
)

Captured = pytest.CaptureFixture[str]
BUNDLE = "b5" * 32
EVENTS: tuple[Event, ...] = (
    SiteStarted(version="0.1.0", policy="a1" * 32),
    WasAsked(run="heart", round=None, message="query.hello", bundle=BUNDLE),
    OperatorActed(action="approve", subject="heart", operator="Dr. A", reason="ethics\x1b[2J vote"),
    WasAsked(run="heart", round=1, message="train", bundle=BUNDLE),
    HasLeft(
        run="heart",
        round=1,
        message="train",
        bytes=1024,
        tensors=(SentTensor.of("lora_A", np.ones((2, 3), np.float32)),),
        metrics=("held_out_loss",),
    ),
    HasLeft(run="heart", round=1, message="query.secagg", bytes=12, sealed="c6" * 32),
    WasRefused(run="heart", round=2, message="train", bundle=BUNDLE, code="FT640", reasons=("hours",)),
    TailDropped(bytes=12, sha256="d7" * 32),
    OperatorActed(action="pause", subject="site", operator="Dr. A"),
    SiteStopped(reason="asked to"),
)


@pytest.fixture
def site(tmp_path: Path) -> tuple[Path, list[bytes]]:
    """A site's folder, and the heads of its log."""
    key = Identity.generate()
    key.save(tmp_path / "audit.key")
    log = AuditLog(tmp_path / "audit.jsonl", key)
    return tmp_path, [bytes(32), *(log.append(event) for event in EVENTS)]


def audit(*arguments: str | Path) -> int:
    parser = argparse.ArgumentParser()
    add_audit(parser.add_subparsers())
    return run_audit(parser.parse_args(["audit", *map(str, arguments)]))


def checked(capsys: Captured, *arguments: str | Path, exit_code: int = 0) -> dict[str, Any]:
    assert audit("verify", *arguments, "--json") == exit_code
    out, err = capsys.readouterr()
    found: dict[str, Any] = json.loads(out)
    assert bool(err) == (found["problem"] is not None)
    return found


def test_a_log_as_it_was_written_is_intact(site: tuple[Path, list[bytes]], capsys: Captured) -> None:
    folder, heads = site
    lines = [json.loads(line) for line in (folder / "audit.jsonl").read_text().splitlines()]
    assert checked(capsys, folder) == {
        "log": str(folder / "audit.jsonl"),
        "intact": True,
        "lines": len(EVENTS),
        "head": heads[-1].hex(),
        "first_time": lines[0]["time"],
        "last_time": lines[-1]["time"],
        "expected_line": None,
        "bad_line": None,
        "problem": None,
    }
    assert checked(capsys, folder, "--head", heads[3].hex())["expected_line"] == 3
    assert audit("verify", folder) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert f"{folder / 'audit.jsonl'}: intact" in err
    assert "A cut at the end does not show" in err
    assert heads[-1].hex() in err
    assert audit("verify", folder, "--head", heads[4].hex().upper()) == 0
    assert "is that of line 4" in capsys.readouterr().err


def test_an_edit_is_named_by_its_line_and_by_the_exit_code(
    site: tuple[Path, list[bytes]], capsys: Captured
) -> None:
    path = site[0] / "audit.jsonl"
    path.write_bytes(path.read_bytes().replace(b"ethics", b"ethicz"))
    found = checked(capsys, site[0], exit_code=MachineError.exit_code)
    assert (found["intact"], found["lines"], found["bad_line"]) == (False, 2, 3)
    assert found["problem"]["code"] == "FT831"
    assert audit("verify", site[0]) == 9
    err = capsys.readouterr().err
    assert "line 3 is wrong or missing" in err
    assert "FT831: line 3 was not signed by this key as it stands" in err


def test_a_cut_is_found_by_a_head_that_was_seen_elsewhere(
    site: tuple[Path, list[bytes]], capsys: Captured
) -> None:
    folder, heads = site
    path = folder / "audit.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:4]))
    assert checked(capsys, folder)["intact"], "by itself it does not show"
    found = checked(capsys, folder, "--head", heads[7].hex(), exit_code=9)
    assert (found["problem"]["code"], found["bad_line"]) == ("FT832", 5)


def test_a_log_that_is_not_there_is_a_finding(site: tuple[Path, list[bytes]], capsys: Captured) -> None:
    (site[0] / "audit.jsonl").unlink()
    found = checked(capsys, site[0], exit_code=9)
    assert (found["problem"]["code"], found["first_time"]) == ("FT830", None)
    with pytest.raises(MachineError) as caught:
        audit("show", site[0])
    assert caught.value.problems[0].code == "FT830"


def test_without_its_key_nothing_is_checked(site: tuple[Path, list[bytes]]) -> None:
    (site[0] / "audit.key").chmod(0o644)
    with pytest.raises(SecureAggregationError, match="FT928"):
        audit("verify", site[0])


@pytest.mark.parametrize("head", ["", "ab", "zz" * 32, "ab" * 33])
def test_what_is_no_head_is_refused(site: tuple[Path, list[bytes]], head: str, capsys: Captured) -> None:
    with pytest.raises(SystemExit, match="2"):
        audit("verify", site[0], "--head", head)
    assert "is no head: 64 hexadecimal digits" in capsys.readouterr().err


def test_the_table_has_a_line_for_each_event_and_nothing_that_moves_the_cursor(
    site: tuple[Path, list[bytes]], capsys: Captured
) -> None:
    assert audit("show", site[0]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    *rows, last = err.splitlines()
    assert (
        last == f"10 lines of {site[0] / 'audit.jsonl'}, not checked: fedtune client audit verify does that"
    )
    assert [" ".join(row.split()[2:]) for row in rows] == [
        "started fedtune 0.1.0, policy a1a1a1a1a1a1",
        "asked heart query.hello, bundle b5b5b5b5b5b5",
        "operator approve heart, by Dr. A: ethics?[2J vote",
        "asked heart round 1 train, bundle b5b5b5b5b5b5",
        "left heart round 1 train: 1,024 bytes, 1 tensors in clear, metrics held_out_loss",
        "left heart round 1 query.secagg: 12 bytes, sealed",
        "refused heart round 2 train FT640 hours",
        "tail_dropped 12 bytes that a crash had left",
        "operator pause site, by Dr. A",
        "stopped asked to",
    ]
    assert [row.split()[0] for row in rows] == [str(number) for number in range(1, 11)]


def test_only_the_last_lines_are_shown(site: tuple[Path, list[bytes]], capsys: Captured) -> None:
    assert audit("show", site[0], "--last", "2") == 0
    assert [row.split()[0] for row in capsys.readouterr().err.splitlines()] == ["9", "10", "2"]


JSON = st.recursive(
    st.none() | st.text(max_size=5) | st.integers(), lambda inner: st.lists(inner, max_size=3)
)
NAMES = st.sampled_from(["run", "round", "message", "bytes", "tensors", "reason", "policy", "bundle"])
LINES = st.binary(max_size=50) | st.builds(
    lambda event, details: json.dumps({"event": event, "time": "2026", "details": details}).encode(),
    st.sampled_from(["asked", "left", "refused", "operator", "started", "stopped", "new"]) | JSON,
    st.dictionaries(NAMES, JSON) | JSON,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(LINES, max_size=4))
def test_a_line_that_is_none_does_not_hide_the_others(
    tmp_path: Path, lines: list[bytes], capsys: Captured
) -> None:
    (tmp_path / "audit.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    assert audit("show", tmp_path) == 0
    err = capsys.readouterr().err
    assert all(mark.isprintable() for mark in err.replace("\n", ""))
