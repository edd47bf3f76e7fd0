"""The systemd units: valid, and as closed as the daemons allow."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UNITS = {
    "client": ROOT / "client" / "fedtune-client@.service",
    "server": ROOT / "server" / "fedtune-server.service",
}
SINCE_254 = ("RestartSteps", "RestartMaxDelaySec")
LARGEST_EXPOSURE = 1.5
"""Of 10, by `systemd-analyze security`; 1.3 for a site and 1.2 for a coordinator with systemd 252."""

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not on this machine"
)


def settings(side: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    section = ""
    for line in UNITS[side].read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(r"\[(Unit|Service|Install)\]", line):
            section = match[1]
        elif line and not line.startswith("#"):
            match = re.fullmatch(r"([A-Z]\w+)=(.*)", line)
            assert match, line
            assert section
            found[match[1]].append(match[2])
    return found


@pytest.mark.parametrize("side", UNITS)
def test_it_runs_the_daemon_of_its_side_in_the_folder_that_it_may_write(side: str) -> None:
    found = settings(side)
    name = {"client": "%i", "server": "coordinator"}[side]
    assert found["ExecStart"] == [f"/opt/fedtune/bin/fedtune {side} start /var/lib/fedtune/{name}"]
    assert found["StateDirectory"] == [f"fedtune/{name}"]
    assert found["StateDirectoryMode"] == ["0700"]
    assert found["UMask"] == ["0077"]
    assert "ReadWritePaths" not in found


@pytest.mark.parametrize("side", UNITS)
@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("User", "fedtune"),
        ("NoNewPrivileges", "yes"),
        ("ProtectSystem", "strict"),
        ("ProtectHome", "yes"),
        ("ProtectProc", "invisible"),
        ("PrivateTmp", "yes"),
        ("PrivateDevices", "yes"),
        ("CapabilityBoundingSet", ""),
        ("LockPersonality", "yes"),
        ("RestrictAddressFamilies", "AF_INET AF_INET6 AF_UNIX"),
        ("SystemCallErrorNumber", "EPERM"),
        ("LimitCORE", "0"),
        ("MemorySwapMax", "0"),
        ("Restart", "on-failure"),
        ("KillMode", "mixed"),
    ],
)
def test_it_is_closed(side: str, setting: str, value: str) -> None:
    assert settings(side)[setting] == [value]


def test_memory_that_is_written_may_be_run_only_where_torch_makes_its_kernels() -> None:
    assert "MemoryDenyWriteExecute" not in settings("client")
    assert settings("server")["MemoryDenyWriteExecute"] == ["yes"]


def checkable(side: str, folder: Path) -> Path:
    """A copy that starts a program which is here, without what this systemd may be too old for."""
    lines = UNITS[side].read_text(encoding="utf-8").splitlines(keepends=True)
    text = "".join(line for line in lines if not line.startswith(SINCE_254))
    path = folder / UNITS[side].name
    path.write_text(text.replace("/opt/fedtune/bin/fedtune", sys.executable), encoding="utf-8")
    return path


@needs_systemd
@pytest.mark.parametrize("side", UNITS)
def test_systemd_finds_nothing_wrong_with_it(side: str, tmp_path: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", checkable(side, tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert UNITS[side].stem not in done.stdout + done.stderr
    assert done.returncode == 0


@needs_systemd
@pytest.mark.parametrize("side", UNITS)
def test_systemd_finds_little_that_it_is_exposed_to(side: str, tmp_path: Path) -> None:
    limit = f"--threshold={round(10 * LARGEST_EXPOSURE)}"
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", limit, checkable(side, tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout
