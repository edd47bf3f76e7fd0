"""``fedtune keys`` as two people type it: an authority, a server, requests, bundles, and what is shown."""

from __future__ import annotations

import io
import json
import re
import shlex
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fedtune import cli
from fedtune.commands import keys_show
from fedtune.keys.certificates import utc_now
from fedtune.secagg.files import read_roster
from fedtune.secagg.identity import Identity

HOW_TO = Path(__file__).parents[2] / "docs" / "how-to" / "enrol-a-site.md"


@dataclass(frozen=True)
class Desk:
    """The folder that a person works in, and what is printed there."""

    capsys: pytest.CaptureFixture[str]

    def keys(self, line: str) -> Any:
        """What a command that succeeds prints as JSON."""
        assert cli.main(["keys", *shlex.split(line), "--json"]) == 0, self.capsys.readouterr().err
        return json.loads(self.capsys.readouterr().out)

    def said(self, line: str, *, exit_code: int = 0) -> str:
        assert cli.main(["keys", *shlex.split(line)]) == exit_code
        out, err = self.capsys.readouterr()
        assert out == ""
        return err

    def problems(self, line: str, *, exit_code: int = 7) -> list[dict[str, str]]:
        assert cli.main(["keys", *shlex.split(line), "--json"]) == exit_code
        out, err = self.capsys.readouterr()
        found: list[dict[str, str]] = json.loads(out)["error"]["problems"]
        assert len(err.splitlines()) == 3 * len(found)
        return found


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Desk:
    monkeypatch.chdir(tmp_path)
    return Desk(capsys)


def terminal(monkeypatch: pytest.MonkeyPatch, typed: str = "", *, secrets: tuple[str, ...] = ()) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    answers = iter(secrets)
    monkeypatch.setattr(sys, "stdin", Terminal(typed))
    monkeypatch.setattr("getpass.getpass", lambda prompt, stream: next(answers))


def enrolled(desk: Desk) -> str:
    """One site that may join; the coordinator's fingerprint."""
    made = desk.keys("ca c")
    desk.keys("client ear --federation f --out ear")
    desk.keys("enrol ear/ear.request.json --ca c --federation f --server localhost:1 --out b")
    heard: str = made["fingerprints"]["coordinator"]
    return heard


