"""Secure aggregation over Flower's real processes, with a site that is killed in mid-protocol."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from e2e.test_deployment import events, final_adapter
from support.deployment import deployed
from support.tiny_federation import SIZES, tiny_overrides, write_rows

import fedtune
from fedtune.config.compose import compose
from fedtune.observability.events import ClientFailed, SecureSum

pytestmark = pytest.mark.e2e

HELLO_EVALUATE_TRAIN_SHARE = 4
"""Messages that a site has got when it deals its shares."""


def test_a_site_killed_in_mid_protocol_is_named_and_the_sum_of_the_others_is_opened(
    tmp_path: Path, tiny_model_dir: Path
) -> None:
    write_rows(tmp_path / "rows.jsonl", {**SIZES, "kidney": 24})
    common = tiny_overrides(
        tmp_path,
        tiny_model_dir,
        federation__rounds=1,
        evaluation__every_rounds=0,
        evaluation__generations=0,
        aggregation__weighting="uniform",
    )
    config = compose(
        [
            *common,
            "secagg=on",
            "secagg.k_min=3",
            "secagg.trip_timeout_seconds=20",
            "federation.min_replies=3",
            "federation.round_timeout_seconds=25",
        ]
    )
    with deployed(config, tmp_path / "deployment") as deployment:
        submitted = deployment.submit(config)
        heart = deployment.sites["heart"]
        deployment.wait(
            "dealing shares",
            lambda: (
                len(heart.records("message")) >= HELLO_EVALUATE_TRAIN_SHARE or submitted.poll() is not None
            ),
            seconds=120,
        )
        heart.executor.kill()
        deployment.wait("the end", lambda: submitted.poll() is not None, seconds=150)
        logs = deployment.logs()

    sums = [(event.opened, event.clients) for event in events(config) if isinstance(event, SecureSum)]
    assert sums == [(True, ("ear", "eye", "kidney"))], logs
    failed = {
        (event.stage, event.client, event.code) for event in events(config) if isinstance(event, ClientFailed)
    }
    assert failed == {("secagg", "heart", "FT606"), ("evaluate", "heart", "FT606")}
    plain = fedtune.simulate([*common, "name=plain", "partition.values=[ear,eye,kidney]"])
    expected, got = final_adapter(plain.config), final_adapter(config)
    levels = (2**31 - 1) // 4
    for name, value in expected.items():
        allowed = 0.01 * 3 / levels + 2e-7 * np.abs(value).max()
        np.testing.assert_allclose(got[name], value, rtol=0, atol=allowed)
