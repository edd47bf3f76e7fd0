"""People are told what happened, once, in bounded time, and no round waits for it."""

from __future__ import annotations

import json
import logging
import socket
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtune.coordinator import notify
from fedtune.coordinator.notify import Notice, Notifier
from fedtune.coordinator.notify_settings import KINDS, NotifySettings, parse_notify
from fedtune.errors import FederationError

WHEN = datetime(2026, 11, 21, 3, 30, tzinfo=timezone(timedelta(hours=2)))
NOTICE = Notice(
    kind="quorum_lost", federation="heart", run="pilot", round=7, what="2 of 3 sites trained", when=WHEN
)
OBJECT = {
    "kind": "quorum_lost",
    "federation": "heart",
    "run": "pilot",
    "round": 7,
    "what": "2 of 3 sites trained",
    "when": "2026-11-21T01:30:00Z",
}


def handed_over(settings: NotifySettings, *notices: Notice, seconds: float = 60) -> None:
    with_time = Notifier(settings)
    for notice in notices:
        with_time.give(notice)
    with_time.close(seconds=seconds)


def script(folder: Path, body: str) -> tuple[str, ...]:
    path = folder / "told.py"
    path.write_text(body)
    return (sys.executable, str(path), str(folder / "told"))


class Collected(logging.Handler):
    """Keeps records."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def said() -> Iterator[list[logging.LogRecord]]:
    collected, logger = Collected(), logging.getLogger("fedtune.coordinator.notify")
    before = logger.level
    logger.addHandler(collected)
    logger.setLevel(logging.INFO)
    yield collected.records
    logger.setLevel(before)
    logger.removeHandler(collected)


def test_a_command_gets_the_notice_on_stdin_and_its_output_is_logged(
    tmp_path: Path, said: list[logging.LogRecord]
) -> None:
    command = script(
        tmp_path,
        "import sys\nopen(sys.argv[1], 'a').write(sys.stdin.read() + '\\n')\nprint('paged $HOME; ls')\n",
    )
    other = Notice(kind="finished", federation="heart", what="x" * 10_000, when=WHEN)
    handed_over(NotifySettings(command=(*command, "; rm $HOME")), NOTICE, other)
    first, second = map(json.loads, (tmp_path / "told").read_text().splitlines())
    assert first == OBJECT
    assert (second["run"], second["round"], len(second["what"])) == (None, None, 2_000)
    assert [record.getMessage() for record in said] == ["the command of notify said: paged $HOME; ls"] * 2


def test_only_the_kinds_that_are_asked_for_are_told(tmp_path: Path) -> None:
    command = script(tmp_path, "import sys\nopen(sys.argv[1], 'a').write(sys.stdin.read() + '\\n')\n")
    notices = [Notice(kind=kind, federation="heart", what="…", when=WHEN) for kind in KINDS]
    handed_over(NotifySettings(command=command, on=("failed", "expiry")), *notices)
    told = [json.loads(line)["kind"] for line in (tmp_path / "told").read_text().splitlines()]
    assert told == ["failed", "expiry"]


def test_without_anybody_to_tell_there_is_no_thread() -> None:
    before = threading.active_count()
    with Notifier(NotifySettings()) as notifier:
        notifier.give(NOTICE)
        assert threading.active_count() == before


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise SystemExit(3)", "it ended with 3"),
        ("import os; os.kill(os.getpid(), 9)", "it ended with -9"),
        ("import time; time.sleep(600)", "it ran longer than 1 s and was killed"),
    ],
)
def test_a_command_that_fails_is_logged_once_and_the_next_notice_goes_on(
    body: str, reason: str, tmp_path: Path, said: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    if "killed" in reason:
        monkeypatch.setattr(notify, "COMMAND_SECONDS", 1.0)
    handed_over(NotifySettings(command=script(tmp_path, body)), NOTICE, NOTICE)
    assert [record.getMessage() for record in said] == [
        f"the command of notify failed at quorum_lost: {reason}"
    ] * 2
    assert {vars(record)["code"] for record in said} == {"FT655"}


def test_a_command_that_is_not_there_is_logged(said: list[logging.LogRecord]) -> None:
    handed_over(NotifySettings(command=("/nowhere/page-me",)), NOTICE)
    [record] = said
    assert record.getMessage().endswith("it cannot be started: FileNotFoundError")


def test_what_a_command_leaves_running_is_not_waited_for(tmp_path: Path) -> None:
    command = script(
        tmp_path,
        "import subprocess, sys\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(20)'])\n"
        "open(sys.argv[1], 'a').write('done')\n",
    )
    started = time.monotonic()
    handed_over(NotifySettings(command=command), NOTICE)
    assert (tmp_path / "told").read_text() == "done"
    assert time.monotonic() - started < 19


def test_closing_is_bounded_and_kills_what_still_runs(tmp_path: Path, said: list[logging.LogRecord]) -> None:
    command = script(
        tmp_path, "import os, sys, time\nopen(sys.argv[1], 'w').write(str(os.getpid()))\ntime.sleep(600)\n"
    )
    notifier = Notifier(NotifySettings(command=command))
    for _ in range(3):
        notifier.give(NOTICE)
    while not (tmp_path / "told").exists() or not (tmp_path / "told").read_text():
        time.sleep(0.01)
    notifier.close(seconds=0.2)
    notifier.close()
    assert "notices were not handed over: the time to close was over" in [each.getMessage() for each in said]
    first = (tmp_path / "told").read_text()
    notifier._thread.join()
    assert not Path(f"/proc/{first}").exists()
    assert (tmp_path / "told").read_text() == first, "those that were waiting are given up"
    notifier.give(NOTICE)


def test_giving_never_waits_and_what_is_too_much_is_dropped(
    tmp_path: Path, said: list[logging.LogRecord]
) -> None:
    command = script(tmp_path, "import time; time.sleep(600)")
    notifier = Notifier(NotifySettings(command=command))
    for _ in range(400):
        notifier.give(NOTICE)
    dropped = [record for record in said if "was dropped" in record.getMessage()]
    assert len(dropped) >= 400 - 256 - 1
    notifier.close(seconds=0.1)
    notifier._thread.join()


class Hook(BaseHTTPRequestHandler):
    """Answers with the statuses it was given, the last one for ever."""

    statuses: list[int]
    bodies: list[Any]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        type(self).bodies.append((self.path, self.headers["Content-Type"], json.loads(body)))
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        self.send_response(status)
        self.send_header("Location", "/elsewhere")
        self.end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[type[Hook], str]]:
    monkeypatch.setattr(notify, "WAITS_SECONDS", (0.01, 0.01))
    # A proxy that is not there: loopback is reached without it.
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")

    class Mine(Hook):
        pass

    Mine.statuses, Mine.bodies = [200], []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Mine)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield Mine, f"http://127.0.0.1:{server.server_port}/hooks/7f3a-secret"
    server.shutdown()
    server.server_close()
    thread.join()


def told(hook: tuple[type[Hook], str], *, tries: int) -> None:
    """Close the notifier only after so many tries; it would make another one then, if it wanted to."""
    notifier = Notifier(NotifySettings(webhook=hook[1]))
    notifier.give(NOTICE)
    while len(hook[0].bodies) < tries:
        time.sleep(0.01)
    notifier.close(seconds=60)


def test_a_webhook_gets_the_notice(hook: tuple[type[Hook], str], said: list[logging.LogRecord]) -> None:
    told(hook, tries=1)
    assert hook[0].bodies == [("/hooks/7f3a-secret", "application/json", OBJECT)]
    assert said == []


@pytest.mark.parametrize(("statuses", "tries"), [([503, 200], 2), ([429, 500, 204], 3)])
def test_a_webhook_that_is_busy_is_tried_again(
    hook: tuple[type[Hook], str], statuses: list[int], tries: int, said: list[logging.LogRecord]
) -> None:
    hook[0].statuses = statuses
    told(hook, tries=tries)
    assert len(hook[0].bodies) == tries
    assert said == []


@pytest.mark.parametrize(("status", "tries"), [(500, 3), (404, 1), (302, 1), (307, 1)])
def test_a_webhook_that_refuses_is_logged_once_without_its_path(
    hook: tuple[type[Hook], str], status: int, tries: int, said: list[logging.LogRecord]
) -> None:
    hook[0].statuses = [status]
    told(hook, tries=tries)
    assert [path for path, _, _ in hook[0].bodies] == ["/hooks/7f3a-secret"] * tries, (
        "no redirect is followed"
    )
    [record] = said
    expected = f"the webhook at 127.0.0.1 did not take quorum_lost: it answered {status}"
    assert record.getMessage() == expected
    assert vars(record)["code"] == "FT656"


def test_closing_tries_once_more_and_waits_for_no_back_off(
    hook: tuple[type[Hook], str], monkeypatch: pytest.MonkeyPatch, said: list[logging.LogRecord]
) -> None:
    monkeypatch.setattr(notify, "WAITS_SECONDS", (600.0,))
    hook[0].statuses = [503]
    notifier = Notifier(NotifySettings(webhook=hook[1]))
    notifier.give(NOTICE)
    while not hook[0].bodies:
        time.sleep(0.01)
    notifier.close(seconds=60)
    assert len(hook[0].bodies) <= 2
    assert [vars(record)["code"] for record in said] == ["FT656"]


def test_a_webhook_that_is_not_there_or_says_nothing_is_given_up(
    monkeypatch: pytest.MonkeyPatch, said: list[logging.LogRecord]
) -> None:
    monkeypatch.setattr(notify, "WAITS_SECONDS", ())
    monkeypatch.setattr(notify, "WEBHOOK_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        handed_over(NotifySettings(webhook=url), NOTICE)
    handed_over(NotifySettings(webhook=url), NOTICE)
    assert [record.getMessage().rpartition(": ")[2] for record in said] == ["ReadTimeout", "ConnectError"]


def test_the_settings_are_read() -> None:
    assert parse_notify(None, where="server.yaml") == NotifySettings()
    assert parse_notify({}, where="server.yaml") == NotifySettings(command=None, webhook=None, on=KINDS)
    raw = {
        "command": ["a", "b c"],
        "webhook": "https://example.org/x",
        "on": ["finished", "failed", "failed"],
    }
    assert parse_notify(raw, where="server.yaml") == NotifySettings(
        command=("a", "b c"), webhook="https://example.org/x", on=("failed", "finished")
    )


def test_yaml_of_either_version_means_the_same() -> None:
    for key in ("on", True):
        assert parse_notify({key: ["failed"]}, where="server.yaml").on == ("failed",)


def flaws(raw: object) -> list[str]:
    with pytest.raises(FederationError) as caught:
        parse_notify(raw, where="server.yaml")
    assert {problem.code for problem in caught.value.problems} == {"FT654"}
    return [problem.what for problem in caught.value.problems]


@pytest.mark.parametrize(
    "url", ["http://localhost:8/x", "http://127.0.0.9/", "http://[::1]:80/", "HTTPS://x/"]
)
def test_https_and_loopback_are_taken(url: str) -> None:
    assert parse_notify({"webhook": url}, where="server.yaml").webhook == url


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/hooks/secret",
        "http://127.0.0.1.example.org/",
        "http://localhost@example.org/",
        "ftp://localhost/",
        "file:///etc/passwd",
        "https://",
        "https:///x",
        "https://x:99999/",
        "https://[::1/",
        "example.org",
        "https://exa mple.org/",
        "https://example.org/\r\nX: y",
        "https://ex\u00e4mple.org/",
        "",
        7,
        ["https://example.org"],
    ],
)
def test_any_other_address_is_refused_without_showing_its_path(url: object) -> None:
    [flaw] = flaws({"webhook": url})
    assert "secret" not in flaw


def test_everything_that_is_wrong_is_said_at_once() -> None:
    assert flaws(
        {"command": [], "webhook": "http://a.example/", "on": ["quorum-lost", 7], "comand": None}
    ) == [
        "notify has no key 'comand'",
        "command is [], not null or a list of a program and its arguments",
        "webhook goes to a.example in clear: http is for this machine alone, use https",
        "on holds 'quorum-lost': did you mean quorum_lost?",
        "on holds 7: quorum_lost, round_lost, failed, expiry, finished",
    ]
    assert flaws(["command"]) == ["notify is ['command'], not a mapping"]
    for command in ("page-me", [7], ["a\0b"], [""], {"a": 1}):
        assert len(flaws({"command": command})) == 1


RAW = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
VALUES = (
    RAW | st.builds(lambda rest: f"https://{rest}", st.text(max_size=20)) | st.lists(st.sampled_from(KINDS))
)


@given(raw=RAW | st.dictionaries(st.sampled_from(["command", "webhook", "on", "off"]), VALUES))
def test_whatever_the_section_holds_is_settings_or_a_problem(raw: object) -> None:
    try:
        settings = parse_notify(raw, where="server.yaml")
    except FederationError as error:
        problems = error.problems
    else:
        problems = ()
        assert set(settings.on) <= set(KINDS)
        assert settings.command is None or settings.command[0]
    assert all(problem.code == "FT654" and problem.what.isprintable() for problem in problems)


def test_a_time_is_given_in_utc() -> None:
    assert (
        Notice(kind="failed", federation="f", what="", when=WHEN).as_json()["when"] == "2026-11-21T01:30:00Z"
    )
    assert WHEN.astimezone(UTC).hour == 1
