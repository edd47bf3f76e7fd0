"""``fedtune keys``: an identity, a roster that operators agree on, and the journal of opened updates."""

from __future__ import annotations

import hashlib
import io
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fedtune import cli
from fedtune.secagg.files import read_roster
from fedtune.secagg.identity import Identity
from fedtune.secagg.pinning import PinnedRoster
from fedtune.secagg.roster import fingerprint
from fedtune.secagg.spent import SpentJournal, UpdateOrigin

Captured = pytest.CaptureFixture[str]
SITES = ("ear", "eye", "heart", "lung")


@dataclass(frozen=True)
class Desk:
    """One folder, and the command line at work in it."""

    folder: Path
    capsys: Captured

    def keys(self, *arguments: str | Path) -> Any:
        """What a command that succeeds prints as JSON."""
        assert cli.main(["keys", *map(str, arguments), "--json"]) == 0
        return json.loads(self.capsys.readouterr().out)

    def said(self, *arguments: str | Path) -> str:
        """What a command that succeeds prints for a person; nothing goes to stdout."""
        assert cli.main(["keys", *map(str, arguments)]) == 0
        out, err = self.capsys.readouterr()
        assert out == ""
        return err

    def problems(self, *arguments: str | Path, exit_code: int = 10) -> list[dict[str, str]]:
        assert cli.main(["keys", *map(str, arguments), "--json"]) == exit_code
        out, err = self.capsys.readouterr()
        found: list[dict[str, str]] = json.loads(out)["error"]["problems"]
        assert len(err.splitlines()) == 3 * len(found)
        return found

    def path(self, name: str) -> Path:
        return self.folder / name

    def apply(self, site: str, *more: str, federation: str = "f") -> Path:
        """An identity where there is none, and an entry."""
        key, out = self.path(f"{site}.pem"), self.path(f"{site}.json")
        if not key.exists():
            self.keys("identity", key)
        self.keys(
            "roster",
            "entry",
            "--identity",
            key,
            "--federation",
            federation,
            "--site",
            site,
            "--out",
            out,
            *more,
        )
        return out

    def make(self, name: str, *sites: str, after: Path | None = None) -> Path:
        entries = [self.path(f"{site}.json") for site in sites]
        out = self.path(name)
        more = [] if after is None else ["--after", after]
        self.keys("roster", "make", *entries, "--federation", "f", "--out", out, *more)
        return out

    def accept(self, roster: Path, pin: Path | None = None) -> Path:
        pin = pin or self.path("pin.json")
        heard = fingerprint(read_roster(roster).hash)
        self.keys("roster", "accept", "--pin", pin, roster, "--fingerprint", heard)
        return pin

    def countersign(self, site: str, roster: Path, *more: str | Path) -> Any:
        key, pin = self.path(f"{site}.pem"), self.path("pin.json")
        return self.keys("roster", "countersign", "--identity", key, "--pin", pin, roster, *more)


@pytest.fixture
def desk(tmp_path: Path, capsys: Captured) -> Desk:
    return Desk(tmp_path, capsys)


@pytest.fixture
def first(desk: Desk) -> Path:
    """Version 1 of a roster of four sites."""
    for site in SITES:
        desk.apply(site)
    return desk.make("1.json", *SITES)


def terminal(monkeypatch: pytest.MonkeyPatch, typed: str) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal(typed))


def test_an_identity_is_made_once_for_its_owner_alone_and_named_by_its_fingerprint(desk: Desk) -> None:
    key = desk.path("site.pem")
    made = desk.keys("identity", key)
    assert key.stat().st_mode & 0o777 == 0o600
    assert made["public_key"] == Identity.load(key).public.hex()
    assert made["fingerprint"] == fingerprint(Identity.load(key).public)
    before = key.read_bytes()
    assert [problem["code"] for problem in desk.problems("identity", key)] == ["FT930"]
    assert key.read_bytes() == before
    shown = desk.keys("identity", key, "--show")
    assert shown == made | {"made": False}
    assert made["fingerprint"] in desk.said("identity", key, "--show")


