"""The learning rate over the whole federation."""

from __future__ import annotations

from math import cos, pi

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.training import training_config

from fedtune.training.schedule import learning_rate


def rates(total, **overrides):
    config = training_config(learning_rate=2.0, **overrides)
    return [learning_rate(step, total, config) for step in range(total)]


def test_warm_up_climbs_in_equal_steps_and_then_has_the_peak():
    assert rates(10, warmup_fraction=0.3) == pytest.approx([0.5, 1.0, 1.5] + [2.0] * 7)


def test_linear_decay_in_closed_form():
    found = rates(8, decay="linear", warmup_fraction=0.25, final_learning_rate_fraction=0.1)
    wanted = [2 / 3, 4 / 3] + [2 * (0.1 + 0.9 * (1 - k / 6)) for k in range(6)]
    assert found == pytest.approx(wanted)


def test_cosine_decay_in_closed_form():
    found = rates(6, decay="cosine", final_learning_rate_fraction=0.2)
    assert found == pytest.approx([2 * (0.2 + 0.8 * 0.5 * (1 + cos(pi * k / 6))) for k in range(6)])
    assert found[3] == pytest.approx(2 * 0.6)


def test_steps_past_the_end_keep_the_final_rate():
    config = training_config(learning_rate=2.0, decay="cosine", final_learning_rate_fraction=0.25)
    assert learning_rate(10, 10, config) == learning_rate(99, 10, config) == pytest.approx(0.5)


@given(
    total=st.integers(1, 300),
    warmup=st.floats(0, 1),
    final=st.floats(0, 1),
    decay=st.sampled_from(["cosine", "linear", "constant"]),
)
def test_no_step_exceeds_the_peak_or_is_wasted(total, warmup, final, decay):
    found = rates(total, warmup_fraction=warmup, decay=decay, final_learning_rate_fraction=final)
    assert all(0 < rate <= 2.0 * (1 + 1e-12) for rate in found)
    peak = round(warmup * total)
    assert found[:peak] == sorted(found[:peak])
    assert found[peak:] == sorted(found[peak:], reverse=True)


def test_rounds_do_not_start_it_anew():
    config = training_config(warmup_fraction=0.1, decay="cosine")
    whole = [learning_rate(step, 40, config) for step in range(40)]
    by_round = [
        learning_rate(round_index * 8 + step, 40, config) for round_index in range(5) for step in range(8)
    ]
    assert by_round == whole
    assert by_round[8:] == sorted(by_round[8:], reverse=True)
