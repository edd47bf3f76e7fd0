"""The tutorial of a deployment, executed as it stands: real processes, TLS, SmolLM2, no internet."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedtune.observability.events import SecureSum, read_events
from fedtune.observability.summary import summarise
from fedtune.secagg.identity import Identity
from fedtune.site.audit import verify_audit
from fedtune.site.folder import SiteFolder

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "tutorial" / "first-deployment.md"
SITES = ("cardiology", "metabolism", "neurology", "urology")
INSTALLS = ("python3 -m venv", ". venv/bin/activate", "pip install")
"""Not executed: this environment has fedtune and what it needs, and tests/packaging installs the wheel."""

MOST_COMMANDS, HANGS_AFTER_SECONDS = 20, 1800.0
OFFLINE = ["unshare", "--net", "sh", "-c", "ip link set lo up && exec sh -eux tutorial.sh"]
ONLINE = ["sh", "-eux", "tutorial.sh"]


def commands() -> list[str]:
    """Each command of the page; a loop over several lines is one."""
    blocks = re.findall(r"(?:^    .*\n)+", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    found: list[str] = []
    for line in "".join(re.sub(r"^    ", "", block, flags=re.MULTILINE) for block in blocks).splitlines():
        if line == "done" or line.startswith("  "):
            found[-1] += f"\n{line}"
        else:
            found.append(line)
    return found


def command_line() -> list[str]:
    """A shell on loopback alone, where the machine allows it."""
    tried = subprocess.run([*OFFLINE[:4], "ip link set lo up"], check=False, capture_output=True, timeout=30)
    return OFFLINE if tried.returncode == 0 else ONLINE


def test_a_newcomer_types_at_most_twenty_commands() -> None:
    found = commands()
    assert len(found) <= MOST_COMMANDS
    for command in found:  # one command is one: nothing is strung together
        looped = command.startswith(("for ", "until "))
        assert looped or (";" not in command.replace("; do", "") and "&&" not in command), command
    assert [command for command in found if command.startswith(INSTALLS)] == found[:4]


def test_the_page_installs_the_wheel_of_this_version() -> None:
    import fedtune

    (wheel,) = (shlex.split(command)[2] for command in commands() if ".whl" in command)
    assert wheel == f"fedtune-{fedtune.__version__}-py3-none-any.whl[demo]"


@pytest.mark.e2e
@pytest.mark.real_model
@pytest.mark.usefixtures("smollm2_cache")
def test_the_tutorial_ends_with_a_secure_run_of_four_sites(tmp_path: Path) -> None:
    typed = [command for command in commands() if not command.startswith(INSTALLS)]
    (tmp_path / "tutorial.sh").write_text("\n".join([*typed, ""]), encoding="utf-8")
    scripts = str(Path(sys.executable).parent)
    with (tmp_path / "terminal.txt").open("wb") as terminal:
        shell = subprocess.Popen(
            command_line(),
            cwd=tmp_path,
            env=os.environ | {"PATH": os.pathsep.join([scripts, os.environ["PATH"]])},
            stdin=subprocess.DEVNULL,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
        )
        try:
            ended = shell.wait(timeout=HANGS_AFTER_SECONDS)
        finally:
            if shell.returncode != 0:
                os.killpg(shell.pid, signal.SIGKILL)
    assert ended == 0, (tmp_path / "terminal.txt").read_text(encoding="utf-8", errors="replace")[-6000:]

    run = tmp_path / "coordinator" / "runs" / "first"
    events = read_events(run / "rounds.jsonl")
    summary = summarise(events)
    assert (summary["status"], summary["rounds"], summary["secure_rounds"]) == ("completed", 2, 2)
    assert {event.clients for event in events if isinstance(event, SecureSum)} == {SITES}
    assert summary["held_out_loss"]["federated"] < summary["held_out_loss"]["base"]
    assert (run / "report.html").is_file()
    for name in SITES:
        folder = SiteFolder(tmp_path / name)
        assert verify_audit(folder.audit_log, Identity.load(folder.audit_key).public).intact
        lines = [json.loads(line) for line in folder.audit_log.read_bytes().splitlines()]
        assert [line["details"]["action"] for line in lines if line["event"] == "operator"] == [
            "approve",
            "stop",
        ]
        log = (folder.logs / "client.jsonl").read_text(encoding="utf-8")
        assert log.count("the base model is loaded") == 1