def test_the_private_key_is_never_printed(desk: Desk) -> None:
    key = desk.path("site.pem")
    printed = desk.said("identity", key) + desk.said("identity", key, "--show")
    body = key.read_text(encoding="ascii").splitlines()[1]
    assert body not in printed


@pytest.mark.parametrize(("content", "mode"), [(None, 0), ("key", 0o640), ("nonsense", 0o600)])
def test_a_key_that_is_missing_damaged_or_readable_by_others_is_refused(
    desk: Desk, content: str | None, mode: int
) -> None:
    key = desk.path("site.pem")
    if content == "key":
        desk.keys("identity", key)
    elif content:
        key.write_text(content, encoding="utf-8")
    if content:
        key.chmod(mode)
    entry = [
        "roster",
        "entry",
        "--federation",
        "f",
        "--site",
        "s",
        "--out",
        desk.path("e"),
        "--identity",
        key,
    ]
    for arguments in (["identity", key, "--show"], entry):
        (problem,) = desk.problems(*arguments)
        assert (problem["code"], problem["where"]) == ("FT928", str(key))
    assert not desk.path("e").exists()


def test_a_folder_that_is_not_there_is_named_and_nothing_is_left(desk: Desk) -> None:
    (problem,) = desk.problems("identity", desk.path("none") / "site.pem", exit_code=8)
    assert problem["code"] == "FT707"
    assert "resume" not in problem["fix"]
    assert list(desk.folder.iterdir()) == []


def test_an_entry_declares_the_bucket_and_not_the_number_of_examples(desk: Desk) -> None:
    path = desk.apply("ear", "--weight-from-examples", "818", "--group", "north")
    entry = json.loads(path.read_text(encoding="utf-8"))
    assert (entry["weight"], entry["group"], entry["federation"]) == (512, "north", "f")
    # A number by itself: a key in hexadecimal holds these digits once in a while.
    assert re.search(r"\b818\b", path.read_text(encoding="utf-8")) is None
    assert json.loads(desk.apply("eye", "--weight", "4").read_text(encoding="utf-8"))["weight"] == 4


def test_an_impossible_entry_is_refused_with_everything_that_is_wrong(desk: Desk) -> None:
    key, out = desk.path("k"), desk.path("e")
    desk.keys("identity", key)
    asked = ["--federation", "f\n", "--site", "\x1b[2J", "--weight", "37"]
    found = desk.problems("roster", "entry", "--identity", key, *asked, "--out", out)
    assert [problem["code"] for problem in found] == ["FT929"] * 3
    assert not out.exists()


def test_the_coordinator_prints_every_site_with_its_fingerprint_and_the_rosters(desk: Desk) -> None:
    prints = {}
    for site in SITES:
        desk.apply(site)
        prints[site] = desk.keys("identity", desk.path(f"{site}.pem"), "--show")["fingerprint"]
    entries = [desk.path(f"{site}.json") for site in SITES]
    said = desk.said("roster", "make", *entries, "--federation", "f", "--out", desk.path("1.json"))
    for site, printed in prints.items():
        assert any(line.split() == [printed, "weight", "1", site] for line in said.splitlines())
    roster = read_roster(desk.path("1.json"))
    assert roster.version == 1
    assert fingerprint(roster.hash) in said
    shown = desk.keys("roster", "show", desk.path("1.json"))
    assert {member["site"]: member["fingerprint"] for member in shown["members"]} == prints
    assert shown["fingerprint"] == fingerprint(roster.hash)


def test_the_next_version_follows_and_says_who_joined_left_and_has_another_key(
    desk: Desk, first: Path
) -> None:
    before = {
        member["site"]: member["fingerprint"] for member in desk.keys("roster", "show", first)["members"]
    }
    desk.path("eye.pem").unlink()
    for site in ("eye", "skin"):
        desk.apply(site)
    entries = [desk.path(f"{site}.json") for site in ("ear", "eye", "heart", "skin")]
    out = desk.path("2.json")
    said = desk.said("roster", "make", *entries, "--federation", "f", "--after", first, "--out", out)
    second = read_roster(out)
    assert (second.version, second.previous) == (2, read_roster(first).hash)
    changes = [line.split() for line in said.splitlines() if line.strip()[0] in "+-"]
    assert [(change[0], change[-1]) for change in changes] == [
        ("-", "eye"), ("-", "lung"), ("+", "eye"), ("+", "skin")
    ]  # fmt: skip
    assert changes[0][1] == before["eye"] != changes[2][1]


