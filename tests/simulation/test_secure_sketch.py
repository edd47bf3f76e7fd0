"""``sketch`` under secure aggregation, end to end."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import Message
from simulation.test_secure import SECURE, WatchedGrid, adapter_after, events, failures, grid
from support.tiny_federation import SIZES

import fedtune
from fedtune.errors import FederationError
from fedtune.observability.events import ClientTrained, SecureSum
from fedtune.updates.codec import to_arrays

Overrides = Callable[..., list[str]]

RANK = 4
SKETCH = {
    **SECURE,
    "aggregation": "sketch",
    # Twice the ranks of three sites and of the adapter that they receive.
    "aggregation__sketch_width": 2 * RANK * (len(SIZES) + 1),
    "training__steps_per_round": 2,
    "secagg__clip_bound": 0.1,
}

__all__ = ["grid"]


def test_it_gives_the_products_of_svd_and_sites_train_on_from_them(
    tiny_overrides: Overrides, grid: type[WatchedGrid]
) -> None:
    svd = fedtune.simulate(
        tiny_overrides(
            name="svd",
            aggregation="svd",
            aggregation__weighting="uniform",
            training__steps_per_round=2,
            evaluation__generations=0,
        )
    )
    run = fedtune.simulate(tiny_overrides(**SKETCH | {"federation__rounds": 2}))
    assert failures(run) == []
    plain, secure = adapter_after(svd, 1), adapter_after(run, 1)
    for name_A in (name for name in plain if ".lora_A." in name):
        name_B = name_A.replace("lora_A", "lora_B")
        best = plain[name_B] @ plain[name_A]
        off = np.linalg.norm(secure[name_B] @ secure[name_A] - best)
        assert off <= 1e-4 * np.linalg.norm(best)
    assert run.summary["held_out_loss"]["federated"] < run.summary["held_out_loss"]["base"]
    sums = [event for event in events(run, SecureSum) if isinstance(event, SecureSum)]
    assert [(event.round, event.opened, len(event.clients)) for event in sums] == [(1, True, 3), (2, True, 3)]
    sent = {event.uplink_bytes for event in events(run, ClientTrained) if isinstance(event, ClientTrained)}
    assert max(sent) < 2_000, "an advert: what is masked goes later, as wide as the sketch"
    values = sum(value.size for value in plain.values()) * run.config.aggregation.sketch_width // RANK
    assert 3 * 4 * values < sums[0].uplink_bytes < 3 * 4 * values * 1.1 + 10_000


def test_an_adapter_that_no_sum_can_have_given_is_refused(
    tiny_overrides: Overrides, grid: type[WatchedGrid]
) -> None:
    def craft(message: Message) -> None:
        arrays = message.content.get("arrays")
        second = message.metadata.message_type == "train" and '"round":2' in str(
            message.content["fedtune"]["json"]
        )
        if not second or message.metadata.dst_node_id != 3:
            return
        # The same product, in factors that read rows out of gradients.
        scales = {name: np.float32(0.01 if ".lora_B." in name else 100) for name in arrays}
        message.content["arrays"] = to_arrays({name: scales[name] * arrays[name].numpy() for name in arrays})

    grid.tamper = staticmethod(craft)
    settings = {**SKETCH, "federation__rounds": 2, "federation__min_replies": 3, "secagg__attempts": 1}
    with pytest.raises(FederationError, match=r"FT917: the factors of .* are not the balanced ones"):
        fedtune.simulate(tiny_overrides(**settings))