def test_the_commands_of_the_how_to_can_be_typed_in_their_order(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [line.strip() for line in HOW_TO.read_text(encoding="utf-8").splitlines()]
    typed = [line.removeprefix("fedtune keys ") for line in lines if line.startswith("fedtune keys ")]
    # What a page on keys shows before it makes them by hand is typed once they are there.
    first = next(at for at, command in enumerate(typed) if command.startswith("ca "))
    assert typed[-1].startswith("revoke ")
    commands = [*typed[first:-1], *typed[:first], typed[-1]]
    for site in ("neurology", "urology"):
        desk.keys(f"client {site} --federation lungs --out {site}")
        Path(f"{site}/{site}.request.json").rename(f"{site}.request.json")
    for command in commands:
        terminal(monkeypatch, secrets=("six random words",) * 2)
        if command.startswith("join"):
            heard = desk.keys("show coordinator/coordinator.key")["files"][0]["fingerprint"]
            terminal(monkeypatch, f"{heard}\n")
        elif command.startswith("roster accept"):
            heard = desk.keys("roster show site/roster-1.json")["fingerprint"]
            terminal(monkeypatch, f"{heard}\n")
        else:
            heard = ""
        desk.said(re.sub(r'--fingerprint ".*"', f"--fingerprint {heard}", command))
        for sent in (Path("site/cardiology.request.json"), Path("bundles/cardiology.bundle.json")):
            if sent.exists():
                Path(sent.name).write_bytes(sent.read_bytes())
    assert [command.split()[0] for command in commands] == [
        "ca", "server", "client", "roster", "enrol", "join", "roster", "show", "show", "server", "revoke",
    ]  # fmt: skip
    assert sorted(entry.site for entry in read_roster(Path("roster-2.json")).entries) == [
        "neurology",
        "urology",
    ]


def test_every_command_answers_a_program(desk: Desk) -> None:
    made = desk.keys("ca c --name Lungs --days 100")
    assert (made["name"], made["passphrase"], made["days_left"]) == ("Lungs", False, 100)
    server = desk.keys("server hub --ca c --dns localhost --ip ::1 --days 10 --out tls")
    assert (server["dns"], server["ip"], server["renewed"]) == (["localhost"], ["::1"], False)
    renewed = desk.keys("server hub --ca c --out tls --renew --days 20")
    assert (renewed["dns"], renewed["days_left"], renewed["renewed"]) == (["localhost"], 20, True)
    asked = desk.keys("client ear --federation f --weight-from-examples 818 --group north --out ear")
    assert (asked["site"], asked["federation"], asked["weight"]) == ("ear", "f", 512)
    assert not re.search(r"\b818\b", Path(asked["request"]).read_text(encoding="utf-8"))
    desk.keys("client eye --federation f --out eye")
    version = desk.keys("roster make ear/ear.request.json eye/eye.request.json --federation f --out 1.json")
    answered = desk.keys(
        "enrol ear/ear.request.json --ca c --federation f --server localhost:9092 --roster 1.json --out b"
    )
    (site,) = answered["sites"]
    assert site["fingerprints"] == asked["fingerprints"]
    assert site["fingerprints"]["identity"] in {member["fingerprint"] for member in version["members"]}
    assert answered["fingerprints"] == made["fingerprints"]
    heard = answered["fingerprints"]["coordinator"]
    joined = desk.keys(f"join ear {site['bundle']} --fingerprint {heard}")
    assert joined["fingerprints"] == made["fingerprints"]
    assert (joined["server"], joined["roster"]) == ("localhost:9092", "ear/roster-1.json")
    revoked = desk.keys("revoke ear --ca c --roster 1.json --out 2.json")
    assert revoked["node_key"] == asked["fingerprints"]["node_key"]
    assert [member["site"] for member in revoked["roster"]["members"]] == ["eye"]
    shown = desk.keys("show ear c tls")
    assert shown["ok"]
    assert {file["mode"] for file in shown["files"] if file["path"].endswith(".key")} == {"0600"}


def test_a_passphrase_is_typed_twice_or_read_from_a_file_of_ones_own(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal(monkeypatch, secrets=("six random words", "six random w0rds"))
    (problem,) = desk.problems("ca c --passphrase")
    assert problem["what"] == "the two passphrases differ"
    terminal(monkeypatch, secrets=("short",))
    (problem,) = desk.problems("ca c --passphrase")
    assert "at least 12 bytes" in problem["what"]
    assert not Path("c").exists()
    terminal(monkeypatch, secrets=("six random words",) * 2)
    assert desk.keys("ca c --passphrase")["passphrase"]
    terminal(monkeypatch, secrets=("six random words",))
    desk.keys("server one --ca c --dns localhost --out tls")
    Path("words").write_text("six random words\nnot this\n", encoding="utf-8")
    Path("words").chmod(0o640)
    (problem,) = desk.problems("server two --ca c --dns localhost --out tls --passphrase-file words")
    assert (problem["code"], problem["fix"]) == ("FT630", "chmod 600 words")
    Path("words").chmod(0o600)
    desk.keys("server two --ca c --dns localhost --out tls --passphrase-file words")
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    (problem,) = desk.problems("server three --ca c --dns localhost --out tls", exit_code=2)
    assert problem["code"] == "FT109"
    assert not Path("tls/three.key").exists()


def test_a_person_is_told_what_to_compare_and_sees_no_secret(desk: Desk) -> None:
    said = desk.said("ca c") + desk.said("server hub --ca c --dns localhost --out tls")
    asked = desk.said("client ear --federation f --out ear")
    identity, coordinator = (
        desk.keys(f"show {path}")["files"][0]["fingerprint"]
        for path in ("ear/identity.key", "c/coordinator.key")
    )
    assert identity in asked
    assert "over another channel" in asked
    assert coordinator in said
    answered = desk.said("enrol ear/ear.request.json --ca c --federation f --server localhost:1 --out b")
    assert identity in answered
    assert coordinator in answered
    said += asked + answered + desk.said("show c tls ear b")
    for path in Path().rglob("*.key"):
        assert not any(line in said for line in path.read_text(encoding="utf-8").splitlines()[1:-1])


def test_at_a_terminal_the_operator_types_what_was_heard_and_cannot_copy_it(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = enrolled(desk)
    for typed in ("", "\n", "no idea\n"):
        terminal(monkeypatch, typed)
        said = desk.said("join ear b/ear.bundle.json", exit_code=7)
        assert "FT633" in said
        assert heard not in said.partition("FT633")[0]
    terminal(monkeypatch, f"{heard}\n")
    said = desk.said("join ear b/ear.bundle.json")
    assert heard not in said
    assert "localhost:1" in said
    assert Path("ear/connection.json").exists()


def test_without_a_terminal_and_a_fingerprint_nobody_joins(desk: Desk) -> None:
    enrolled(desk)
    (problem,) = desk.problems("join ear b/ear.bundle.json", exit_code=2)
    assert problem["code"] == "FT109"
    assert not Path("ear/connection.json").exists()


@pytest.mark.parametrize("line", ["revoke ear", "revoke ear --roster 1", "revoke ear --ca c --out 2"])
def test_a_removal_says_from_what(desk: Desk, line: str) -> None:
    (problem,) = desk.problems(line, exit_code=2)
    assert (problem["code"], problem["where"]) == ("FT109", "fedtune keys revoke")


def test_what_is_wrong_is_shown_with_everything_else_and_ends_with_seven(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.keys("ca c")
    desk.keys("server hub --ca c --dns localhost --days 40 --out tls")
    assert "warning" not in desk.said("show tls")
    later = utc_now() + timedelta(days=11)
    monkeypatch.setattr(keys_show, "utc_now", lambda: later)
    said = desk.said("show tls")
    assert "warning      it ends in 29 days" in said.replace("it ends in 28", "it ends in 29")
    Path("tls/hub.key").chmod(0o644)
    said = desk.said("show tls none", exit_code=7)
    assert "certificate of a server, hub" in said
    assert "chmod 600 tls/hub.key" in said
    assert "FT636" in said
    assert cli.main(["keys", "show", "tls", "--json"]) == 7
    shown = json.loads(desk.capsys.readouterr().out)
    assert not shown["ok"]
    assert [problem["code"] for file in shown["files"] for problem in file["problems"]] == ["FT630"]


def test_a_request_that_was_changed_is_no_entry_for_a_roster(desk: Desk) -> None:
    desk.keys("client ear --federation f --out ear")
    path = Path("ear/ear.request.json")
    path.write_bytes(path.read_bytes().replace(b'"weight": 1', b'"weight": 2'))
    found = desk.problems("roster make ear/ear.request.json none --federation f --out 1.json", exit_code=10)
    assert [problem["code"] for problem in found] == ["FT632", "FT632", "FT632", "FT929"]
    assert not Path("1.json").exists()


def test_the_identity_of_a_site_is_one_that_the_other_commands_take(desk: Desk) -> None:
    made = desk.keys("client ear --federation f --out ear")
    shown = desk.keys("identity ear/identity.key --show")
    assert shown["fingerprint"] == made["fingerprints"]["identity"]
    assert Identity.load(Path("ear/identity.key")).public.hex() == shown["public_key"]
