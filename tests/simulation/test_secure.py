"""Secure aggregation in a whole simulated run: real messages, real masks, a sum instead of single updates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import fedtune

Overrides = Callable[..., list[str]]
SECURE = {"secagg": "on", "secagg__k_min": 3}


def final_adapter(run: fedtune.Run) -> dict[str, np.ndarray]:
    return load_file(run.path / "checkpoints" / f"{run.config.federation.rounds:04}" / "adapter.safetensors")


@pytest.mark.parametrize("method", ["fedavg", "ffa", "alternating"])
def test_the_result_is_that_of_a_plain_run_up_to_the_rounding_that_the_encoding_states(
    tiny_overrides: Overrides, method: str
) -> None:
    common = {"aggregation": method, "evaluation__generations": 0, "federation__rounds": 1}
    secure = fedtune.simulate(tiny_overrides(name="secure", **SECURE, **common))
    plain = fedtune.simulate(
        tiny_overrides(name="plain", aggregation__weighting="uniform", **common)
    )
    bound, members = 0.01 * 3, 3  # learning rate x steps
    levels = (2**31 - 1) // members
    for name, expected in final_adapter(plain).items():
        got = final_adapter(secure)[name]
        rounding = members * bound / (levels * members) + 2e-7 * np.abs(expected).max()
        np.testing.assert_allclose(got, expected, rtol=0, atol=rounding)
    assert secure.summary["secure_rounds"] == 1
    assert secure.summary["burnt_rounds"] == []
