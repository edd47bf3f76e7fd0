"""The benchmark's parts on small sizes: its keys, and figures that do not depend on the machine."""

from __future__ import annotations

import pytest

from fedtune.secagg import bench


def test_wire_bytes_are_half_and_a_quarter_of_flowers() -> None:
    figures = bench._wire(parameters=10_000_000)
    assert figures["wire_bytes_over_flower_32"] <= 0.51
    assert figures["wire_bytes_over_flower_16"] <= 0.26


def test_decoded_means_are_as_close_as_stated_and_flowers_is_not() -> None:
    figures = bench._errors(parameters=20_000)
    for ring in (16, 32):
        assert figures[f"relative_error_{ring}"] <= figures[f"relative_error_bound_{ring}"]
    assert figures["relative_error_32"] <= 1e-4
    assert figures["relative_error_flower"] > 0.2


def test_masking_and_unmasking_are_timed_with_their_spread() -> None:
    figures = bench._masking(parameters=50_000, repeats=3)
    low, high = figures["mask_seconds_spread"]
    assert 0 < low <= figures["mask_seconds"] <= high
    assert figures["mask_time_over_bound"] > 0
    assert figures["speedup_over_flower"] > 0
    assert bench._unmasking(members=10, parameters=1000, repeats=1)["unmask_seconds_10"] > 0


@pytest.mark.parametrize("clients", [20, 140])
def test_the_scaled_run_is_exact(clients: int) -> None:
    figures = bench._scale(clients=clients, parameters=50, dropped=clients // 20)
    assert figures["scale_sum_exact"] is True
    assert figures["scale_dropped"] == clients // 20
    assert (figures["scale_neighbours"] < clients - 1) == (clients > 128)
