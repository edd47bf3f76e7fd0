"""One training, one fit: what a site fits, what it refuses, and whom the server asks."""

from __future__ import annotations

import logging
import stat
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from fedtune.aggregation.registry import aggregator
from fedtune.config.compose import compose
from fedtune.config.derived import is_fit, schedule_of
from fedtune.errors import FederationError, RunError, SecureAggregationError
from fedtune.federation.fit_round import Received, fit_cohort, fit_kept
from fedtune.federation.kept_training import KeptTraining, Training, fit_origin
from fedtune.federation.requests import train_request
from fedtune.federation.secure import training_hash
from fedtune.federation.secure_site import ReceivedAdapter, SecureSite
from fedtune.federation.site import Site
from fedtune.models.adapter import Adapter, AdapterSpec, initial_adapter
from fedtune.observability.events import ClientFailed, SecureSum
from fedtune.secagg.encoding import Encoding
from fedtune.secagg.hashes import adapter_hash
from fedtune.secagg.identity import Identity
from fedtune.secagg.roster import GENESIS, Roster, sign_entry
from fedtune.secagg.rounding import EncodedUpdate, decode_mean
from fedtune.secagg.spent import SpentJournal, UpdateOrigin
from fedtune.secagg.states import RoundFacts
from fedtune.training.delta import Delta

CONFIG = compose(["secagg=on", "secagg.clip_bound=0.05", "aggregation=projection", "peft.rank=2"])
SPEC = AdapterSpec(
    shapes={"l.lora_A.weight": (2, 6), "l.lora_B.weight": (5, 2)}, scaling=1.0, dtype="float32"
)
A, B = "l.lora_A.weight", "l.lora_B.weight"
BASE = "ab" * 32


def request(round_number: int):
    return train_request(CONFIG, aggregator(CONFIG.aggregation, clip=0.05), round_number)


@dataclass
class Holder:
    """A member that holds an update until it is spent, as a `SecureAggregationClient` does."""

    spent: SpentJournal
    held: tuple[EncodedUpdate, Encoding, RoundFacts] | None = field(default=None)

    def hold(self, update: EncodedUpdate, encoding: Encoding, facts: RoundFacts) -> None:
        self.spent.check(facts.spent_as)
        self.held = update, encoding, facts

    def holds(self, facts: RoundFacts) -> bool:
        return self.held is not None and self.held[2].origin == facts.origin

    def handle(self, request: bytes) -> bytes:
        raise AssertionError("no trip is made here")

    def confirm(self) -> None:
        """What a site does before it signs."""
        assert self.held is not None
        facts, self.held = self.held[2], None
        self.spent.spend(facts.spent_as, run=facts.run, round_number=facts.round, attempt=1)

    def mean(self) -> dict[str, np.ndarray]:
        assert self.held is not None
        update, encoding, _ = self.held
        return dict(decode_mean(update.vector, update.lanes, encoding).tensors)


