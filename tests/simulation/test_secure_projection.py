"""``projection`` under secure aggregation, end to end: two rounds for one training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message
from simulation.test_secure import (
    FOUR,
    SECURE,
    WatchedGrid,
    adapter_after,
    events,
    failures,
    grid,
    trip,
)
from support.tiny_federation import write_rows

import fedtune
from fedtune.errors import FederationError
from fedtune.observability.events import ClientTrained, QuorumMissed, SecureSum
from fedtune.secagg.messages import Kind

Overrides = Callable[..., list[str]]

PROJECTION = {**SECURE, "aggregation": "projection", "federation__rounds": 2, "training__steps_per_round": 2}

__all__ = ["grid"]


@pytest.fixture
def four_overrides(tiny_overrides: Overrides, tmp_path: Path) -> Overrides:
    write_rows(tmp_path / "rows.jsonl", FOUR)
    return tiny_overrides


def sums(run: fedtune.Run) -> dict[int, SecureSum]:
    return {event.round: event for event in events(run, SecureSum) if isinstance(event, SecureSum)}


def test_two_secure_rounds_are_one_plain_round_and_a_fit_that_missed_its_quorum_is_gone_on_with(
    tiny_overrides: Overrides, grid: type[WatchedGrid], tmp_path: Path
) -> None:
    plain_rounds = {
        **PROJECTION,
        "secagg": "off",
        "federation__rounds": 1,
        "aggregation__weighting": "uniform",
    }
    del plain_rounds["secagg__k_min"]
    plain = fedtune.simulate(tiny_overrides(name="plain", **plain_rounds))
    fits: list[Message] = []

    def lose_a_fit(message: Message) -> bool:
        about_round_2 = message.metadata.message_type == "train" and '"round":2' in str(
            message.content["fedtune"]["json"]
        )
        if about_round_2 and message.metadata.dst_node_id == 3 and not fits:
            fits.append(message)
            return True
        return False

    grid.lose = staticmethod(lose_a_fit)
    with pytest.raises(FederationError, match="FT607"):
        fedtune.simulate(tiny_overrides(**PROJECTION))
    assert len([*(tmp_path / "runs" / "tiny" / "sites").glob("*.kept/000001.*")]) == 3
    run = fedtune.simulate(tiny_overrides(resume="true", **PROJECTION))
    for name, value in adapter_after(plain, 1).items():
        np.testing.assert_allclose(adapter_after(run, 2)[name], value, rtol=0, atol=1e-7)
    trained = [event for event in events(run, ClientTrained) if isinstance(event, ClientTrained)]
    assert {(event.round, event.steps) for event in trained} == {(1, 2), (2, 0)}
    assert len([event for event in trained if event.round == 1]) == 3, "nobody trained again"
    assert not [*(run.path / "sites").glob("*.kept/*")], "nothing is kept once it was fitted"
    assert run.summary["held_out_loss"]["federated"] < run.summary["held_out_loss"]["base"]
    assert {number: event.opened for number, event in sums(run).items()} == {1: True, 2: True}


def test_a_site_that_lost_its_training_drops_out_and_where_too_many_did_B_stays(
    four_overrides: Overrides, grid: type[WatchedGrid], tmp_path: Path
) -> None:
    def lose_what_was_kept(message: Message) -> None:
        fits = message.metadata.message_type == "train" and '"factors":["B"]' in str(
            message.content["fedtune"]["json"]
        )
        gone = {2: ("eye",), 4: ("eye", "heart")}
        for number, names in gone.items():
            if fits and f'"round":{number}' in str(message.content["fedtune"]["json"]):
                for name in names:
                    for path in (tmp_path / "runs" / "tiny" / "sites").glob(f"{name}.kept/*"):
                        path.unlink()

    grid.tamper = staticmethod(lose_what_was_kept)
    settings = {**PROJECTION, "federation__rounds": 4, "federation__min_replies": 3}
    run = fedtune.simulate(four_overrides(**settings))
    assert sorted((r, name, code) for r, name, _, code in failures(run)) == [
        (2, "eye", "FT615"),
        (4, "eye", "FT615"),
        (4, "heart", "FT615"),
    ]
    assert set(sums(run)[2].clients) == set(FOUR) - {"eye"}
    assert set(sums(run)[3].clients) == set(FOUR), "who had nothing to fit trains again"
    assert "2 sites have nothing left to fit, 2 have, and 3 are required: B stays" in str(sums(run)[4].reason)
    assert run.summary["burnt_rounds"] == [4]
    for name, value in adapter_after(run, 4).items():
        np.testing.assert_array_equal(value, adapter_after(run, 3)[name])


def test_after_a_burnt_train_round_nothing_is_fitted_and_the_next_one_trains(
    tiny_overrides: Overrides, grid: type[WatchedGrid]
) -> None:
    lost: list[Message] = []

    def lose_first_unmask(message: Message) -> bool:
        if trip(message) is Kind.UNMASK and len(lost) < 2:
            lost.append(message)
            return True
        return False

    grid.lose = staticmethod(lose_first_unmask)
    run = fedtune.simulate(tiny_overrides(**PROJECTION | {"federation__rounds": 4}))
    assert {number: event.opened for number, event in sums(run).items()} == {
        1: False,
        2: False,
        3: True,
        4: True,
    }
    assert sums(run)[2].reason == "round 1 is burnt: there is nothing to fit, B stays"
    assert run.summary["burnt_rounds"] == [1, 2]
    assert not events(run, QuorumMissed)
    assert run.summary["held_out_loss"]["federated"] < run.summary["held_out_loss"]["base"]
