"""Each code of the package has a page, and the message on it is the one that fedtune prints."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support.enrolment import NOW, Coordinator, never_asked
from support.error_pages import PAGES, assert_page_shows_the_message

import fedtune.keys
from fedtune.errors import FederationError
from fedtune.keys.authority import make_authority, read_authority
from fedtune.keys.inspection import inspect
from fedtune.keys.joining import check
from fedtune.keys.node import make_node
from fedtune.keys.private import new_key, read_pem_key
from fedtune.keys.problems import FIXES
from fedtune.keys.removal import remove_site
from fedtune.keys.request import read_request, sign_request
from fedtune.keys.server import ServerOrder, make_server
from fedtune.secagg.entry import apply_for_roster
from fedtune.secagg.identity import Identity

FOLDER = Path("coordinator")


def others_may_read() -> None:
    Path("hub.key").touch(0o640)
    Path("hub.key").chmod(0o640)
    read_pem_key(Path("hub.key"), "the server's key")


def ended() -> None:
    make_authority(FOLDER, name="a", now=datetime(2021, 1, 1, tzinfo=UTC) - timedelta(days=9), days=9)
    read_authority(FOLDER, NOW)


def stolen() -> None:
    identity = Identity.generate()
    application = apply_for_roster(identity, federation="f", site="cardiology")
    one, two = (sign_request(application, identity=identity, node=new_key()) for _ in range(2))
    path = Path("cardiology.request.json")
    path.write_bytes(
        one.to_json().replace(one.node_signature.hex().encode(), two.node_signature.hex().encode())
    )
    read_request(path)


def another() -> None:
    coordinator = Coordinator(Path())
    coordinator.begin()
    coordinator.ask("cardiology")
    coordinator.answer("cardiology", out=".")
    make_node(Path("new"), site="cardiology", federation="f")
    check(Path("new"), Path("cardiology.bundle.json"), NOW)


def twice() -> None:
    FOLDER.mkdir()
    (FOLDER / "ca.key").touch()
    make_authority(FOLDER, name="a", now=NOW)


def wildcard() -> None:
    make_server(FOLDER, ServerOrder(name="hub", dns=("*.example.org",), out=Path()), never_asked, NOW)


def notes() -> None:
    Path("notes.json").write_text("{}")
    raise FederationError(inspect(Path("notes.json"), NOW)[0].problems)


RAISE: dict[str, Callable[[], object]] = {
    "FT630": others_may_read,
    "FT631": ended,
    "FT632": stolen,
    "FT633": another,
    "FT634": twice,
    "FT635": wildcard,
    "FT636": notes,
    "FT637": lambda: remove_site("cardiology", folder=FOLDER),
}


@pytest.mark.parametrize("code", RAISE)
def test_the_page_of_an_error_shows_the_message_that_is_printed(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_page_shows_the_message(code, RAISE[code])


def test_every_code_that_the_package_raises_is_on_this_list() -> None:
    sources = Path(fedtune.keys.__file__).parent.glob("*.py")
    raised = {code for source in sources for code in re.findall(r'"(FT6\d+)"', source.read_text())}
    assert raised == set(RAISE) == set(FIXES)
    assert {page.stem for page in PAGES.glob("FT63*.md")} == set(RAISE)