class Bench:
    """One site on a disk, which may be started again, and what a training of round 1 gave."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        entries = tuple(sign_entry(Identity.generate(), federation="f", site=f"s{n}") for n in range(5))
        self.roster = Roster(federation="f", version=1, previous=GENESIS, entries=entries)
        self.start = initial_adapter(SPEC, CONFIG.seed)
        stream = np.random.default_rng(0)
        self.trained = {
            name: (tensor + stream.uniform(-0.04, 0.04, tensor.shape)).astype(np.float32)
            for name, tensor in self.start.items()
        }
        self.origin = UpdateOrigin(
            base=bytes.fromhex(BASE),
            adapter=adapter_hash(self.start),
            config=training_hash(CONFIG, request(1)),
            samples=bytes(32),
        )
        self.restart()

    def restart(self) -> None:
        self.spent = SpentJournal(self.folder / "spent.jsonl")
        self.member = Holder(self.spent)
        self.secure = SecureSite(
            roster=self.roster,
            spent=self.spent,
            member=self.member,
            received=ReceivedAdapter(self.folder / "received.safetensors"),
            weight=1,
            audit_head=self.spent.head,
        )
        self.memory = KeptTraining(self.folder, "s0")
        self.site = Site(
            name="s0",
            config=CONFIG,
            train=(),
            held_out=(),
            skipped_rows=0,
            state_dir=self.folder,
            model=lambda: pytest.fail("a fit needs no model"),
            threads=1,
            secure=self.secure,
        )

    def train(self, *, opened: bool = True) -> None:
        self.secure.admit(request(1), self.start, CONFIG, SPEC)
        self.memory.keep(1, Training(adapter=self.trained, origin=self.origin))
        if opened:
            self.spent.spend(self.origin, run="r", round_number=1, attempt=1)

    def mean_A(self, by: float = 0.01) -> Adapter:
        return self.start | {A: self.start[A] + np.float32(by) * np.sign(self.start[A])}

    def fit(self, adapter: Adapter, round_number: int = 2) -> Delta | None:
        told: list[Delta] = []

        def tell(delta: Delta) -> Delta:
            told.append(delta)
            return delta

        received = Received(adapter=adapter, spec=SPEC, base_hash=BASE)
        reply = fit_kept(request(round_number), self.site, self.secure, received, tell)
        assert (reply.steps, reply.loss_after) == (0, None)
        return told[0] if told else None

    def refusal(self, adapter: Adapter, round_number: int = 2) -> str:
        with pytest.raises((FederationError, SecureAggregationError)) as caught:
            self.fit(adapter, round_number)
        assert self.member.held is None, "nothing is held"
        return str(caught.value.problems[0])


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_odd_rounds_send_A_and_even_ones_B_and_the_schedule_counts_those_that_train() -> None:
    assert schedule_of(CONFIG) == (("A",), ("B",))
    asked = [request(number) for number in range(1, 5)]
    assert [each.factors for each in asked] == [("A",), ("B",), ("A",), ("B",)]
    steps = CONFIG.training.steps_per_round
    assert [each.first_step for each in asked] == [0, 0, steps, steps]
    assert {each.total_steps for each in asked} == {CONFIG.federation.rounds // 2 * steps}
    assert [is_fit(CONFIG, number) for number in range(1, 5)] == [False, True, False, True]
    assert not is_fit(compose(["aggregation=projection"]), 2), "in clear the server fits"


def test_the_change_of_B_is_the_least_squares_fit_less_the_old_B(bench: Bench) -> None:
    bench.train()
    received = bench.mean_A()
    delta = bench.fit(received)
    product = bench.trained[B].astype(np.float64) @ bench.trained[A]
    best = np.linalg.lstsq(received[A].T.astype(np.float64), product.T, rcond=None)[0].T
    np.testing.assert_allclose(delta.tensors[B], best - received[B], atol=1e-7)
    assert set(delta.tensors) == {B}
    np.testing.assert_allclose(bench.member.mean()[B], np.clip(delta.tensors[B], -0.05, 0.05), atol=1e-8)


def test_a_training_is_fitted_to_one_mean_A_and_no_other_ever(bench: Bench) -> None:
    bench.train()
    bench.fit(bench.mean_A(0.01))
    bench.member.confirm()
    for by in (0.01, 0.02):
        (bench.folder / "received.safetensors").unlink()  # even if the site forgot what it was sent
        assert "FT912" in bench.refusal(bench.mean_A(by))
    bench.memory.forget_fitted(bench.spent)
    assert not [*bench.folder.glob("*.kept/*")]
    assert "FT615" in bench.refusal(bench.mean_A(0.02))


def test_a_crash_between_the_confirmation_and_forgetting_gives_no_second_fit(bench: Bench) -> None:
    bench.train()
    bench.fit(bench.mean_A())
    bench.member.confirm()
    bench.restart()
    assert [*bench.folder.glob("*.kept/*")], "what was kept is still on the disk"
    assert "FT912" in bench.refusal(bench.mean_A())
    (bench.folder / "received.safetensors").unlink()
    assert "FT912" in bench.refusal(bench.mean_A(0.02))


def test_a_file_that_comes_back_from_a_backup_gives_no_second_fit(bench: Bench) -> None:
    bench.train()
    (kept,) = bench.folder.glob("*.kept/*")
    backup = kept.read_bytes()
    bench.fit(bench.mean_A())
    bench.member.confirm()
    bench.memory.forget_fitted(bench.spent)
    kept.write_bytes(backup)
    assert "FT912" in bench.refusal(bench.mean_A())


def test_until_it_is_opened_a_fit_may_be_asked_for_again_with_the_same_mean_A_alone(bench: Bench) -> None:
    bench.train()
    first = bench.fit(bench.mean_A(0.01))
    assert bench.fit(bench.mean_A(0.01)) is None, "it is held, and not made again"
    bench.restart()
    assert "FT917" in bench.refusal(bench.mean_A(0.02))
    again = bench.fit(bench.mean_A(0.01))
    np.testing.assert_array_equal(first.tensors[B], again.tensors[B])
    bench.memory.forget_fitted(bench.spent)
    assert [*bench.folder.glob("*.kept/*")], "it is kept until it is opened"


def test_nothing_is_fitted_before_its_own_update_was_opened(bench: Bench) -> None:
    bench.train(opened=False)
    assert "this site's update of round 1 was not opened" in bench.refusal(bench.mean_A())


def test_nothing_is_fitted_by_who_did_not_train_or_in_a_later_round(bench: Bench) -> None:
    bench.secure.admit(request(1), bench.start, CONFIG, SPEC)
    assert "FT615: there is nothing to fit: this site keeps no training of round 1" in bench.refusal(
        bench.mean_A()
    )
    bench.memory.keep(1, Training(adapter=bench.trained, origin=bench.origin))
    assert "this site keeps no training of round 3" in bench.refusal(bench.mean_A(), round_number=4)


def test_a_mean_A_beyond_the_clip_bound_or_another_B_is_refused(bench: Bench) -> None:
    bench.train()
    assert "FT917" in bench.refusal(bench.mean_A(0.051))
    assert "FT917" in bench.refusal(bench.mean_A() | {B: bench.start[B] + np.float32(1e-6)})


def test_a_mean_A_whose_rows_hardly_differ_is_refused(bench: Bench) -> None:
    flat = bench.start[A].copy()
    flat[1] = flat[0] * np.float32(1.0001)
    bench.start = bench.start | {A: flat}
    bench.secure.received.write(1, bench.start)
    bench.train()
    assert "FT616: the singular values of l.lora_A.weight are" in bench.refusal(bench.start)


def test_values_beyond_the_clip_bound_are_counted_in_the_sites_own_log(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.trained[B] = bench.trained[B] + np.float32(0.2)
    bench.train()
    with caplog.at_level(logging.WARNING):
        bench.fit(bench.mean_A(0.0))
    assert "of 10 values of the fit are beyond the clip bound 0.05" in caplog.text
    assert np.abs(bench.member.mean()[B]).max() <= 0.05 * (1 + 1e-6)


def test_what_is_kept_is_one_training_that_its_owner_alone_can_read(bench: Bench) -> None:
    bench.train()
    bench.memory.keep(3, Training(adapter=bench.trained, origin=bench.origin))
    (kept,) = bench.folder.glob("*.kept/*")
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert bench.memory.of(1) is None
    again = bench.memory.of(3)
    assert again.origin == bench.origin
    np.testing.assert_array_equal(again.adapter[A], bench.trained[A])
    KeptTraining.forget(bench.folder)
    assert bench.memory.of(3) is None


@pytest.mark.parametrize("data", [b"", b"not a tensor", bytes(64)])
def test_a_damaged_training_is_refused(bench: Bench, data: bytes) -> None:
    bench.train()
    (kept,) = bench.folder.glob("*.kept/*")
    kept.write_bytes(data)
    with pytest.raises(RunError, match="FT725"):
        bench.fit(bench.mean_A())
    with pytest.raises(RunError, match="FT725"):
        bench.memory.forget_fitted(bench.spent)


def test_a_train_round_is_spent_as_the_fedavg_update_of_the_same_training_and_a_fit_as_none() -> None:
    halved = replace(CONFIG.federation, rounds=CONFIG.federation.rounds // 2)
    fedavg = replace(CONFIG, federation=halved, aggregation=compose(["aggregation=fedavg"]).aggregation)
    theirs = training_hash(fedavg, train_request(fedavg, aggregator(fedavg.aggregation), 1))
    assert training_hash(CONFIG, request(1)) == theirs
    hashes = {training_hash(CONFIG, request(number)) for number in (1, 2, 3, 4)}
    assert len(hashes) == 4


def test_what_a_fit_is_spent_as_knows_the_training_and_not_the_mean_A() -> None:
    one = UpdateOrigin(base=b"b" * 32, adapter=b"a" * 32, config=b"c" * 32, samples=b"s" * 32)
    assert fit_origin(one) == fit_origin(replace(one))
    others = {
        fit_origin(replace(one, **{key: b"x" * 32})) for key in ("base", "adapter", "config", "samples")
    }
    assert len({fit_origin(one), one, *others}) == 6


def opened(round_number: int, *clients: str) -> SecureSum:
    return SecureSum(
        round=round_number, opened=bool(clients), reason=None, clients=clients, attempts=1, seconds=0.0,
        uplink_bytes=0, downlink_bytes=0,
    )  # fmt: skip


def lost(client: str, code: str = "FT615", round_number: int = 2) -> ClientFailed:
    return ClientFailed(round=round_number, client=client, stage="train", code=code, reason="")


def test_a_fit_round_asks_those_of_the_opened_sum_before_it(bench: Bench) -> None:
    cohort = fit_cohort(2, bench.mean_A(), [opened(1, "a", "b", "c")])
    assert cohort.broken is None
    assert cohort.among(["a", "c", "d"]) == ("a", "c")
    assert cohort.quorum(["a", "b", "c", "d"], None) == 3, "a newcomer is not waited for"
    assert cohort.quorum(["a", "b", "d"], None) == 2, "nor is one that was removed"
    assert cohort.quorum(["a", "b", "c", "d"], 2) == 2


def test_after_a_burnt_train_round_or_an_A_that_nothing_fits_to_nobody_is_asked(bench: Bench) -> None:
    for record in ([], [opened(1)], [opened(3, "a")]):
        cohort = fit_cohort(2, bench.mean_A(), record)
        assert "round 1 is burnt: there is nothing to fit, B stays" in str(cohort.broken)
    flat = bench.start | {A: np.ones((2, 6), dtype=np.float32)}
    cohort = fit_cohort(2, flat, [opened(1, "a", "b", "c")])
    assert "B stays" in str(cohort.broken)
    event = cohort.unfitted(str(cohort.broken))
    assert (event.opened, event.clients, event.round) == (False, (), 2)


def test_a_round_whose_sites_lost_what_they_kept_is_given_up_and_one_that_misses_them_is_not(
    bench: Bench,
) -> None:
    cohort = fit_cohort(2, bench.mean_A(), [opened(1, "a", "b", "c", "d")])
    away = [lost("a", "FT606"), lost("b", "FT612"), lost("c", "FT615", 1)]
    assert cohort.never(away, 3) is None, "who is away may come back"
    assert cohort.never([lost("a")], 3) is None
    said = cohort.never([lost("a"), lost("b"), lost("b")], 3)
    assert said == "2 sites have nothing left to fit, 2 have, and 3 are required: B stays"
