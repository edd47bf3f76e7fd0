"""A corrected gradient, and the mean of the plain ones, against the paper's option II."""

from __future__ import annotations

import numpy as np
import pytest
from support.training import random_rows, start_of, tiny_adapted, training_config

from fedtune.training.train import train

BOTH = ("A", "B")
STEPS = [random_rows(step, [(4, 5), (7, 3)]) for step in range(3)]


@pytest.fixture(scope="module")
def tiny(tiny_model_dir):
    return tiny_adapted(tiny_model_dir)


def run(model, *, correction=None, pulled_to=None, factors=BOTH, **config):
    model.load_adapter(start_of(model))
    return train(
        model,
        STEPS,
        config=training_config(**{"optimizer": "sgd", "learning_rate": 0.05} | config),
        factors=factors,
        first_step=0,
        total_steps=3,
        seed=0,
        correction=correction,
        pulled_to=pulled_to,
    )


def noise(model, factors=BOTH):
    stream = np.random.default_rng(1)
    return {name: stream.normal(0, 0.1, model.spec.shapes[name]) for name in model.spec.names(factors)}


def test_the_mean_gradient_is_option_ii_of_the_paper_under_plain_sgd(tiny):
    correction = noise(tiny)
    result = run(tiny, correction=correction)
    for name, mean in result.mean_gradients.items():
        quotient = -result.delta.tensors[name] / (3 * 0.05)  # (x - y) / (K rate)
        np.testing.assert_allclose(mean, quotient - correction[name], rtol=1e-9, atol=1e-12)


def test_a_correction_of_zero_changes_nothing(tiny):
    plain = run(tiny, optimizer="adamw")
    corrected = run(tiny, optimizer="adamw", correction={n: np.zeros(s) for n, s in tiny.spec.shapes.items()})
    for name, value in plain.delta.tensors.items():
        np.testing.assert_array_equal(corrected.delta.tensors[name], value)
    assert plain.mean_gradients == {}
    assert corrected.mean_gradients.keys() == plain.delta.tensors.keys()


def test_gradients_are_taken_before_correction_pull_and_clipping(tiny):
    (rows,) = (STEPS[:1],)

    def first(**config):
        tiny.load_adapter(start_of(tiny))
        return train(
            tiny, rows, config=training_config(optimizer="adamw", **config), factors=BOTH, first_step=0,
            total_steps=1, seed=0, correction=noise(tiny),
        ).mean_gradients  # fmt: skip

    plain, bent = first(), first(max_gradient_norm=1e-3, proximal_mu=5.0)
    for name, value in plain.items():
        np.testing.assert_array_equal(bent[name], value)


def test_only_trained_factors_have_gradients(tiny):
    result = run(tiny, factors=("B",), correction=noise(tiny, ("B",)))
    assert tuple(result.mean_gradients) == tiny.spec.names(("B",))


def test_a_pull_can_go_elsewhere_than_to_the_start(tiny):
    """One step of SGD at rate 1 from w: w - g - mu (w - target)."""
    target = {name: value + 0.25 for name, value in start_of(tiny).items()}
    rate = {"learning_rate": 1.0}
    plain, pulled = run(tiny, **rate), run(tiny, pulled_to=target, proximal_mu=1e-3, **rate)
    first_plain, first_pulled = (
        train(
            tiny, STEPS[:1], config=training_config(optimizer="sgd", proximal_mu=mu, **rate), factors=BOTH,
            first_step=0, total_steps=1, seed=0, pulled_to=target,
        )
        for mu in (0.0, 0.5)
        if tiny.load_adapter(start_of(tiny)) is None
    )  # fmt: skip
    for name, value in first_pulled.delta.tensors.items():
        np.testing.assert_allclose(value, first_plain.delta.tensors[name] + 0.5 * 0.25, atol=1e-12)
    assert any((plain.delta.tensors[n] != pulled.delta.tensors[n]).any() for n in target)
