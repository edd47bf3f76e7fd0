"""What a site refuses before it trains for a secure sum."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedtune.aggregation.registry import aggregator
from fedtune.config.compose import compose
from fedtune.config.derived import clip_bound
from fedtune.errors import SecureAggregationError
from fedtune.federation.requests import train_request
from fedtune.federation.secure import training_hash
from fedtune.federation.secure_site import ReceivedAdapter, SecureSite
from fedtune.models.adapter import Adapter, AdapterSpec, initial_adapter
from fedtune.secagg.identity import Identity
from fedtune.secagg.roster import GENESIS, Roster, sign_entry
from fedtune.secagg.spent import SpentJournal

CONFIG = compose(["secagg=on", "secagg.clip_bound=0.01", "aggregation=alternating"])
SPEC = AdapterSpec(
    shapes={"l.lora_A.weight": (2, 6), "l.lora_B.weight": (5, 2)}, scaling=1.0, dtype="float32"
)
A, B = "l.lora_A.weight", "l.lora_B.weight"


@pytest.fixture
def site(tmp_path: Path) -> SecureSite:
    entries = tuple(sign_entry(Identity.generate(), federation="f", site=f"s{n}") for n in range(5))
    spent = SpentJournal(tmp_path / "spent.jsonl")
    return SecureSite(
        roster=Roster(federation="f", version=1, previous=GENESIS, entries=entries),
        spent=spent,
        member=None,  # type: ignore[arg-type]  # nothing here comes to holding an update
        received=ReceivedAdapter(tmp_path / "received.safetensors"),
        weight=1,
        audit_head=spent.head,
    )


def request(round_number: int):
    return train_request(CONFIG, aggregator(CONFIG.aggregation), round_number)


def admit(site: SecureSite, round_number: int, adapter: Adapter) -> None:
    site.admit(request(round_number), adapter, CONFIG, SPEC)


def moved(adapter: Adapter, name: str, by: float) -> Adapter:
    return adapter | {name: adapter[name] + np.float32(by)}


def refusal(site: SecureSite, round_number: int, adapter: Adapter) -> str:
    with pytest.raises(SecureAggregationError) as caught:
        admit(site, round_number, adapter)
    return str(caught.value.problems[0])


def start() -> Adapter:
    return initial_adapter(SPEC, CONFIG.seed)


def test_round_1_starts_from_the_seeded_adapter_and_no_other(site: SecureSite) -> None:
    assert "FT917" in refusal(site, 1, initial_adapter(SPEC, CONFIG.seed + 1))
    admit(site, 1, start())


def test_a_round_moves_the_adapter_by_the_clip_bound_and_only_in_what_was_trained(site: SecureSite) -> None:
    admit(site, 1, start())
    assert "moved by 0.02" in refusal(site, 2, moved(start(), B, 0.02))
    assert "FT917" in refusal(site, 2, moved(start(), A, 0.001)), "round 1 of alternating trains B"
    admit(site, 2, moved(start(), B, 0.0099))


def test_a_site_that_sat_rounds_out_allows_as_many_steps_of_both_factors(site: SecureSite) -> None:
    admit(site, 1, start())
    both = moved(moved(start(), A, 0.0199), B, 0.0199)
    admit(site, 3, both)


def test_a_newcomer_measures_from_the_seeded_start(site: SecureSite) -> None:
    assert "FT917" in refusal(site, 3, moved(start(), B, 0.05))
    admit(site, 3, moved(start(), B, 0.0199))


def test_the_same_round_may_be_asked_for_again_with_the_same_adapter_alone(site: SecureSite) -> None:
    admit(site, 1, start())
    second = moved(start(), B, 0.005)
    admit(site, 2, second)
    admit(site, 2, second)
    assert "FT917" in refusal(site, 2, moved(start(), B, 0.006))
    assert "goes back to round 1" in refusal(site, 1, start())


@pytest.mark.parametrize(
    "change", [{"first_step": 1}, {"total_steps": 99}, {"factors": ("A", "B")}, {"round": 99}]
)
def test_a_request_that_does_not_follow_from_the_configuration_is_refused(
    site: SecureSite, change: dict[str, object]
) -> None:
    with pytest.raises(SecureAggregationError, match="FT906"):
        site.admit(replace(request(1), **change), start(), CONFIG, SPEC)


def test_a_record_of_the_adapter_that_was_damaged_is_refused(site: SecureSite, tmp_path: Path) -> None:
    admit(site, 1, start())
    (tmp_path / "received.safetensors").write_bytes(b"not a tensor")
    assert "FT919" in refusal(site, 2, start())


def test_what_changes_rounding_alone_makes_no_other_update() -> None:
    def hashed(*overrides: str) -> bytes:
        config = compose(["secagg=on", *overrides])
        return training_hash(config, train_request(config, aggregator(config.aggregation), 1))

    plain = hashed()
    for key in ("threads=1", "packing=false", "microbatch_tokens=1024", "gradient_checkpointing=true"):
        assert hashed(f"training.{key}") == plain
    for key in ("training.learning_rate=5e-4", "peft.rank=8", "seed=1", "training.proximal_mu=0.1"):
        assert hashed(key) != plain


def test_the_clip_bound_is_as_far_as_adamws_steps_usually_go() -> None:
    config = compose(["secagg=on", "training.learning_rate=1e-3", "training.steps_per_round=8"])
    assert clip_bound(config) == pytest.approx(8e-3)
    assert clip_bound(CONFIG) == 0.01
