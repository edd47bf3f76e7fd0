"""Local training: some optimizer steps on a client's own rows, starting from the received adapter.

The loss of a step is the mean over the response tokens of all its rows, whatever the microbatches are: their
gradients are those of sums, added up and divided once. With ``keep_optimizer_state`` the optimizer goes on
with the moments of the site's last round (as the inner optimizer of DiLoCo: Douillard et al. 2023,
Algorithm 1), else it starts anew; the learning rate follows the federation's step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fedtune.config.schema import TrainingConfig
from fedtune.data.tokenize import TokenizedExample
from fedtune.models.adapted import AdaptedModel
from fedtune.models.adapter import Factor
from fedtune.training.course import Assignment, Course, StepReport, TrainingResult
from fedtune.training.modes import has_dropout, training_mode
from fedtune.training.optimizer import Moments

__all__ = ["StepReport", "TrainingResult", "train"]


def train(
    model: AdaptedModel,
    steps: Sequence[Sequence[TokenizedExample]],
    *,
    config: TrainingConfig,
    factors: Sequence[Factor],
    first_step: int,
    total_steps: int,
    seed: int,
    moments: Moments | None = None,
    pulled_to: Mapping[str, np.ndarray[Any, Any]] | None = None,
    correction: Mapping[str, np.ndarray[Any, Any]] | None = None,
    on_step: Callable[[StepReport], None] | None = None,
) -> TrainingResult:
    """Train the adapter that is loaded in the model, and leave the trained one there.

    Guarantees:
        * Only the tensors of ``factors`` change, have gradients, and cost optimizer memory.
        * Each step's gradient is that of the mean over its response tokens, plus ``correction``, plus
          ``proximal_mu * (w - w_received)`` (Li et al., "FedProx", 2020, Eq. 2), then scaled down to
          ``max_gradient_norm`` if it is longer.
        * The same arguments, adapter and number of threads give the same bits. torch's random state is left
          as it was found, and so are the modes of the model's layers.
        * The result holds finite numbers only.

    Args:
        model: Base and adapter.
        steps: Rows of each optimizer step; at least one step, each with at least one response token.
        config: How to train. ``steps_per_round``, ``examples_per_step`` and ``threads`` are the caller's.
        factors: The factors to train.
        first_step: Step of the federation that ``steps[0]`` is, from 0; it decides the learning rate.
        total_steps: Steps of the whole federation.
        seed: Seed of the dropout; pass a different one for each client and round.
        moments: The optimizer's states of this site's last round; None starts with empty ones.
        pulled_to: Where ``proximal_mu`` pulls to, by trained tensor; None for where it starts.
        correction: Added to each gradient, by trained tensor; None for nothing.
        on_step: Told of each step.

    Raises:
        TrainingError: FT402, a loss is not finite; FT403, a gradient is not. The adapter in the model is then
            the one before the failed step.
        ValueError: No steps, or a step without response tokens.
    """
    started = time.perf_counter()
    assignment = Assignment(
        adapter=model.read_adapter(),
        steps=steps,
        config=config,
        factors=factors,
        first_step=first_step,
        total_steps=total_steps,
        seed=seed,
        moments=moments,
        pulled_to=pulled_to,
        correction=correction,
        on_step=on_step,
    )
    model.set_trainable(factors)
    course = Course(assignment, model.model, model.spec, model.parameters(factors))
    optimization = course.optimization
    loss_before = None
    if has_dropout(model.model):  # without it, the first step's own loss is the one before
        loss_before = optimization.evaluate(steps[0], "the loss before training")
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices=devices), training_mode(model.model):
        while not course.is_over:
            begun = time.perf_counter()
            torch.manual_seed(course.seed)
            loss, norm = optimization.step(course.rows, course.rate, course.name)
            course.advance(loss, norm, time.perf_counter() - begun)
    loss_after = optimization.evaluate(steps[0], "the loss after training")
    return course.result(
        model.read_adapter(), loss_before=loss_before, loss_after=loss_after, started=started
    )
