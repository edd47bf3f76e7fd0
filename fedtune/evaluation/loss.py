"""The held-out loss: how well the responses of rows that trained nothing are predicted."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite

from fedtune.data.tokenize import TokenizedExample
from fedtune.errors import Problem, TrainingError
from fedtune.models.adapted import AdaptedModel
from fedtune.training.batches import lay_out
from fedtune.training.loss import ResponseLoss
from fedtune.training.modes import evaluation_mode

__all__ = ["HeldOutLoss", "held_out_loss"]


@dataclass(frozen=True, kw_only=True)
class HeldOutLoss:
    """A held-out loss and what it was measured on.

    Attributes:
        loss: Mean nats per response token, over all tokens of all rows.
        tokens: Response tokens, the mean's denominator.
        examples: Rows.
        seconds: Wall-clock time.
    """

    loss: float
    tokens: int
    examples: int
    seconds: float


def held_out_loss(
    model: AdaptedModel,
    examples: Sequence[TokenizedExample],
    *,
    microbatch_tokens: int,
    on_microbatch: Callable[[], object] | None = None,
) -> HeldOutLoss:
    """Measure the loss of the loaded adapter, without dropout and without gradients.

    Guarantees:
        * The same value up to rounding, whatever ``microbatch_tokens`` is; the same bits for the same
          arguments and number of threads.
        * Neither weights, modes nor torch's random state change.

    Args:
        model: Base and adapter.
        examples: The rows; at least one has a response token.
        microbatch_tokens: Most tokens in one forward pass. Attention within it is quadratic: where rows are
            short, some hundreds are faster than thousands.
        on_microbatch: Called before each forward pass; what it raises ends the evaluation.

    Raises:
        TrainingError: FT404, the loss is not finite.
        ValueError: No row has a response token.
    """
    started = time.perf_counter()
    loss = ResponseLoss(model.model)
    microbatches = lay_out(
        examples, microbatch_tokens=microbatch_tokens, packing=loss.packs, share_prefix=loss.shares_prefix
    )
    if not microbatches:
        raise ValueError(f"a held-out loss needs a response token, got {len(examples)} rows without one")
    with evaluation_mode(model.model):
        nats = 0.0
        for microbatch in microbatches:
            if on_microbatch is not None:
                on_microbatch()
            nats += float(loss(microbatch))
    tokens = sum(len(microbatch.target_ids) for microbatch in microbatches)
    if not isfinite(nats):
        raise TrainingError(
            Problem(
                code="FT404",
                what=f"the held-out loss over {len(examples)} rows is {nats}",
                where="the adapter that was evaluated",
                fix="it has diverged: lower training.learning_rate, or set training.max_gradient_norm=1.0",
            )
        )
    return HeldOutLoss(
        loss=nats / tokens, tokens=tokens, examples=len(examples), seconds=time.perf_counter() - started
    )
