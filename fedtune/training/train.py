"""Local training: some optimizer steps on a client's own rows, starting from the received adapter.

The loss of a step is the mean over the response tokens of all its rows, whatever the microbatches are: their
gradients are those of sums, added up and divided once. With ``keep_optimizer_state`` the optimizer goes on
with the moments of the site's last round (as the inner optimizer of DiLoCo: Douillard et al. 2023,
Algorithm 1), else it starts anew; the learning rate follows the federation's step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fedtune.config.schema import TrainingConfig
from fedtune.data.seeds import derive_seed
from fedtune.data.tokenize import TokenizedExample
from fedtune.models.adapted import AdaptedModel
from fedtune.models.adapter import Adapter, Factor
from fedtune.training.delta import Delta
from fedtune.training.memory import peak_memory_mib
from fedtune.training.modes import has_dropout, training_mode
from fedtune.training.optimizer import Moments
from fedtune.training.schedule import learning_rate
from fedtune.training.step import Optimization, Pull

__all__ = ["StepReport", "TrainingResult", "train"]


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """One optimizer step, as it is told while training runs.

    Attributes:
        step: Steps done, from 1.
        steps: Steps of this call.
        loss: Mean nats per response token of the step's rows, before the step.
        learning_rate: The rate that the step was taken with.
        gradient_norm: L2 norm of the gradient before clipping, the proximal term included.
        tokens: Tokens of the step's rows, prompt and response.
        tokens_per_second: ``tokens`` by the step's time.
    """

    step: int
    steps: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    tokens_per_second: float


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What a round of local training gives.

    Attributes:
        delta: Trained minus received, of the trained factors.
        examples: Rows trained on; a row that came twice counts twice.
        tokens: Tokens of these rows, prompt and response. Not a measure of layout: padding is left out, and
            tokens that rows share are counted for each.
        response_tokens: Targets of the loss among them.
        steps: Optimizer steps.
        loss_before: Mean nats per response token of the first step's rows with the received adapter, without
            dropout and without the proximal term.
        loss_after: The same rows with the trained adapter.
        seconds: Wall-clock time.
        peak_memory_mib: Most memory that this process has held since it started, in MiB.
        moments: The optimizer's states, with ``keep_optimizer_state``; else None. Those that were given of
            tensors which were not trained are among them.
        mean_gradients: With a ``correction``, the mean over the steps of each trained tensor's gradient as it
            came: before the correction, the proximal term and clipping. Else empty.
    """

    delta: Delta
    examples: int
    tokens: int
    response_tokens: int
    steps: int
    loss_before: float
    loss_after: float
    seconds: float
    peak_memory_mib: float
    moments: Moments | None
    mean_gradients: Adapter


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
    if not steps:
        raise ValueError("train needs at least one step, got none")
    received = model.read_adapter(factors)
    model.set_trainable(factors)
    parameters = model.parameters(factors)
    target = received if pulled_to is None else pulled_to
    optimization = Optimization(
        model.model,
        parameters,
        config,
        moments,
        pull=Pull(to=_beside(parameters, target), strength=config.proximal_mu)
        if config.proximal_mu
        else None,
        correction=None if correction is None else _beside(parameters, correction),
    )
    loss_before = None
    if has_dropout(model.model):  # without it, the first step's own loss is the one before
        loss_before = optimization.evaluate(steps[0], "the loss before training")
    reports: list[StepReport] = []
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices=devices), training_mode(model.model):
        for index, rows in enumerate(steps):
            begun = time.perf_counter()
            torch.manual_seed(derive_seed(seed, "dropout", index))
            rate = learning_rate(first_step + index, total_steps, config)
            loss, norm = optimization.step(rows, rate, f"step {index + 1} of {len(steps)}")
            tokens = sum(len(row.token_ids) for row in rows)
            report = StepReport(
                step=index + 1,
                steps=len(steps),
                loss=loss,
                learning_rate=rate,
                gradient_norm=norm,
                tokens=tokens,
                tokens_per_second=tokens / (time.perf_counter() - begun),
            )
            reports.append(report)
            if on_step is not None:
                on_step(report)
    loss_after = optimization.evaluate(steps[0], "the loss after training")
    trained = model.read_adapter(factors)
    return TrainingResult(
        delta=Delta(tensors={name: trained[name] - received[name] for name in received}),
        examples=sum(len(rows) for rows in steps),
        tokens=sum(report.tokens for report in reports),
        response_tokens=sum(int(row.loss_mask[1:].sum()) for rows in steps for row in rows),
        steps=len(steps),
        loss_before=reports[0].loss if loss_before is None else loss_before,
        loss_after=loss_after,
        seconds=time.perf_counter() - started,
        peak_memory_mib=peak_memory_mib(),
        moments=optimization.moments if config.keep_optimizer_state else None,
        mean_gradients={name: mean.cpu().numpy() for name, mean in optimization.mean_gradients.items()},
    )


def _beside(
    parameters: Mapping[str, torch.nn.Parameter], arrays: Mapping[str, np.ndarray[Any, Any]]
) -> dict[str, torch.Tensor]:
    """Return copies of a parameter's arrays where it is, of its type."""
    return {
        name: torch.from_numpy(arrays[name].copy()).to(parameter.device, parameter.dtype)
        for name, parameter in parameters.items()
    }
