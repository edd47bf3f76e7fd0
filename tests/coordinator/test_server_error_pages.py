"""Each code of the server has a page, and the message on it is the one that fedtune prints."""

from __future__ import annotations

import argparse
import os
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.error_pages import PAGES, assert_page_shows_the_message

import fedtune
from fedtune.commands.server_run import _told, require_possible, run_run
from fedtune.config.compose import compose
from fedtune.coordinator.daemon import Server
from fedtune.coordinator.folder import CoordinatorFolder
from fedtune.coordinator.settings import load_settings, written
from fedtune.coordinator.status import RunStatus
from fedtune.coordinator.superlink import start_superlink
from fedtune.coordinator.wanted import WantedRuns
from fedtune.observability.events import ClientFailed
from fedtune.observability.lock import take_lock
from fedtune.observability.progress_lines import _failure

FOLDER = CoordinatorFolder(Path("coordinator"))
CONFIG = compose(["experiment=demo", "backend=deployment", "name=lungs"])
SETTINGS = written(
    federation="lungs", address="fedtune.example.org:9092", listen="0.0.0.0:9092", superlink_port=9091
)


def settings(before: str = "", after: str = "", *, mode: int = 0o600) -> None:
    FOLDER.path.mkdir(exist_ok=True)
    FOLDER.settings.write_text(SETTINGS.replace(before, after))
    FOLDER.settings.chmod(mode)
    load_settings(FOLDER.settings)


def failed() -> None:
    reason = (
        "FT607: 2 usable replies where 4 are required; failed: ear at train (FT606: no reply within 600 s)"
    )
    run = RunStatus(name="lungs", state="failed", flower_run=1, restarts=0, reason=reason)
    _told(FOLDER, run, as_json=False)


def taken() -> None:
    start_superlink(FOLDER, 9091, insecure=False, alive=lambda: True)


def twice() -> None:
    runs = WantedRuns(FOLDER.wanted)
    runs.add(CONFIG)
    runs.add(CONFIG)


def damaged() -> None:
    FOLDER.wanted.mkdir(parents=True)
    (FOLDER.wanted / "lungs.json").write_bytes(b"{")
    WantedRuns(FOLDER.wanted).all()


def served() -> None:
    FOLDER.state.mkdir(parents=True)
    settings()
    first = take_lock(FOLDER.lock)
    try:
        Server(folder=FOLDER, settings=load_settings(FOLDER.settings)).serve(threading.Event())
    finally:
        os.close(first)


def too_few() -> None:
    FOLDER.nodes.mkdir(parents=True)
    for name in ("ear", "eye", "heart", "skin"):
        (FOLDER.nodes / f"{name}.pub").touch()
    secagg = replace(CONFIG.secagg, enabled=True, k_min=5)
    require_possible(replace(CONFIG, secagg=secagg), FOLDER)


def nobody() -> None:
    run_run(argparse.Namespace(folder="coordinator", attach=False, detach=True, json=False, overrides=[]))


RAISE: dict[str, Callable[[], object]] = {
    "FT613": failed,
    "FT660": lambda: settings(mode=0o664),
    "FT661": lambda: settings("  body_mib: 64", "  body_mib: 64\n  bodymib: 64"),
    "FT662": lambda: settings("superlink_port: 9091", "superlink_port: 0"),
    "FT663": lambda: settings("  webhook: null\n"),
    "FT664": taken,
    "FT665": twice,
    "FT666": damaged,
    "FT667": served,
    "FT668": too_few,
    "FT669": nobody,
}


@pytest.mark.parametrize("code", RAISE)
def test_the_page_of_an_error_shows_the_message_that_is_printed(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fedtune.coordinator.superlink.listens", lambda _: True)
    assert_page_shows_the_message(code, RAISE[code])


def test_the_page_of_a_site_that_was_away_shows_the_line_of_the_progress() -> None:
    away = ClientFailed(
        round=4,
        client="urology",
        stage="train",
        code="FT612",
        reason="it was not connected when the round began",
    )
    assert f"round 4/20  {_failure(away)}\n" in (PAGES / "FT612.md").read_text(encoding="utf-8")


def test_every_code_that_the_server_raises_is_on_this_list() -> None:
    package = Path(fedtune.__file__).parent
    sources = [*(package / "coordinator").glob("*.py"), *(package / "commands").glob("server_*.py")]
    raised = {code for path in sources for code in re.findall(r'"(FT66\d|FT613)"', path.read_text())}
    named = {"FT660", "FT661", "FT662", "FT663"}  # counted from SETTINGS.code
    assert raised | named == set(RAISE)
    assert {page.stem for page in PAGES.glob("FT66*.md")} == set(RAISE) - {"FT613"}
