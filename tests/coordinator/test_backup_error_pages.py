"""Each code of the package has a page, and the message on it is the one that fedtune prints."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from fedtune.coordinator.backup import back_up
from fedtune.coordinator.notify import Notice
from fedtune.coordinator.notify_settings import KINDS, NotifySettings, parse_notify
from fedtune.coordinator.restore import restore
from fedtune.errors import FedtuneError
from fedtune.keys.authority import make_authority

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "reference" / "errors"
SOURCES = ("backup*.py", "restore.py", "sealed_stream.py", "notify*.py")
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
    "FT654": lambda: parse_notify({"webhook": "http://chat.example.org/hooks/7f3a"}, where="server.yaml"),
}
LOGGED = {
    "FT655": "the command of notify failed at quorum_lost: it ended with 1",
    "FT656": "the webhook at chat.example.org did not take quorum_lost: it answered 404",
}
"""What `test_notify.py` finds in the log."""


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


@pytest.mark.parametrize("code", LOGGED)
def test_the_page_of_what_is_only_logged_shows_its_line(code: str) -> None:
    page = (PAGES / f"{code}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {code}: ")
    assert f"\n    {LOGGED[code]}\n" in page
    assert "\n## What to do\n" in page


def test_the_reference_lists_every_key_kind_and_field_of_a_notice() -> None:
    page = (ROOT / "docs" / "reference" / "notify.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)`", page, re.MULTILINE)
    notice = Notice(kind="failed", federation="f", what="", when=NOW)
    keys = [field.name for field in fields(NotifySettings)]
    assert listed == [*keys, *KINDS, *notice.as_json()]
    example = yaml.safe_load(page.partition("```yaml\n")[2].partition("```")[0])
    assert parse_notify(example["notify"], where="notify.md").on == KINDS


def test_every_code_of_backups_and_notices_is_on_this_list() -> None:
    folder = ROOT / "fedtune" / "coordinator"
    sources = [source for pattern in SOURCES for source in folder.glob(pattern)]
    raised = {
        code for source in sources for code in re.findall(r'"(FT(?:67\d|65[4-9]))"', source.read_text())
    }
    assert raised == {*RAISE, *LOGGED}
    pages = {page.stem for pattern in ("FT67*.md", "FT65[4-9].md") for page in PAGES.glob(pattern)}
    assert pages == {*RAISE, *LOGGED}
