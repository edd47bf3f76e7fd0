"""Each enrolled site is asked once, and has a row whatever it does."""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedtune.federation.preflight import ask_sites
from fedtune.federation.wire import (
    PROTOCOL,
    Failure,
    PreflightReply,
    PreflightRequest,
    SiteCheck,
    content,
    parse,
)
from fedtune.simulation.grid import InProcessGrid

NAMES = {2: "ear", 3: "eye", 4: "heart", 5: "lung", 6: "skin"}
REQUEST = PreflightRequest(config="{}", to_be_approved=False)


def reply(name: str) -> PreflightReply:
    return PreflightReply(
        protocol=PROTOCOL,
        site=name,
        version="0.1.0",
        flwr="1.41.0",
        python="3.11.2",
        torch="2.13.0",
        train_refused=("k_min",),
        evaluate_refused=(),
        approval="waits",
        checks=(SiteCheck(name="data", status="failed", code="FT855"),),
        checks_age_seconds=1.0,
        days_left=None,
    )


class LateGrid(InProcessGrid):
    """A node connects when it is looked for a second time, and one never answers."""

    def __init__(self, app: ClientApp, late: int, silent: int) -> None:
        super().__init__(app, len(NAMES))
        self._late, self._silent, self._looked = late, silent, 0
        self.asked: list[int] = []

    def get_node_ids(self) -> Iterable[int]:
        self._looked += 1
        there = set(NAMES) - {6}
        return sorted(there if self._looked > 1 else there - {self._late})

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        sent = list(messages)
        self.asked += [message.metadata.dst_node_id for message in sent]
        heard = [message for message in sent if message.metadata.dst_node_id != self._silent]
        return super().send_and_receive(heard, timeout=timeout)


def test_every_enrolled_site_has_a_row_whether_it_answers_or_not() -> None:
    app = ClientApp()

    @app.query("preflight")
    def answer(message: Message, _: Context) -> Message:
        assert parse(message, PreflightRequest) == REQUEST
        name = NAMES[message.metadata.dst_node_id]
        said = {
            "ear": reply("ear"),
            "eye": Failure(site="eye", code="FT641", reason="the site has paused"),
            "heart": reply("another"),
        }
        return Message(content(said[name]), reply_to=message)

    grid = LateGrid(app, late=4, silent=5)
    found = ask_sites(grid, REQUEST, run="pilot", registered=lambda: NAMES, timeout_seconds=2.0)
    rows = {site.name: site for site in found.sites}
    assert list(rows) == ["ear", "eye", "heart", "lung", "skin"]
    assert {name: (row.connected, row.code) for name, row in rows.items()} == {
        "ear": (True, None),
        "eye": (True, "FT641"),
        "heart": (True, "FT521"),
        "lung": (True, "FT606"),
        "skin": (False, "FT612"),
    }
    assert rows["ear"].train_refused == ("k_min",)
    assert [(check.name, check.code) for check in rows["ear"].checks] == [("data", "FT855")]
    assert rows["heart"].checks == ()
    assert sorted(grid.asked) == [2, 3, 4, 5]
    assert found.seconds >= 2.0
