"""A log tells a person what went wrong, never what is in a row, and it cannot stop what it tells of."""

from __future__ import annotations

import ast
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.canary import assert_no_trace

import fedtune
from fedtune.errors import DataError, FedtuneError, ModelError, Problem, RunError
from fedtune.observability.disk import write_atomic
from fedtune.observability.json_log import LEAST_BYTES, JsonLog, log_context, log_to, words_of

CANARY = "patient Zaunkönig, 77, blood group AB"
ours = logging.getLogger("fedtune.site.daemon")


def problem(code: str, what: str = CANARY) -> Problem:
    return Problem(code=code, what=what, where="row 4", fix="mend it")


def record(text: str, *args: object) -> logging.LogRecord:
    """What no logger hands on, because pytest's own handler does not bear arguments that do not fit."""
    return logging.LogRecord(ours.name, logging.INFO, __file__, 1, text, args, None)


def lines(folder: Path, name: str = "site") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[JsonLog]:
    with log_to(tmp_path, "site") as handler:
        yield handler


def test_a_line_says_when_who_in_which_run_and_round_and_what(log: JsonLog, tmp_path: Path) -> None:
    before = datetime.now(UTC)
    with log_context(run="heart"):
        ours.info("joined")
        with log_context(round=3):
            ours.warning("trained %d steps in %.1f s", 40, 2.25, extra={"code": "FT404"})
    ours.error("gone: %s", Path("/srv/model"))
    first, second, third = lines(tmp_path)
    assert list(first) == ["time", "level", "logger", "run", "round", "message"]
    assert (first["run"], first["round"], first["message"]) == ("heart", None, "joined")
    assert list(second) == [*first, "code"]
    assert (second["run"], second["round"], second["code"]) == ("heart", 3, "FT404")
    assert second["message"] == "trained 40 steps in 2.2 s"
    assert (second["level"], second["logger"]) == ("WARNING", "fedtune.site.daemon")
    assert (third["run"], third["round"], third["message"]) == (None, None, "gone: /srv/model")
    written = datetime.fromisoformat(first["time"])
    assert first["time"].endswith("Z")
    assert abs((written - before).total_seconds()) < 60


def test_the_files_are_their_owners_alone_also_one_that_was_there(tmp_path: Path) -> None:
    (tmp_path / "site.jsonl").touch()
    (tmp_path / "site.jsonl").chmod(0o644)
    with log_to(tmp_path, "site"), log_to(tmp_path / "new" / "folder", "other"):
        ours.info("once")
    for path in (tmp_path / "site.jsonl", tmp_path / "new" / "folder" / "other.jsonl"):
        assert path.stat().st_mode & 0o7777 == 0o600
    assert (tmp_path / "new" / "folder").stat().st_mode & 0o7777 == 0o700


def raise_from_a_row() -> None:
    try:
        write_atomic(Path("/nowhere") / CANARY, b"")
    except RunError:
        raise ValueError(CANARY) from None


def test_of_an_exception_that_is_not_ours_only_its_kind_and_our_frames_are_written(
    log: JsonLog, tmp_path: Path
) -> None:
    try:
        try:
            write_atomic(tmp_path / "missing" / "file", b"")
        except RunError as error:
            raise KeyError(CANARY) from error.__cause__
    except KeyError:
        ours.exception("the app failed")
    [line] = lines(tmp_path)
    outer, inner = line["error"]
    assert outer == {"type": "builtins.KeyError", "frames": []}, "this test is no part of fedtune"
    assert inner["type"] == "builtins.FileNotFoundError"
    assert inner["text"] == "FileNotFoundError ENOENT"
    places = [frame.rpartition(":") for frame in inner["frames"]]
    assert {place[0] for place in places} == {"fedtune/observability/disk.py"}
    source = Path(fedtune.__file__).parent.joinpath("observability", "disk.py").read_text().splitlines()
    assert [source[int(place[2]) - 1].strip() for place in places] == [
        "yield",
        "_write_new(temporary, data, mode=0o600 if private else 0o644)",
        "file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)",
    ]
    assert_no_trace(tmp_path, CANARY)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ModelError(problem("FT301", "no model")), "FT301: no model\n  where: row 4\n  do:    mend it"),
        (DataError([problem("FT205"), problem("FT206"), problem("FT205")]), "DataError FT205 FT206"),
        (FedtuneError([problem("FT301"), problem("FT205")]), "FedtuneError FT301 FT205"),
        (ValueError(CANARY), "ValueError"),
        (OSError(28, CANARY, CANARY), "OSError ENOSPC"),
        (OSError(CANARY), "OSError"),
        (UnicodeDecodeError("utf-8", CANARY.encode(), 0, 1, CANARY), "UnicodeDecodeError"),
        (problem("FT301", "no model"), "FT301: no model\n  where: row 4\n  do:    mend it"),
        (problem("FT205"), "FT205"),
    ],
)
def test_the_words_of_an_error_are_told_only_where_they_speak_of_no_row(
    error: Exception, told: str, log: JsonLog, tmp_path: Path
) -> None:
    assert words_of(error) == told
    ours.warning("stopped: %s", error)
    ours.warning(error)
    first, second = lines(tmp_path)
    assert first["message"] == f"stopped: {told}"
    assert second["message"] == told
    assert first.get("code") == (told[:5] if told.startswith("FT") else first.get("code"))