def test_everything_that_is_wrong_with_any_file_is_reported_at_once_and_nothing_written(
    desk: Desk, first: Path
) -> None:
    desk.apply("stranger", federation="another")
    forged = json.loads(desk.path("eye.json").read_text(encoding="utf-8")) | {"weight": 2}
    desk.path("forged.json").write_text(json.dumps(forged), encoding="utf-8")
    desk.path("pickle.json").write_bytes(b"\x80\x04cos\nsystem\n.")
    names = ["ear.json", "stranger.json", "forged.json", "pickle.json", "missing.json"]
    before = first.read_bytes()
    found = desk.problems(
        "roster", "make", *map(desk.path, names), "--federation", "f", "--after", desk.path("ear.json"),
        "--out", first,
    )  # fmt: skip
    assert [problem["code"] for problem in found] == ["FT930", "FT929", "FT929", "FT929", "FT929", "FT918"]
    for problem, name in zip(found[1:5], names[1:], strict=True):
        assert problem["where"].startswith(str(desk.path(name)))
    assert first.read_bytes() == before


def test_one_site_twice_is_no_roster(desk: Desk) -> None:
    entry = desk.apply("ear")
    found = desk.problems("roster", "make", entry, entry, "--federation", "f", "--out", desk.path("1.json"))
    assert {problem["what"] for problem in found} == {"ear is there more than once"}


def test_a_version_of_another_federation_is_not_followed(desk: Desk, first: Path) -> None:
    entry, out = desk.apply("ear", federation="g"), desk.path("2.json")
    found = desk.problems("roster", "make", entry, "--federation", "g", "--after", first, "--out", out)
    assert [(problem["code"], problem["where"]) for problem in found] == [("FT918", str(first))]


def test_showing_a_roster_accepts_nothing_and_no_name_reaches_the_terminal_as_a_command(
    desk: Desk, first: Path
) -> None:
    before = sorted(desk.folder.iterdir())
    assert "not accepted" in desk.said("roster", "show", first)
    assert sorted(desk.folder.iterdir()) == before
    text = first.read_text(encoding="utf-8").replace('"ear"', '"e\\u001b[2Jr"')
    first.write_text(text, encoding="utf-8")
    assert cli.main(["keys", "roster", "show", str(first)]) == 10
    assert "\x1b" not in desk.capsys.readouterr().err


def test_an_operator_accepts_with_the_fingerprint_that_was_heard(desk: Desk, first: Path) -> None:
    pin, heard = desk.path("pin.json"), fingerprint(read_roster(first).hash)
    (problem,) = desk.problems("roster", "accept", "--pin", pin, first, "--fingerprint", "aaaa-bbbb")
    assert problem["code"] == "FT918"
    assert not pin.exists()
    spoken = heard.upper().replace("-", " ")
    assert desk.keys("roster", "accept", "--pin", pin, first, "--fingerprint", spoken)["pin"] == str(pin)
    assert PinnedRoster(pin).roster == read_roster(first)


