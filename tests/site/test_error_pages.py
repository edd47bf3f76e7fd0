"""The page of each error of the desk, the daemon and the operator's commands shows what is printed."""

from __future__ import annotations

import argparse
import fcntl
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support.error_pages import PAGES, assert_page_shows_the_message
from support.standing_site import standing_site

from fedtune.commands import client_operator, serving
from fedtune.config.compose import compose
from fedtune.site import node
from fedtune.site.approvals import Approvals, Subject, read_standing, write_standing
from fedtune.site.daemon import Client
from fedtune.site.folder import SiteFolder
from fedtune.site.settings import SETTINGS, load_settings, local_model, written

SITE = SiteFolder(Path("site"))
SERVER = "fedtune.example.org:9092"
TEXT = written(model="tiny", place=None)


def parsed(old: str, new: str) -> None:
    assert TEXT.count(old) == 1
    SETTINGS.parse(TEXT.replace(old, new), where="site/client.yaml")


def no_model() -> None:
    local_model(compose(["name=run", "model.name=lung-base-2"]).model, SETTINGS.parse(TEXT, where=""))


def no_run() -> None:
    client_operator.run_approve(argparse.Namespace(folder="site", run="lungs", operator=None))


def damaged() -> None:
    approvals, subject = (
        Approvals(SITE.approvals, SITE.pending),
        Subject(run="a", config="c", base_model="m", bundle="b"),
    )
    for _ in range(2):
        approvals.approve(subject, operator="me")
    SITE.approvals.write_bytes(SITE.approvals.read_bytes() + b"{}\n")
    approvals.approved(subject)


def joined(server: str = SERVER) -> SiteFolder:
    made = standing_site(Path().absolute() / "made")
    made.path.rename("site")
    text = SITE.connection.read_text(encoding="utf-8")
    old = text.partition('"server":')[2].partition('"')[2].partition('"')[0]
    SITE.connection.write_text(text.replace(old, server), encoding="utf-8")
    return SITE


def taken() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(node, "listens", lambda _: True)
        node.start_node(SITE, server=SERVER, insecure=True, port=9094, alive=lambda: True)


def left() -> None:
    joined()
    write_standing(SITE.standing, "left", operator="me", reason="")
    text = SITE.standing.read_text(encoding="utf-8")
    SITE.standing.write_text(
        text.replace(read_standing(SITE.standing).time, "2026-11-20T10:00:00+00:00"), encoding="utf-8"
    )
    Client.of(SITE)


def insecure() -> None:
    Client.of(joined(), insecure=True)


def second() -> None:
    client = Client.of(joined("127.0.0.1:9"))
    SITE.state.mkdir()
    with SITE.lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        client.serve(threading.Event())


def anothers() -> None:
    def forbidden(*_: object) -> None:
        raise PermissionError

    SITE.state.mkdir(parents=True)
    with SITE.lock.open("w") as held, pytest.MonkeyPatch.context() as patch:
        held.write("4711\n")
        held.flush()
        fcntl.flock(held, fcntl.LOCK_EX)
        patch.setattr(os, "kill", forbidden)
        serving.stop_process(SITE.lock, "the client")


RAISE: dict[str, Callable[[], object]] = {
    "FT644": no_model,
    "FT646": no_run,
    "FT680": lambda: load_settings(Path("site/client.yaml")),
    "FT681": lambda: parsed("\nthreads: null", "\nthreads: null\nthread: 4"),
    "FT682": lambda: parsed("health: 127.0.0.1:9465", "health: 0.0.0.0:9465"),
    "FT683": lambda: parsed("\nsyslog: null", "\n"),
    "FT684": damaged,
    "FT685": taken,
    "FT686": left,
    "FT687": insecure,
    "FT688": second,
    "FT689": anothers,
}
SAID = {
    "FT641": "the site has paused",
    "FT642": "the run waits for the approval of the site's operator",
    "FT645": "this run is a simulation: backend.name is not deployment",
}
"""What a coordinator reads, in its own table."""


@pytest.mark.parametrize("code", RAISE)
def test_the_page_of_an_error_shows_the_message_that_is_printed(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_page_shows_the_message(code, RAISE[code])


@pytest.mark.parametrize("code", SAID)
def test_the_page_of_a_refusal_shows_what_the_coordinator_reads(code: str) -> None:
    page = (PAGES / f"{code}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {code}: ")
    assert "\n## What to do\n" in page
    assert f"{code}: {SAID[code]}\n" in page
    source = Path(client_operator.__file__).parents[1] / "site" / "admission.py"
    assert SAID[code] in source.read_text(encoding="utf-8")


def test_every_code_of_these_numbers_is_on_this_list() -> None:
    pages = {page.stem for page in (*PAGES.glob("FT64*.md"), *PAGES.glob("FT68*.md"))}
    assert pages == {*RAISE, *SAID, "FT640"}