def refuse() -> None:
    raise DataError(problem("FT205"))


def test_the_code_of_an_error_is_a_field(log: JsonLog, tmp_path: Path) -> None:
    try:
        refuse()
    except DataError as error:
        ours.exception("refused")
        ours.info("refused %s: %s", "heart", error)
    first, second = lines(tmp_path)
    assert first["code"] == second["code"] == "FT205"
    assert first["error"] == [{"type": "fedtune.errors.DataError", "frames": [], "text": "DataError FT205"}]


def test_what_could_hold_a_row_is_not_written_as_an_argument(log: JsonLog, tmp_path: Path) -> None:
    ours.info("got %s and %s and %s", [CANARY], {CANARY: CANARY}, CANARY.encode())
    ours.info("got %(row)s", {"row": [CANARY]})
    log.handle(record("got %d", CANARY))
    for part in ("data.load", "training", "evaluation.generate"):
        logging.getLogger(f"fedtune.{part}").warning("row %d of %s: %s", 7, Path("notes"), CANARY)
    told = [line["message"] for line in lines(tmp_path)]
    assert told == [
        "got <list> and <dict> and <bytes>",
        "got <list>",
        "got %d",
        *["row 7 of notes: <str>"] * 3,
    ]
    assert_no_trace(tmp_path, CANARY)


def test_of_others_only_warnings_are_written_and_of_strangers_no_text(log: JsonLog, tmp_path: Path) -> None:
    for name in ("flwr", "httpx", "uvicorn.error", "some_library.tokenization", "fedtuned"):
        other = logging.getLogger(name)
        other.propagate = True
        other.info("a call of %s", name)
        other.warning("trouble with %s", name)
    logging.getLogger("some_library").warning(f"a row: {CANARY}")
    told = [line["message"] for line in lines(tmp_path)]
    assert told[:3] == [f"trouble with {name}" for name in ("flwr", "httpx", "uvicorn.error")]
    assert told[3].startswith("a message of some_library.tokenization, left out: test_json_log.py:")
    assert len(told) == 6
    assert_no_trace(tmp_path, CANARY)
    assert logging.getLogger("httpx").getEffectiveLevel() == logging.WARNING


def test_leaving_it_puts_everything_back(tmp_path: Path) -> None:
    def state() -> list[object]:
        loggers = [logging.getLogger(name) for name in ("", "fedtune", "flwr", "httpx", "uvicorn")]
        return [(each.level, list(each.handlers)) for each in loggers]

    before = state()
    hook = threading.excepthook
    with log_to(tmp_path, "site"):
        assert threading.excepthook is not hook
    assert state() == before
    assert threading.excepthook is hook


def test_an_exception_that_ends_a_thread_is_logged_and_its_text_is_printed_nowhere(
    log: JsonLog, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for target in (raise_from_a_row, sys.exit):
        thread = threading.Thread(target=target)
        thread.start()
        thread.join()
    [line] = lines(tmp_path)
    assert line["message"] == "an exception ended a thread"
    assert line["error"][0]["type"] == "builtins.ValueError"
    assert CANARY not in "".join(capfd.readouterr())
    assert_no_trace(tmp_path, CANARY)


def test_all_files_together_are_bounded(tmp_path: Path) -> None:
    with log_to(tmp_path, "site", most_bytes=LEAST_BYTES, old_files=2):
        for number in range(4_000):
            ours.info("line %d of %s", number, "x" * 400)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["site.jsonl", "site.jsonl.1", "site.jsonl.2"]
    assert sum(file.stat().st_size for file in files) <= 3 * LEAST_BYTES
    assert all(file.stat().st_mode & 0o7777 == 0o600 for file in files)
    kept = "".join(file.read_text() for file in reversed(files)).splitlines()
    numbers = [int(json.loads(line)["message"].split()[1]) for line in kept]
    assert numbers == list(range(numbers[0], 4_000)), "none is lost between two files"


def test_a_file_cannot_be_smaller_than_a_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="most_bytes must be at least 131072"):
        JsonLog(tmp_path / "site", most_bytes=1_000)


def test_the_longest_line_is_bounded(log: JsonLog, tmp_path: Path) -> None:
    error: Exception = ModelError(problem("FT301", "𝄞" * 10**5))
    for _ in range(9):
        later = ModelError(problem("FT301", "𝄞" * 10**5))
        later.__cause__ = error
        error = later
    with log_context(run="𝄞" * 10**5):
        ours.error("𝄞" * 10**5 + "%s", "𝄞" * 10**5, exc_info=error)
    assert (tmp_path / "site.jsonl").stat().st_size < LEAST_BYTES
    assert len(lines(tmp_path)[0]["error"]) == 5


