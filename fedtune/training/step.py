"""One optimizer step: gradient of the mean over all response tokens, correction, proximal term, clipping,
update.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from fedtune.config.schema import TrainingConfig
from fedtune.data.tokenize import TokenizedExample
from fedtune.errors import Problem, TrainingError
from fedtune.training.attention import attention_for
from fedtune.training.batches import Microbatch, lay_out
from fedtune.training.loss import ResponseLoss
from fedtune.training.modes import evaluation_mode
from fedtune.training.optimizer import Moments, load_moments, make_optimizer, read_moments

__all__ = ["Optimization", "Pull", "finite"]

_IDS_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class Pull:
    """A quadratic pull, (strength / 2) * ||w - to||^2, that is added to the loss.

    Attributes:
        to: Where it pulls to, by name.
        strength: mu of FedProx, lambda of Ditto.
    """

    to: Mapping[str, Tensor]
    strength: float


class Optimization:
    """The state of a client's training in one round: optimizer, what holds it back, tensors being trained.

    Args:
        model: Base and adapter.
        parameters: The tensors to train, by name, from where they are; no others require gradients.
        config: How to train.
        moments: States of the optimizer to go on with; None starts with empty ones.
        pull: What holds the tensors back, or None.
        correction: Added to each gradient, by name; None adds nothing, and no mean of gradients is kept.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        parameters: Mapping[str, torch.nn.Parameter],
        config: TrainingConfig,
        moments: Moments | None = None,
        *,
        pull: Pull | None = None,
        correction: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._model = model
        self._config = config
        self._named = dict(parameters)
        self._parameters = list(parameters.values())
        self._optimizer = make_optimizer(self._parameters, config)
        load_moments(self._optimizer, self._named, moments or {})
        trained = tuple(f"{name}/" for name in self._named)
        self._others = {key: value for key, value in (moments or {}).items() if not key.startswith(trained)}
        self._loss = ResponseLoss(model)
        self._pull = pull
        self._correction = correction
        self._gradient_sums = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        if correction is None:
            self._gradient_sums.clear()
        self._steps = 0

    def step(self, rows: Sequence[TokenizedExample], rate: float, name: str) -> tuple[float, float]:
        """Take one step.

        The gradients of the microbatches are those of sums, and are divided once by the response tokens of
        the whole step: accumulation changes nothing but rounding.

        Args:
            rows: All rows of the step.
            rate: Learning rate.
            name: What an error calls the step.

        Returns:
            Loss before the step, in mean nats per response token, and the L2 norm of the gradient, correction
            and proximal term included, before clipping.

        Raises:
            TrainingError: FT402, FT403, as of `fedtune.training.train.train`; the weights are untouched.
        """
        try:
            nats, targets = 0.0, 0
            for microbatch in self.lay_out(rows):
                with attention_for(self._model, microbatch.token_ids.shape[1]):
                    loss = self._loss(microbatch)
                    loss.backward()  # type: ignore[no-untyped-call]
                nats += finite(float(loss.detach()), [rows[row] for row in microbatch.rows], name)
                targets += len(microbatch.target_ids)
            return nats / targets, self.update(rows, targets, rate, name)
        finally:
            self._optimizer.zero_grad(set_to_none=True)

    def update(self, rows: Sequence[TokenizedExample], targets: int, rate: float, name: str) -> float:
        """Move the tensors by the gradients that they hold, which are those of a sum over targets.

        Args:
            rows: All rows of the step.
            targets: Response tokens among them.
            rate: Learning rate.
            name: What an error calls the step.

        Returns:
            The L2 norm of the gradient, as of `step`.

        Raises:
            TrainingError: FT403, it is not finite; the weights are untouched.
        """
        norm = self._prepare_gradients(targets)
        if not isfinite(norm):
            raise TrainingError(_not_finite("FT403", f"the gradient norm is {norm}", rows, name))
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._steps += 1
        return norm

    @property
    def mean_gradients(self) -> dict[str, Tensor]:
        """The mean over all steps of the gradients as they came, by name; empty without a correction."""
        return {name: total / self._steps for name, total in self._gradient_sums.items()}

    @property
    def moments(self) -> Moments:
        """A copy of the optimizer's states, and the given ones of tensors that are not trained now."""
        return self._others | read_moments(self._optimizer, self._named)

    def evaluate(self, rows: Sequence[TokenizedExample], name: str) -> float:
        """Return the mean nats per response token of these rows, without dropout.

        Raises:
            TrainingError: FT402, it is not finite.
        """
        nats, targets = 0.0, 0
        with evaluation_mode(self._model):
            for microbatch in self.lay_out(rows):
                nats += finite(float(self._loss(microbatch)), [rows[row] for row in microbatch.rows], name)
                targets += len(microbatch.target_ids)
        return nats / targets

    def lay_out(self, rows: Sequence[TokenizedExample]) -> tuple[Microbatch, ...]:
        """Return the microbatches of a step's rows.

        Raises:
            ValueError: There is no response token among them.
        """
        microbatches = lay_out(
            rows,
            microbatch_tokens=self._config.microbatch_tokens,
            packing=self._config.packing and self._loss.packs,
            share_prefix=self._loss.shares_prefix,
        )
        if not microbatches:
            raise ValueError(f"a step needs a response token, got {len(rows)} rows without one")
        return microbatches

    def _prepare_gradients(self, targets: int) -> float:
        """Sum to mean, correction, proximal term, clipping; returns the norm before clipping."""
        gradients = []
        for name, parameter in self._named.items():
            if parameter.grad is None:  # a layer that no row reaches
                if self._correction is None:
                    continue
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad /= targets
            if self._correction is not None:
                self._gradient_sums[name] += parameter.grad
                # SCAFFOLD (Karimireddy et al. 2020, Eq. 3): g(y) - c_i + c.
                parameter.grad += self._correction[name]
            if self._pull is not None:
                # The gradient of (strength / 2) * ||w - target||^2 (Li et al., "FedProx", 2020, Eq. 2).
                parameter.grad.add_(parameter.detach() - self._pull.to[name], alpha=self._pull.strength)
            gradients.append(parameter.grad)
        norm = get_total_norm(gradients)
        if self._config.max_gradient_norm is not None:
            clip_grads_with_norm_(self._parameters, self._config.max_gradient_norm, norm)
        return float(norm)


def finite(nats: float, rows: Sequence[TokenizedExample], name: str) -> float:
    """Return a loss, if it is finite.

    Raises:
        TrainingError: FT402, it is not.
    """
    if not isfinite(nats):
        raise TrainingError(_not_finite("FT402", f"the loss is {nats}", rows, name))
    return nats


def _not_finite(code: str, what: str, rows: Sequence[TokenizedExample], name: str) -> Problem:
    shown = ", ".join(row.id for row in rows[:_IDS_SHOWN])
    more = f" and {len(rows) - _IDS_SHOWN} more" if len(rows) > _IDS_SHOWN else ""
    return Problem(
        code=code,
        what=f"{what} in {name}",
        where=f"rows {shown}{more}",
        fix="lower training.learning_rate, set training.max_gradient_norm=1.0, set "
        "model.compute_dtype=float32 if it is float16, and look at these rows with `fedtune data check`",
    )
