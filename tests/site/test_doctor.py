"""The doctor makes every check, finds what is broken, and says how to mend it."""

from __future__ import annotations

import importlib.metadata
import shutil
import time
from collections import namedtuple
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from fedtune.config.compose import compose
from fedtune.errors import ModelError, Problem
from fedtune.site import doctor, machine, software
from fedtune.site.findings import Check, Finding, failed, ok

DiskUsage = namedtuple("DiskUsage", "total used free")


@pytest.fixture(scope="module")
def checks() -> dict[str, Check]:
    return {check.name: check for check in doctor.run_checks()}


def test_this_machine_passes(checks: dict[str, Check]) -> None:
    assert [check for check in checks.values() if check.status == "failed"] == []


def test_nothing_that_a_run_needs_is_left_unchecked(checks: dict[str, Check]) -> None:
    assert {
        "python",
        "torch",
        "quantization",
        "clock",
        "configuration",
        "arithmetic",
        "demo model",
        "demo data",
        "memory",
        "folder of runs",
        "folder of models",
        "disk of runs",
        "disk of models",
    } <= set(checks)


def test_every_finding_says_something_and_every_trouble_has_a_fix(checks: dict[str, Check]) -> None:
    for check in checks.values():
        assert len(check.finding) > 3
        assert (check.fix is None) == (check.status == "ok")
        assert (check.code is not None) == (check.status == "failed")


def test_a_machine_without_the_demos_model_has_not_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> Finding:
        raise ModelError(Problem(code="FT301", what="no model", where="here", fix="install it"))

    monkeypatch.setattr(machine, "memory", missing)
    monkeypatch.setattr("fedtune.models.resolve.resolve", missing)
    made = {check.name: check for check in doctor._for_demo(compose(["experiment=demo"]))}
    assert {made[name].status for name in ("demo model", "memory")} == {"warning"}


def test_quantization_is_really_tried(checks: dict[str, Check]) -> None:
    assert "relative error 0.0" in checks["quantization"].finding


def test_a_check_that_breaks_has_failed_and_stops_nothing() -> None:
    def broken() -> Finding:
        raise ZeroDivisionError("by zero\nand more")

    check = doctor._made("broken", broken)
    assert (check.status, check.code) == ("failed", "FT808")
    assert check.finding == "this check could not be made: ZeroDivisionError: by zero and more"


@pytest.mark.parametrize(
    ("requirement", "words"),
    [
        ("no-such-distribution>=1", "no-such-distribution is not installed"),
        ("pytest<1", f"pytest {importlib.metadata.version('pytest')} is outside <1"),
    ],
)
def test_a_package_that_is_missing_or_of_another_version_is_named_with_its_command(
    requirement: str, words: str
) -> None:
    finding = software._package(Requirement(requirement))
    assert (finding.status, finding.code) == ("failed", "FT804")
    assert finding.text == words
    assert finding.fix == f'pip install "{requirement}"'


def test_a_package_that_cannot_be_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_one.py").write_text("raise OSError('libfoo.so: cannot open shared object file')")
    (tmp_path / "broken_one-1.0.dist-info").mkdir()
    (tmp_path / "broken_one-1.0.dist-info" / "METADATA").write_text("Name: broken-one\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    finding = software._package(Requirement("broken-one"))
    assert finding.status == "failed"
    assert "libfoo.so" in finding.text


def test_every_declared_dependency_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = ["torch>=2.6", 'pytest>=9; extra == "dev"', 'pywin32; sys_platform == "win32"']
    monkeypatch.setattr(software, "requires", lambda _: declared)
    assert [name for name, _ in software.package_checks()] == ["torch"]


def test_an_old_python_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software.sys, "version_info", (3, 10, 4))
    finding = software.python_version()
    assert (finding.code, finding.text) == ("FT803", "Python 3.10.4 is too old")


@pytest.mark.parametrize(("free_gib", "status"), [(0.5, "failed"), (2, "warning"), (50, "ok")])
def test_disk_space_is_judged(
    free_gib: float, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = int(free_gib * 2**30)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: DiskUsage(2**40, 0, free))
    finding = machine.disk_space(tmp_path / "not" / "there" / "yet")
    assert finding.status == status
    assert f"{free_gib:.1f} GiB free" in finding.text


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.writable(tmp_path / "new", key="runs_dir").status == "ok"
    assert list(tmp_path.iterdir()) == []
    refusing = Path("/proc/self")  # nobody writes there, not even root
    finding = machine.writable(refusing, key="runs_dir")
    assert (finding.status, finding.code) == ("failed", "FT809")
    assert "runs_dir" in str(finding.fix)


@pytest.mark.parametrize(("now", "status"), [(0.0, "failed"), (1.8e9, "ok"), (9e9, "failed")])
def test_an_implausible_clock_is_noticed(now: float, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: now)
    assert machine.clock().status == status


def test_too_little_memory_is_noticed(monkeypatch: pytest.MonkeyPatch, tiny_model_dir: Path) -> None:
    import psutil

    config = compose([f"model.name={tiny_model_dir}", "model.quantization=none"])
    assert machine.memory(config).status == "ok"
    monkeypatch.setattr(psutil, "virtual_memory", lambda: namedtuple("Memory", "available")(2**20))
    finding = machine.memory(config)
    assert (finding.status, finding.code) == ("failed", "FT805")
    assert "MiB free, " in finding.text


def test_findings_are_what_they_say() -> None:
    assert ok("fine").fix is None
    assert failed("FT809", "no", fix="do").code == "FT809"
