"""The command line: what it prints, how fast it answers, and how it ends."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fedtune import __version__, cli
from fedtune.commands import report
from fedtune.errors import ConfigError, FedtuneError

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "reference"
COMMAND = [sys.executable, "-m", "fedtune"]
HEAVY = ("hydra", "pydantic", "numpy", "rich", "torch", "flwr", "omegaconf", "yaml", "asyncio", "logging")


def fedtune(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return {name: command for action in actions for name, command in action.choices.items()}


def leaves(parser: argparse.ArgumentParser, name: str = "fedtune") -> dict[str, argparse.ArgumentParser]:
    """Every command that can be run, by what is typed to run it."""
    inner = subcommands(parser)
    if not inner:
        return {name: parser}
    found = {}
    for word, command in inner.items():
        found |= leaves(command, f"{name} {word}")
    return found


def test_fedtune_alone_prints_every_command_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    printed = capsys.readouterr().out
    assert __version__ in printed
    for purpose, example in cli.EXAMPLES.values():
        assert re.search(rf"^  {re.escape(example)} +{re.escape(purpose)}$", printed, flags=re.MULTILINE)


def test_every_command_has_an_example_and_every_example_parses() -> None:
    assert list(subcommands(cli.build_parser())) == list(cli.EXAMPLES)
    for name, (_, example) in cli.EXAMPLES.items():
        program, *arguments = shlex.split(example)
        assert program == "fedtune"
        assert cli.build_parser().parse_args(arguments).command == name


def test_help_answers_within_half_a_second() -> None:
    def seconds() -> float:
        started = time.perf_counter()
        assert "simulate" in fedtune("--help").stdout
        return time.perf_counter() - started

    # The best of five: other processes may take the processor away, but nothing makes it faster than it is.
    assert min(seconds() for _ in range(5)) <= 0.5


def test_parsing_imports_nothing_that_takes_time() -> None:
    script = (
        "import sys; from fedtune import cli; cli.build_parser().parse_args(['simulate', 'seed=1']); "
        f"print(*[name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["simulate", "seed=1", "--json", "peft.rank=4", "-m", "+data.columns.id=key"],
        ["simulate", "-m", "--json", "seed=1", "peft.rank=4", "+data.columns.id=key"],
    ],
)
def test_overrides_and_options_mix_freely(arguments: list[str]) -> None:
    parsed = cli._parse(arguments)
    assert parsed.overrides == ["seed=1", "peft.rank=4", "+data.columns.id=key"]
    assert parsed.json
    assert parsed.multirun


@pytest.mark.parametrize(
    "arguments",
    [
        ["simulat"],
        ["simulate", "--jsn"],
        ["report"],
        ["report", "a", "b"],
        ["bench", "startup", "--repeats", "0"],
        ["bench", "startup", "--scale"],
        ["bench"],
        ["keys", "roster"],
        ["keys", "roster", "entry", "--weight", "2", "--weight-from-examples", "2"],
        ["keys", "roster", "accept", "r.json", "--pin", "p.json", "--quorum", "--fingerprint", "x"],
    ],
)
def test_a_line_that_cannot_be_parsed_ends_with_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: fedtune")


def test_problems_are_three_lines_each_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["simulate", "training.learning_rat=1", "federation.rounds=0"]) == ConfigError.exit_code
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 6
    assert lines[0] == "FT101: there is no key training.learning_rat"
    assert lines[2].startswith("  do:    did you mean training.learning_rate?")


def test_problems_are_one_object_on_stdout_with_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["simulate", "--json", "lr=1", "lora_r=3"]) == 2
    out, err = capsys.readouterr()
    error = json.loads(out)["error"]
    assert (error["type"], error["exit_code"]) == ("ConfigError", 2)
    assert [problem["code"] for problem in error["problems"]] == ["FT101", "FT101"]
    assert error["problems"][1]["fix"].startswith("did you mean peft.rank?")
    assert "FT101" in err


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Lets ``fedtune report RUN`` end with an exception."""

    def fail_with(error: BaseException) -> None:
        def run(_: argparse.Namespace) -> int:
            raise error

        monkeypatch.setattr(report, "run", run)

    return fail_with


def test_every_error_of_fedtune_has_its_exit_code(failing: Callable[[BaseException], None]) -> None:
    from fedtune import errors

    problem = errors.Problem(code="FT000", what="w", where="p", fix="f")
    kinds = [FedtuneError, *FedtuneError.__subclasses__()]
    for kind in kinds:
        failing(kind(problem))
        assert cli.main(["report", "x"]) == kind.exit_code
    assert len({kind.exit_code for kind in kinds}) == len(kinds)


def test_ctrl_c_ends_with_130_and_no_traceback(
    failing: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    failing(KeyboardInterrupt())
    assert cli.main(["report", "x"]) == 130
    assert capsys.readouterr().err == "\nstopped\n"


def test_an_unexpected_error_is_short_and_keeps_its_traceback(
    failing: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    failing(ZeroDivisionError("by\nzero"))
    assert cli.main(["report", "x", "--json"]) == 1
    out, err = capsys.readouterr()
    error = json.loads(out)["error"]
    assert err.splitlines()[0] == "fedtune failed unexpectedly: ZeroDivisionError: by zero"
    assert len(err.splitlines()) == 3
    crash = Path(error["traceback"])
    assert "Traceback (most recent call last)" in crash.read_text(encoding="utf-8")
    crash.unlink()


def test_debugging_shows_the_traceback(
    failing: Callable[[BaseException], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDTUNE_DEBUG", "1")
    failing(ZeroDivisionError("by zero"))
    with pytest.raises(ZeroDivisionError):
        cli.main(["report", "x"])


def test_a_reader_that_leaves_early_is_no_error() -> None:
    done = subprocess.run(
        f"{shlex.join(COMMAND)} completion bash | true; exit ${{PIPESTATUS[0]}}",
        cwd=ROOT,
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stderr == ""
    assert done.returncode in (0, 141)


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_knows_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in cli.EXAMPLES)


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"
    assert cli.main(["version", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"version": __version__}


def test_the_reference_names_every_command_option_and_exit_code() -> None:
    page = (DOCS / "command-line.md").read_text(encoding="utf-8")
    for title, command in leaves(cli.build_parser()).items():
        assert f"## `{title}" in page
        section = page.partition(f"## `{title}")[2].partition("\n## ")[0]
        for action in command._actions:
            for option in action.option_strings:
                assert option in ("-h", "--help") or f"`{option}" in section, f"{title}: {option}"
    for kind in FedtuneError.__subclasses__():
        assert f"| {kind.exit_code} | `{kind.__name__}`" in page
