"""AdamW with 32-bit and 8-bit states."""

from __future__ import annotations

import pytest
import torch
from support.training import training_config

from fedtune.training.optimizer import make_optimizer

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8


def by_hand(weights, gradients, rate, decay):
    """Loshchilov and Hutter (2019), Algorithm 2, with the schedule multiplier in the rate."""
    first, second = torch.zeros_like(weights), torch.zeros_like(weights)
    for step, gradient in enumerate(gradients, start=1):
        first = BETA_1 * first + (1 - BETA_1) * gradient
        second = BETA_2 * second + (1 - BETA_2) * gradient**2
        corrected = second / (1 - BETA_2**step)
        weights = weights - rate * decay * weights
        weights = weights - rate * (first / (1 - BETA_1**step)) / (corrected.sqrt() + EPSILON)
    return weights


def run(config, weights, gradients):
    parameter = torch.nn.Parameter(weights.clone())
    optimizer = make_optimizer([parameter], config)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach(), optimizer


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_adamw_is_the_paper_algorithm(decay):
    torch.manual_seed(0)
    weights, gradients = torch.randn(7, 5).double(), torch.randn(6, 7, 5).double()
    found, _ = run(training_config(weight_decay=decay, learning_rate=0.02), weights, gradients)
    torch.testing.assert_close(found, by_hand(weights, gradients, 0.02, decay), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_8_bit_adamw_follows_it_closely(decay):
    torch.manual_seed(0)
    weights, gradients = torch.randn(96, 64), torch.randn(6, 96, 64)
    config = training_config(optimizer="adamw8bit", weight_decay=decay, learning_rate=0.02)
    found, optimizer = run(config, weights, gradients)
    wanted = by_hand(weights.double(), gradients.double(), 0.02, decay).float()
    moved = (wanted - weights).norm()
    assert (found - wanted).norm() < 0.05 * moved
    state = next(iter(optimizer.state.values()))
    assert state["state1"].dtype == state["state2"].dtype == torch.uint8
