"""Each code of the package has a page, and the message on it is the one that fedtune prints."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fedtune.coordinator.backup import back_up
from fedtune.coordinator.restore import restore
from fedtune.errors import FedtuneError
from fedtune.keys.authority import make_authority

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "reference" / "errors"
SOURCES = ("backup*.py", "restore.py", "sealed_stream.py")
NOW = datetime(2026, 11, 20, tzinfo=UTC)
WORDS = b"six random words"


def made() -> Path:
    folder = Path("coordinator")
    make_authority(folder, name="a", now=NOW)
    back_up(folder, Path("monday.backup"), passphrase=WORDS, now=NOW)
    return folder


def linked() -> None:
    make_authority(Path("coordinator"), name="a", now=NOW)
    Path("coordinator/nodes").mkdir()
    Path("coordinator/nodes/ear.pub").symlink_to("elsewhere")
    back_up(Path("coordinator"), Path("monday.backup"), passphrase=WORDS, now=NOW)


def cut() -> None:
    made()
    whole = Path("monday.backup").read_bytes()
    Path("monday.backup").write_bytes(whole[:-1])
    restore(Path("monday.backup"), Path("new"), passphrase=WORDS)


RAISE: dict[str, Callable[[], object]] = {
    "FT670": linked,
    "FT671": lambda: made() and restore(Path("monday.backup"), Path("new"), passphrase=b"five random words"),
    "FT672": cut,
    "FT673": lambda: restore(Path("monday.backup"), made(), passphrase=WORDS),
}


@pytest.mark.usefixtures("cheap_scrypt")
@pytest.mark.parametrize("code", RAISE)
def test_the_page_of_an_error_shows_the_message_that_is_printed(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FedtuneError) as caught:
        RAISE[code]()
    message = str(caught.value.problems[0]).replace(f"{tmp_path}/", "/var/lib/fedtune/")
    assert message.startswith(f"{code}: ")
    page = (PAGES / f"{code}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {code}: ")
    assert "\n## What to do\n" in page
    assert "\n".join(f"    {line}" for line in message.splitlines()) in page


def test_every_code_of_backups_is_on_this_list() -> None:
    folder = ROOT / "fedtune" / "coordinator"
    sources = [source for pattern in SOURCES for source in folder.glob(pattern)]
    raised = {code for source in sources for code in re.findall(r'"(FT67\d)"', source.read_text())}
    assert raised == set(RAISE)
    assert {page.stem for page in PAGES.glob("FT67*.md")} == set(RAISE)
