"""Who takes part, whatever sites do: waiting is bounded, nobody counts twice, everybody else is named."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.scripted_grid import Behaviour, Clock, ScriptedGrid, ScriptedNode

from fedtune.config.compose import compose
from fedtune.config.schema import Config
from fedtune.errors import FederationError
from fedtune.federation.dialogue import Dialogue
from fedtune.federation.membership import GREETING_SECONDS, PASSING, POLL_NODES_SECONDS, Membership
from fedtune.observability.events import ClientFailed, Event

NAMES = ("ear", "eye", "heart", "skin")
JOIN_SECONDS = 100.0
LIMIT = JOIN_SECONDS + GREETING_SECONDS + 2 * POLL_NODES_SECONDS
BASE = compose(["experiment=demo"])


def config(**federation: object) -> Config:
    common = {"join_timeout_seconds": JOIN_SECONDS, "clients_per_round": None, "min_replies": None}
    return replace(BASE, federation=replace(BASE.federation, **common | federation))


class Scene:
    """Four enrolled sites, and the membership of a run with them."""

    def __init__(self, behaviours: tuple[Behaviour, ...] = (), **federation: object) -> None:
        self.clock = Clock()
        self.grid = ScriptedGrid(clock=self.clock)
        self.recorded: list[Event] = []
        self.next_node = 10
        for name, behaviour in zip(NAMES, behaviours or ("well",) * 4, strict=True):
            self.enrol(name, behaviour)
        self.members = Membership(
            sites=Dialogue(grid=self.grid, timeout_seconds=30.0, record=self.recorded.append),
            config=config(**federation),
            expected=len(NAMES),
            registered=lambda: {number: node.name for number, node in self.grid.nodes.items()},
            clock=self.clock,
            sleep=self.clock.sleep,
        )

    def enrol(self, name: str, behaviour: Behaviour = "well", *, online: bool = True) -> None:
        self.leave(name)
        self.grid.nodes[self.next_node] = ScriptedNode(name, behaviour, online)
        self.next_node += 1

    def leave(self, name: str) -> None:
        self.grid.nodes = {number: node for number, node in self.grid.nodes.items() if node.name != name}

    def node(self, name: str) -> ScriptedNode | None:
        return next((node for node in self.grid.nodes.values() if node.name == name), None)

    @property
    def failures(self) -> list[ClientFailed]:
        return [event for event in self.recorded if isinstance(event, ClientFailed)]

    def codes(self) -> list[tuple[int, str, str]]:
        return [(event.round, event.client, event.code) for event in self.failures]


class Sites(RuleBasedStateMachine):
    """Sites appear, vanish, wait, pause, refuse, lie, get new keys and are removed, between rounds."""

    @initialize(
        behaviours=st.tuples(*[st.sampled_from(get_args(Behaviour))] * 4),
        online=st.tuples(*[st.booleans()] * 4),
        min_replies=st.none() | st.integers(1, 4),
        drawn=st.none() | st.integers(1, 6),
    )
    def assemble(
        self,
        behaviours: tuple[Behaviour, ...],
        online: tuple[bool, ...],
        min_replies: int | None,
        drawn: int | None,
    ) -> None:
        self.scene = Scene(behaviours, min_replies=min_replies, clients_per_round=drawn)
        self.round, self.runs = 0, True
        for name, there in zip(NAMES, online, strict=True):
            node = self.scene.node(name)
            assert node is not None
            node.online = there
        began = self.scene.clock.now
        try:
            self.scene.members.assemble()
        except FederationError as error:
            self.runs = False
            assert error.problems[0].code in ("FT604", "FT607")  # noqa: PT017  # one of two ends is right
            assert len(self.scene.members.hellos) < (min_replies or 4)
        else:
            assert len(self.scene.members.hellos) >= (min_replies or 4)
        assert self.scene.clock.now - began <= LIMIT
        self.everybody_else_is_named(set(self.scene.members.sites.nodes))

    @rule(name=st.sampled_from(NAMES), behaviour=st.sampled_from(get_args(Behaviour)))
    def change(self, name: str, behaviour: Behaviour) -> None:
        if (node := self.scene.node(name)) is not None:
            node.behaviour = behaviour

    @rule(name=st.sampled_from(NAMES))
    def come_or_go(self, name: str) -> None:
        if (node := self.scene.node(name)) is not None:
            node.online = not node.online

    @rule(name=st.sampled_from(NAMES))
    def remove(self, name: str) -> None:
        self.scene.leave(name)

    @rule(name=st.sampled_from(NAMES), behaviour=st.sampled_from(get_args(Behaviour)), online=st.booleans())
    def enrol(self, name: str, behaviour: Behaviour, online: bool) -> None:
        self.scene.enrol(name, behaviour, online=online)

    @rule(names=st.none() | st.frozensets(st.sampled_from(NAMES), min_size=1))
    def next_roster(self, names: frozenset[str] | None) -> None:
        self.scene.members.admit(frozenset(NAMES) if names is None else names)

    @precondition(lambda self: self.runs)
    @rule(arrived=st.frozensets(st.sampled_from(NAMES), max_size=2))
    def begin_round(self, arrived: frozenset[str]) -> None:
        scene, members = self.scene, self.scene.members
        self.round += 1
        arrived &= members.sites.nodes.keys()
        began, recorded = scene.clock.now, len(scene.failures)
        there = members.present(self.round, arrived=arrived)
        assert scene.clock.now - began <= LIMIT
        assert there == sorted(set(there))
        assert arrived <= set(there)
        for name in set(there) - arrived:
            node = scene.node(name)
            assert node is not None
            assert node.online
            assert members.admitted is None or name in members.admitted
        now = scene.failures[recorded:]
        assert not arrived & {event.client for event in now if event.stage == "train"}
        assert {event.round for event in now} <= {self.round}
        if len(there) < members.wanted:
            assert scene.clock.now - began >= JOIN_SECONDS
        self.everybody_else_is_named(set(there))

    def everybody_else_is_named(self, there: set[str]) -> None:
        named = {
            event.client
            for event in self.scene.failures
            if event.stage == "hello" or event.round == self.round
        }
        assert {node.name for node in self.scene.grid.nodes.values()} - there <= named

    @invariant()
    def nobody_is_named_twice_for_one_thing(self) -> None:
        said = Counter(
            (event.client, event.code, event.stage, None if event.stage == "hello" else event.round)
            for event in self.scene.failures
        )
        assert not [what for what, times in said.items() if times > 1]

    @invariant()
    def all_that_were_greeted_have_one_base_model(self) -> None:
        assert len({reply.base_hash for reply in self.scene.members.hellos.values()}) <= 1
        assert all(site == reply.site for site, reply in self.scene.members.hellos.items())
        assert "somebody-else" not in self.scene.members.hellos


TestSites = Sites.TestCase
TestSites.settings = settings(max_examples=120, stateful_step_count=25, deadline=None)


def test_all_who_are_there_are_greeted_at_once() -> None:
    scene = Scene()
    scene.members.assemble()
    assert sorted(scene.members.sites.nodes) == list(NAMES)
    assert len(scene.grid.asked) == 4
    assert scene.recorded == []


def test_who_refuses_for_good_is_not_asked_again_and_who_waits_is() -> None:
    scene = Scene(("refuses", "paused", "well", "well"), min_replies=2)
    scene.members.assemble()
    asked = Counter(scene.grid.asked)
    assert asked[10] == 1
    assert asked[11] > 5
    assert scene.codes() == [(0, "ear", "FT646"), (0, "eye", "FT641")]


@pytest.mark.parametrize("behaviour", ["pending", "paused", "silent", "crashes"])
def test_a_site_that_comes_to_itself_takes_part_from_the_next_round_on(behaviour: Behaviour) -> None:
    scene = Scene((behaviour, "well", "well", "well"), min_replies=3)
    scene.members.assemble()
    assert scene.members.present(1) == ["eye", "heart", "skin"]
    node = scene.node("ear")
    assert node is not None
    node.behaviour = "well"
    assert scene.members.present(2) == list(NAMES)
    ((_, client, code),) = scene.codes()
    assert client == "ear"
    assert code in PASSING


def test_a_site_that_was_never_there_is_named_and_may_come_late() -> None:
    scene = Scene(min_replies=3)
    node = scene.node("skin")
    assert node is not None
    node.online = False
    scene.members.assemble()
    assert scene.codes() == [(0, "skin", "FT612")]
    assert scene.members.present(1) == ["ear", "eye", "heart"]
    node.online = True
    assert scene.members.present(2) == list(NAMES)
    assert scene.codes() == [(0, "skin", "FT612")]


def test_a_site_that_is_away_is_waited_for_as_long_as_the_contract_says() -> None:
    scene = Scene(min_replies=None)
    scene.members.assemble()
    node = scene.node("skin")
    assert node is not None
    node.online = False
    began = scene.clock.now
    assert scene.members.present(1) == ["ear", "eye", "heart"]
    assert scene.clock.now - began >= JOIN_SECONDS
    assert scene.codes() == [(1, "skin", "FT612")]


def test_more_drawn_than_there_are_sites_is_waited_for_by_nobody() -> None:
    scene = Scene(clients_per_round=9)
    scene.members.assemble()
    began = scene.clock.now
    assert len(scene.members.present(1)) == 4
    assert scene.clock.now == began


def test_a_site_that_was_removed_leaves_the_run_and_is_not_waited_for() -> None:
    scene = Scene()
    scene.members.assemble()
    scene.leave("skin")
    began = scene.clock.now
    assert scene.members.present(1) == ["ear", "eye", "heart"]
    assert scene.clock.now == began
    assert scene.codes() == [(1, "skin", "FT905")]


def test_a_site_that_the_next_roster_has_not_leaves_and_comes_back_with_the_one_after() -> None:
    scene = Scene()
    scene.members.assemble()
    scene.members.admit(frozenset(NAMES[:3]))
    assert scene.members.present(1) == ["ear", "eye", "heart"]
    scene.members.admit(frozenset(NAMES))
    assert scene.members.present(2) == list(NAMES)


def test_a_site_with_a_new_node_key_goes_on_under_its_name() -> None:
    scene = Scene()
    scene.members.assemble()
    scene.enrol("skin")
    assert scene.members.present(1) == list(NAMES)
    assert scene.members.sites.nodes["skin"] == 14
    assert scene.recorded == []


def test_a_node_that_nobody_enrolled_is_not_even_asked() -> None:
    scene = Scene()
    scene.members.registered = lambda: {10: "ear", 11: "eye", 12: "heart"}
    scene.members.expected = 3
    scene.members.assemble()
    assert sorted(scene.grid.asked) == [10, 11, 12]


def test_a_run_that_goes_on_refuses_another_base_model_than_its_earlier_rounds_had() -> None:
    scene = Scene()
    scene.members.base_hash = "e" * 64
    with pytest.raises(FederationError, match=r"FT607.*FT603.*the run's earlier rounds, eeeeeeeeeeee"):
        scene.members.assemble()


def test_without_a_single_enrolled_site_a_run_does_not_begin() -> None:
    scene = Scene()
    scene.grid.nodes = {}
    scene.members.expected = 0
    with pytest.raises(FederationError, match=r"FT604: 0 of 0 clients appeared in 100 s, 1 are required"):
        scene.members.assemble()


def test_the_quorums_message_names_each_site_once_and_nobody_who_is_usable() -> None:
    scene = Scene()
    sites = scene.members.sites
    for reason in ("late", "later"):
        sites.fail("train", 3, "ear", "FT606", reason)
        sites.fail("train", 3, "eye", "FT606", reason)
    with pytest.raises(FederationError) as caught:
        sites.require(3, {"eye", "heart"}, 3)
    what = caught.value.problems[0].what
    assert what == "2 usable replies where 3 are required; failed: ear at train (FT606: later)"
