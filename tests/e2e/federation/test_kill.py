"""Whatever is killed, whenever: the run ends with the adapter of an undisturbed one, or stops with a reason.

``FEDTUNE_SLOW=1 FEDTUNE_KILLS=30`` does all thirty; each is drawn from its number.
"""

from __future__ import annotations

import json
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from support.cli_federation import CliFederation, tiny_run
from support.outcomes import last_adapter, simulated

from fedtune.models.adapter import Adapter
from fedtune.observability.events import RoundFinished, SecureSum, effective_events
from fedtune.secagg.identity import Identity
from fedtune.site.audit import verify_audit

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

KILLS = int(os.environ.get("FEDTUNE_KILLS", "1"))
LONGEST_UNTIL_KILL_SECONDS = 35.0
LONGEST_RUN_SECONDS = 600.0
ROUNDS = 2
VICTIMS = ("ear", "heart", "ServerApp", "SuperLink", "server", "everything")


def overrides(blow: Blow) -> list[str]:
    # A seed of its own: no site opens the same update twice, in whichever run.
    plain = ["secagg=off", "federation.metrics=[held_out_loss]", "aggregation.weighting=uniform"]
    return [*([] if blow.secure else plain), *tiny_run(federation__rounds=ROUNDS, seed=blow.number)]


@dataclass(frozen=True)
class Blow:
    """One repetition: who is killed, and when after the run was asked for."""

    number: int
    victim: str
    seconds: float
    secure: bool

    @classmethod
    def drawn(cls, number: int) -> Blow:
        stream = random.Random(number)
        return cls(
            number=number,
            victim=VICTIMS[number % len(VICTIMS)],
            seconds=stream.uniform(0.0, LONGEST_UNTIL_KILL_SECONDS),
            secure=stream.random() < 0.5,
        )

    def __str__(self) -> str:
        return f"{self.number}-{self.victim}-{self.seconds:.0f}s-{'secure' if self.secure else 'plain'}"

    def fall(self, federation: CliFederation) -> None:
        if self.victim in ("ServerApp", "SuperLink"):
            program = "flwr-serverapp" if self.victim == "ServerApp" else "superlink_process"
            federation.kill_below_server(program)
        elif self.victim == "everything":
            for name in ("server", *federation.sites):
                federation.kill(name)
        else:
            federation.kill(self.victim)


def drawn_blows() -> list[Blow]:
    """The first of all repetitions, or some of thirty that change with the day's commit."""
    if KILLS >= 30:
        return [Blow.drawn(number) for number in range(KILLS)]
    return [Blow.drawn(number) for number in random.Random(7).sample(range(30), KILLS)]


@pytest.mark.parametrize("blow", drawn_blows(), ids=str)
def test_a_kill_changes_nothing_or_is_named(
    federation: CliFederation, tiny_model_dir: Path, tmp_path: Path, blow: Blow
) -> None:
    federation.wait("the sites", federation.all_connected, seconds=240)
    name = f"kill{blow.number}"
    federation.want(f"name={name}", *overrides(blow))
    time.sleep(blow.seconds)
    blow.fall(federation)

    def ended() -> bool:
        federation.restart_the_dead()
        return federation.state_of(name) in ("completed", "failed", "given_up")

    federation.wait(f"run {name}", ended, seconds=LONGEST_RUN_SECONDS)
    run = federation.status().run
    assert run is not None
    events = effective_events(federation.events(name))
    if run.state == "completed":
        assert [event.round for event in events if isinstance(event, RoundFinished)] == [0, 1, 2]
        seed = (f"seed={blow.number}", "aggregation.weighting=uniform")
        undisturbed = simulated(federation, tmp_path, tiny_model_dir, *seed)
        adapter = last_adapter(federation.coordinator.runs / name, ROUNDS, tiny_model_dir)
        burnt = [event for event in events if isinstance(event, SecureSum) and not event.opened]
        if not blow.secure:
            for tensor, expected in undisturbed.items():
                np.testing.assert_array_equal(adapter[tensor], expected, strict=True)
        elif not burnt:
            assert distance(adapter, undisturbed) < 1e-3  # rounding of the encoder, which AdamW enlarges
        else:
            assert all(event.reason for event in burnt)
    else:
        assert run.reason
    for site in federation.sites.values():
        assert verify_audit(site.audit_log, Identity.load(site.audit_key).public).intact
        require_spent_once(site.spent)


def distance(adapter: Adapter, expected: Adapter) -> float:
    """Relative L2 distance over all tensors."""
    apart = sum(float(np.square(adapter[name] - expected[name]).sum()) for name in expected)
    size = sum(float(np.square(tensor).sum()) for tensor in expected.values())
    return float(np.sqrt(apart / size))


def require_spent_once(journal: Path) -> None:
    """No update was opened twice: a site spends each at most once for one run and round."""
    if not journal.exists():
        return
    lines = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    seen = [(line["run"], line["round"]) for line in lines if "run" in line]
    assert len(seen) == len(set(seen)), f"{journal}: an update was spent twice"