def test_at_a_terminal_the_operator_sees_the_roster_and_types_what_was_heard(
    desk: Desk, first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin, heard = desk.path("pin.json"), fingerprint(read_roster(first).hash)
    for typed in ("", "\n", "no idea\n"):
        terminal(monkeypatch, typed)
        assert cli.main(["keys", "roster", "accept", "--pin", str(pin), str(first)]) == 10
        assert "FT918" in desk.capsys.readouterr().err
        assert not pin.exists()
    terminal(monkeypatch, f"{heard}\n")
    said = desk.said("roster", "accept", "--pin", pin, first)
    assert said.index(heard) < said.index("The fingerprint that you heard: ")
    for entry in read_roster(first).entries:
        assert fingerprint(entry.identity) in said
    assert PinnedRoster(pin).roster.version == 1


def test_without_a_terminal_and_a_fingerprint_nothing_is_accepted(desk: Desk, first: Path) -> None:
    pin = desk.path("pin.json")
    (problem,) = desk.problems("roster", "accept", "--pin", pin, first, exit_code=2)
    assert problem["code"] == "FT109"
    assert "terminal" in problem["what"]
    assert not pin.exists()


def test_older_and_forked_versions_are_never_accepted(desk: Desk, first: Path) -> None:
    second = desk.make("2.json", *SITES[:3], after=first)
    fork = desk.make("2-fork.json", *SITES[1:], after=first)
    pin = desk.accept(first)
    desk.accept(second)
    for roster in (first, second, fork):
        heard = fingerprint(read_roster(roster).hash)
        (problem,) = desk.problems("roster", "accept", "--pin", pin, roster, "--fingerprint", heard)
        assert "never go back or fork" in problem["what"]
    assert PinnedRoster(pin).roster == read_roster(second)


def test_a_site_that_missed_versions_names_them_all_and_bad_ones_are_reported_together(
    desk: Desk, first: Path
) -> None:
    second = desk.make("2.json", *SITES[:3], after=first)
    third = desk.make("3.json", *SITES, after=second)
    pin, heard = desk.accept(first), fingerprint(read_roster(third).hash)
    found = desk.problems(
        "roster", "accept", "--pin", pin, desk.path("x"), desk.path("y"), third, "--fingerprint", heard
    )
    assert [problem["where"] for problem in found] == [str(desk.path("x")), str(desk.path("y"))]
    desk.keys("roster", "accept", "--pin", pin, second, third, "--fingerprint", heard)
    assert PinnedRoster(pin).roster.version == 3


def test_a_damaged_pin_file_is_named(desk: Desk, first: Path) -> None:
    pin = desk.accept(first)
    pin.write_text("{}", encoding="utf-8")
    (problem,) = desk.problems("roster", "accept", "--pin", pin, first, "--quorum")
    assert problem["code"] == "FT918"
    assert problem["where"].startswith(str(pin))


def test_a_quorum_of_members_lets_a_site_follow_and_fewer_do_not(desk: Desk, first: Path) -> None:
    desk.apply("skin")
    second = desk.make("2.json", *SITES, "skin", after=first)
    pin = desk.accept(first)
    for site in SITES[:2]:
        desk.countersign(site, second)
    (problem,) = desk.problems("roster", "accept", "--pin", pin, second, "--quorum")
    assert "has 2 countersignatures of pinned members, 3 are needed" in problem["what"]
    assert len(desk.countersign(SITES[2], second)["countersigned_by"]) == 3
    assert desk.keys("roster", "accept", "--pin", pin, second, "--quorum")["version"] == 2


def test_countersigning_twice_adds_nothing_and_another_file_leaves_the_first_alone(
    desk: Desk, first: Path
) -> None:
    second = desk.make("2.json", *SITES[:3], after=first)
    desk.accept(first)
    untouched, out = second.read_bytes(), desk.path("2-ear.json")
    desk.countersign("ear", second, "--out", out)
    assert second.read_bytes() == untouched
    signed = out.read_bytes()
    desk.countersign("ear", out)
    assert out.read_bytes() == signed
    assert read_roster(out).vouchers() == {Identity.load(desk.path("ear.pem")).public}


def test_only_a_pinned_member_countersigns_and_only_the_version_that_follows(desk: Desk, first: Path) -> None:
    desk.apply("skin")
    second = desk.make("2.json", *SITES, "skin", after=first)
    pin = desk.accept(first)
    before = second.read_bytes()
    asked = ["roster", "countersign", "--pin", pin, "--identity"]
    (problem,) = desk.problems(*asked, desk.path("skin.pem"), second)
    assert "no member of version 1" in problem["what"]
    (problem,) = desk.problems(*asked, desk.path("ear.pem"), first)
    assert "does not follow" in problem["what"]
    found = desk.problems(
        "roster", "countersign", "--pin", desk.path("p"), "--identity", desk.path("i"), desk.path("r")
    )
    assert [problem["where"] for problem in found] == [str(desk.path(name)) for name in ("i", "p", "r")]
    assert second.read_bytes() == before


def origin(name: str) -> UpdateOrigin:
    same = hashlib.sha256(b"same").digest()
    samples = hashlib.sha256(name.encode()).digest()
    return UpdateOrigin(base=same, adapter=same, config=same, samples=samples)


@pytest.fixture
def journal(desk: Desk) -> Path:
    """Two opened updates."""
    path = desk.path("spent.jsonl")
    for number, name in enumerate(("one", "two"), start=1):
        SpentJournal(path).spend(origin(name), run="pilot\x1b[2J", round_number=number, attempt=1)
    return path


def test_the_journal_is_listed_and_left_as_it_is(desk: Desk, journal: Path) -> None:
    before = journal.read_bytes()
    entries = desk.keys("spent", journal)["entries"]
    assert [(entry["entry"], entry["event"], entry["round"], entry["released_by"]) for entry in entries] == [
        (1, "spent", 1, None), (2, "spent", 2, None)
    ]  # fmt: skip
    assert entries[0]["samples"] == origin("one").samples.hex()
    said = desk.said("spent", journal)
    assert "opened: run pilot?[2J, round 2, attempt 1" in said
    assert journal.read_bytes() == before


def test_an_operator_releases_an_entry_once_with_a_name_and_a_reason_that_are_kept(
    desk: Desk, journal: Path
) -> None:
    by = ["--operator", "A. Lovelace", "--reason", "the coordinator lost its disk"]
    entries = desk.keys("spent", journal, "--release", "2", *by)["entries"]
    assert [entry.get("released_by") for entry in entries] == [None, 3, None]
    assert (entries[2]["operator"], entries[2]["reason"]) == (by[1], by[3])
    SpentJournal(journal).check(origin("two"))
    said = desk.said("spent", journal)
    assert "released by entry 3: run pilot" in said
    assert "release by A. Lovelace: the coordinator lost its disk" in said
    before = journal.read_bytes()
    for number, words in (("2", "released by entry 3"), ("3", "a release itself"), ("9", "no entry 9")):
        (problem,) = desk.problems("spent", journal, "--release", number, *by)
        assert problem["code"] == "FT912"
        assert words in problem["what"]
    assert journal.read_bytes() == before


def test_an_older_entry_of_an_update_that_was_opened_again_does_not_release_the_newer(
    desk: Desk, journal: Path
) -> None:
    by = ["--operator", "A", "--reason", "r"]
    desk.keys("spent", journal, "--release", "1", *by)
    SpentJournal(journal).spend(origin("one"), run="pilot", round_number=3, attempt=1)
    (problem,) = desk.problems("spent", journal, "--release", "1", *by)
    assert "released by entry 3" in problem["what"]
    assert desk.keys("spent", journal, "--release", "4", *by)["entries"][3]["released_by"] == 5


@pytest.mark.parametrize(
    "given",
    [["--release", "1"], ["--operator", "A"], ["--release", "1", "--operator", "A"], ["--reason", "r"]],
)
def test_a_release_without_a_name_or_a_reason_is_refused(desk: Desk, journal: Path, given: list[str]) -> None:
    before = journal.read_bytes()
    (problem,) = desk.problems("spent", journal, *given, exit_code=2)
    assert problem["code"] == "FT109"
    (problem,) = desk.problems("spent", journal, "--release", "1", "--operator", " ", "--reason", "r")
    assert "operator's name" in problem["what"]
    assert journal.read_bytes() == before


def test_a_journal_that_is_not_there_is_not_made(desk: Desk) -> None:
    (problem,) = desk.problems("spent", desk.path("spent.jsonl"))
    assert problem["code"] == "FT919"
    assert list(desk.folder.iterdir()) == []


@pytest.mark.parametrize(
    "damage",
    [{"time": "now"}, {"time": 1e300}, {"run": 1}, {"event": "other"}, {"base": "00"}, {"round": None}],
)
def test_every_damaged_line_of_the_journal_is_named(
    desk: Desk, journal: Path, damage: dict[str, Any]
) -> None:
    lines = [json.loads(line) | damage for line in journal.read_text(encoding="utf-8").splitlines()]
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    found = desk.problems("spent", journal)
    assert [problem["where"] for problem in found] == [f"{journal}, line {number}" for number in (1, 2)]
    assert {problem["code"] for problem in found} == {"FT919"}
