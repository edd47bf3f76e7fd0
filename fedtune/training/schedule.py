"""The learning rate as a function of the step, over the whole federation."""

from __future__ import annotations

from math import cos, pi

from fedtune.config.schema import TrainingConfig

__all__ = ["learning_rate"]


def learning_rate(step: int, total_steps: int, config: TrainingConfig) -> float:
    r"""Return the learning rate of a step: a linear warm-up to the peak, then a decay.

    A schedule for each round would warm up and decay again and again; this one belongs to the federation. A
    client's ``k``-th step of round ``t`` (from 1) is step ``(t - 1) * steps_per_round + k`` for every client.

    With ``s`` the step, ``W = round(warmup_fraction * total_steps)``, ``f = final_learning_rate_fraction``:

    ==================  ============================================================================
    ``s < W``           ``peak * (s + 1) / (W + 1)``
    ``constant``        ``peak``
    ``linear``          ``peak * (f + (1 - f) * (1 - x))`` with ``x = (s - W) / (total_steps - W)``
    ``cosine``          ``peak * (f + (1 - f) * (1 + cos(pi * x)) / 2)`` (Loshchilov and Hutter, "SGDR",
                        2017, Eq. 5, one cycle)
    ==================  ============================================================================

    So the first step is never wasted on a rate of 0, the first step after the warm-up has the peak, and the
    final rate would be reached by the step after the last.

    Args:
        step: The step among all of the federation, from 0; those past the end keep the final rate.
        total_steps: Steps that a client which is drawn in every round takes.
        config: Peak, warm-up and decay.
    """
    warmup = round(config.warmup_fraction * total_steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    if config.decay == "constant":
        return config.learning_rate
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    remaining = 1.0 - progress if config.decay == "linear" else (1.0 + cos(pi * progress)) / 2.0
    final = config.final_learning_rate_fraction
    return config.learning_rate * (final + (1.0 - final) * remaining)
