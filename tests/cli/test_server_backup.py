"""``fedtune server backup`` and ``restore``: a passphrase from a person or a file, and what was done."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest
from support.enrolment import Coordinator

from fedtune.commands import passphrases
from fedtune.commands.server_backup import run_backup, run_restore
from fedtune.commands.server_backup_arguments import add_backup
from fedtune.coordinator import sealed_stream
from fedtune.errors import ConfigError, FederationError

Captured = pytest.CaptureFixture[str]


def server(*arguments: str | Path) -> int:
    parser = argparse.ArgumentParser()
    add_backup(parser.add_subparsers(dest="command"))
    parsed = parser.parse_args([*map(str, arguments)])
    return {"backup": run_backup, "restore": run_restore}[parsed.command](parsed)


@pytest.fixture(autouse=True)
def cheap_scrypt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed_stream, "_SCRYPT_N", 2**4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    hub = Coordinator(tmp_path)
    hub.begin()
    (hub.folder / "notes.txt").touch()
    return hub.folder


@pytest.fixture
def words(tmp_path: Path) -> Path:
    path = tmp_path / "words"
    path.touch(0o600)
    path.write_text("six random words\n")
    return path


def type_in(monkeypatch: pytest.MonkeyPatch, *typed: str) -> list[str]:
    """Let a person type; returns what is asked."""
    asked: list[str] = []
    answers = iter(typed)

    def getpass(prompt: str, stream: object) -> str:
        asked.append(prompt)
        return next(answers)

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(passphrases.getpass, "getpass", getpass)
    return asked


def test_there_and_back_for_a_program(folder: Path, words: Path, tmp_path: Path, capsys: Captured) -> None:
    out, back = tmp_path / "monday", tmp_path / "back"
    assert server("backup", folder, "--out", out, "--passphrase-file", words, "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert made == {
        "backup": str(out),
        "size": out.stat().st_size,
        "files": 3,
        "bytes": sum((folder / name).stat().st_size for name in ("ca.key", "ca.pem", "coordinator.key")),
        "left_out": ["notes.txt"],
    }
    assert server("restore", back, "--from", out, "--passphrase-file", words, "--json") == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["folder"], done["files"], done["bytes"]) == (str(back), 3, made["bytes"])
    assert done["made"].endswith("+00:00")
    assert sorted(path.name for path in back.iterdir()) == ["ca.key", "ca.pem", "coordinator.key"]


def test_a_person_types_a_new_passphrase_twice_and_an_old_one_once(
    folder: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = type_in(monkeypatch, "six random words", "six random words", "six random words")
    assert server("backup", folder, "--out", tmp_path / "monday") == 0
    assert server("restore", tmp_path / "back", "--from", tmp_path / "monday") == 0
    assert asked == ["New passphrase of the backup: ", "The same again: ", "Passphrase of the backup: "]
    out, err = capsys.readouterr()
    assert out == ""
    assert "not in it: 'notes.txt'" in err
    assert "the server that it replaces is off for good" in err


def test_two_passphrases_that_differ_or_are_short_make_no_backup(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for typed, said in ((("six random words", "six random word"), "differ"), (("short",), "at least 12")):
        type_in(monkeypatch, *typed)
        with pytest.raises(FederationError, match=said):
            server("backup", folder, "--out", tmp_path / "monday")
    assert not (tmp_path / "monday").exists()


def test_without_a_terminal_a_file_is_asked_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    with pytest.raises(ConfigError, match="FT109"):
        server("backup", folder, "--out", tmp_path / "monday")
    with pytest.raises(ConfigError, match="give --passphrase-file FILE"):
        server("restore", tmp_path / "back", "--from", tmp_path / "monday")


def test_a_passphrase_that_others_can_read_is_refused(folder: Path, words: Path, tmp_path: Path) -> None:
    words.chmod(0o644)
    with pytest.raises(FederationError, match="FT630"):
        server("backup", folder, "--out", tmp_path / "monday", "--passphrase-file", words)
