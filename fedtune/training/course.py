"""A client's way through the steps of a round: what it is to do, how far it is, and what it says of it."""

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
from fedtune.models.adapter import Adapter, AdapterSpec, Factor
from fedtune.training.delta import Delta
from fedtune.training.memory import peak_memory_mib
from fedtune.training.optimizer import Moments
from fedtune.training.schedule import learning_rate
from fedtune.training.step import Optimization, Pull

__all__ = ["Assignment", "Course", "StepReport", "TrainingResult"]


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What a client is to train.

    Attributes:
        adapter: Where it starts.
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
        ValueError: There are no steps.
    """

    adapter: Adapter
    steps: Sequence[Sequence[TokenizedExample]]
    config: TrainingConfig
    factors: Sequence[Factor]
    first_step: int
    total_steps: int
    seed: int
    moments: Moments | None = None
    pulled_to: Mapping[str, np.ndarray[Any, Any]] | None = None
    correction: Mapping[str, np.ndarray[Any, Any]] | None = None
    on_step: Callable[[StepReport], None] | None = None

    def __post_init__(self) -> None:
        if not self.steps:
            raise ValueError("train needs at least one step, got none")


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
        adapter: The trained adapter, with the factors that were not trained.
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
    adapter: Adapter
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


class Course:
    """Where a client stands in its assignment.

    Args:
        assignment: What it is to train.
        model: Base and adapter.
        spec: Of the adapter.
        parameters: The tensors to train, by name; they hold where the assignment starts.
    """

    def __init__(
        self,
        assignment: Assignment,
        model: torch.nn.Module,
        spec: AdapterSpec,
        parameters: Mapping[str, torch.nn.Parameter],
    ) -> None:
        config = assignment.config
        self.assignment = assignment
        self._received = {name: assignment.adapter[name] for name in spec.names(assignment.factors)}
        target = self._received if assignment.pulled_to is None else assignment.pulled_to
        correction = assignment.correction
        self.optimization = Optimization(
            model,
            parameters,
            config,
            assignment.moments,
            pull=Pull(to=_beside(parameters, target), strength=config.proximal_mu)
            if config.proximal_mu
            else None,
            correction=None if correction is None else _beside(parameters, correction),
        )
        self._reports: list[StepReport] = []

    @property
    def is_over(self) -> bool:
        """Whether all steps are taken."""
        return len(self._reports) == len(self.assignment.steps)

    @property
    def rows(self) -> Sequence[TokenizedExample]:
        """Rows of the next step."""
        return self.assignment.steps[len(self._reports)]

    @property
    def name(self) -> str:
        """What an error calls the next step."""
        return f"step {len(self._reports) + 1} of {len(self.assignment.steps)}"

    @property
    def seed(self) -> int:
        """Seed of the next step's dropout."""
        return derive_seed(self.assignment.seed, "dropout", len(self._reports))

    @property
    def rate(self) -> float:
        """The next step's learning rate."""
        step = self.assignment.first_step + len(self._reports)
        return learning_rate(step, self.assignment.total_steps, self.assignment.config)

    def advance(self, loss: float, norm: float, seconds: float) -> None:
        """Record that the next step was taken.

        Args:
            loss: Mean nats per response token before the step.
            norm: L2 norm of the gradient, as of `Optimization.step`.
            seconds: Wall-clock time of the step.
        """
        tokens = sum(len(row.token_ids) for row in self.rows)
        report = StepReport(
            step=len(self._reports) + 1,
            steps=len(self.assignment.steps),
            loss=loss,
            learning_rate=self.rate,
            gradient_norm=norm,
            tokens=tokens,
            tokens_per_second=tokens / seconds,
        )
        self._reports.append(report)
        if self.assignment.on_step is not None:
            self.assignment.on_step(report)

    def result(
        self, adapter: Adapter, *, loss_before: float | None, loss_after: float, started: float
    ) -> TrainingResult:
        """Return what the training gave.

        Args:
            adapter: The trained one.
            loss_before: Of the first step's rows before training; None where that step's own loss says it.
            loss_after: Of the same rows after it.
            started: When training began, of `time.perf_counter`.
        """
        steps, optimization = self.assignment.steps, self.optimization
        received = self._received
        return TrainingResult(
            delta=Delta(tensors={name: adapter[name] - received[name] for name in received}),
            adapter=adapter,
            examples=sum(len(rows) for rows in steps),
            tokens=sum(report.tokens for report in self._reports),
            response_tokens=sum(int(row.loss_mask[1:].sum()) for rows in steps for row in rows),
            steps=len(steps),
            loss_before=self._reports[0].loss if loss_before is None else loss_before,
            loss_after=loss_after,
            seconds=time.perf_counter() - started,
            peak_memory_mib=peak_memory_mib(),
            moments=optimization.moments if self.assignment.config.keep_optimizer_state else None,
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