ARGUMENTS = st.lists(st.text() | st.integers() | st.floats() | st.binary() | st.none(), max_size=3)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(text=st.text(), args=ARGUMENTS, run=st.text(max_size=5))
def test_whatever_is_logged_is_one_line_of_ascii_json(
    text: str, args: list[object], run: str, tmp_path: Path
) -> None:
    path = tmp_path / "site.jsonl"
    path.unlink(missing_ok=True)
    with log_to(tmp_path, "site") as log, log_context(run=run, round=1):
        log.handle(record(text, *args))
        assert log.lost == 0
    assert path.read_bytes().isascii()
    [line] = path.read_text().splitlines()
    assert json.loads(line)["run"] == run


def test_a_line_that_a_crash_cut_off_is_cut_away(tmp_path: Path) -> None:
    path = tmp_path / "site.jsonl"
    path.write_text('{"message":"one"}\n{"mess')
    with log_to(tmp_path, "site"):
        ours.info("two")
    assert [line["message"] for line in lines(tmp_path)] == ["one", "two"]


def test_a_full_disk_reaches_nobody_and_what_was_lost_is_counted(tmp_path: Path) -> None:
    script = """
import logging, resource, signal, sys
from pathlib import Path
from fedtune.observability.json_log import log_to
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
ours = logging.getLogger("fedtune.site")
with log_to(Path(sys.argv[1]), "site") as log:
    ours.info("before")
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, resource.RLIM_INFINITY))
    for number in range(50):
        ours.info("lost %d %s", number, "x" * 300)
    assert log.lost == 50
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    ours.info("after")
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [line["message"] for line in lines(tmp_path)] == ["before", "after", "50 lines were lost"]


def test_a_folder_that_is_gone_reaches_nobody(tmp_path: Path) -> None:
    with log_to(tmp_path / "logs", "site") as log:
        (tmp_path / "logs").rmdir()
        ours.info("lost")
        assert log.lost == 1
        (tmp_path / "logs").mkdir()
        ours.info("kept")
    assert [line["message"] for line in lines(tmp_path / "logs")] == ["kept", "1 lines were lost"]


def test_a_folder_that_cannot_be_made_is_said_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError) as caught, log_to(tmp_path / "file" / "logs", "site"):
        pass
    assert caught.value.problems[0].code == "FT707"


def test_threads_do_not_mix_their_lines_or_their_runs(log: JsonLog, tmp_path: Path) -> None:
    def work(name: str) -> None:
        with log_context(run=name, round=1):
            for number in range(50):
                ours.info("%s %d", name, number)

    threads = [threading.Thread(target=work, args=(f"run-{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    written = lines(tmp_path)
    assert len(written) == 200
    assert all(line["message"].startswith(f"{line['run']} ") for line in written)


METHODS = {"debug", "info", "warning", "error", "exception", "critical", "log"}


def logged_in(source: str) -> Iterator[tuple[int, ast.expr]]:
    """Yield the line and the message of each call of a logger: one named so, or one got on the spot."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or not node.args:
            continue
        owner = ast.unparse(node.func.value)
        if node.func.attr in METHODS and (owner.lower().endswith("logger") or "getLogger(" in owner):
            yield node.lineno, node.args[1 if node.func.attr == "log" else 0]


def test_no_message_of_fedtune_is_put_together_before_it_is_logged() -> None:
    package = Path(fedtune.__file__).parent
    wrong, seen = [], 0
    for path in sorted(package.rglob("*.py")):
        for line, message in logged_in(path.read_text(encoding="utf-8")):
            seen += 1
            if not (isinstance(message, ast.Constant) and isinstance(message.value, str)):
                wrong.append(f"{path.relative_to(package)}:{line}: {ast.unparse(message)}")
    assert seen > 10
    assert not wrong, "give what varies as an argument:\n" + "\n".join(wrong)


@pytest.mark.parametrize("message", ['f"row {x}"', '"row " + x', '"row %s" % x', "x", "str(error)"])
def test_each_way_of_putting_a_message_together_is_seen(message: str) -> None:
    for owner in ("logger", "self._logger", "logging.getLogger(__name__)"):
        [(_, found)] = logged_in(f"{owner}.info({message})")
        assert not isinstance(found, ast.Constant)


def test_what_a_daemon_shows_has_no_word_of_an_exception_that_may_quote_a_row() -> None:
    from fedtune.observability.log_lines import SafeFormatter

    def shown(message: str, error: Exception | None, *arguments: object) -> str:
        info = None if error is None else (type(error), error, None)
        record = logging.LogRecord("fedtune.site.desk", logging.ERROR, __file__, 1, message, arguments, info)
        return SafeFormatter().format(record)

    assert shown("round %d is over", None, 3) == "round 3 is over"
    assert shown("it failed", ValueError("Quintessa Marrowbone")) == "it failed (ValueError)"
    assert shown("refused: %s", None, ValueError("Quintessa Marrowbone")) == "refused: ValueError"
