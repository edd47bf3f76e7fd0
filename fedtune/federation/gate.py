"""A gate before the next global adapter: an aggregate that is clearly worse is taken back.

After each round the new adapter is judged on held-out rows, and the run goes back to the last good one

* where a value of it is not finite,
* where the global adapter moved further than ``gate.norm_bound`` (L2 over all tensors), or
* where its held-out loss is above the last good adapter's by more than ``gate.margin``, or there is none.

The idea is the error-rate based rejection of Barreno et al. ("The security of machine learning", Machine
Learning 81, 2010, section 4.4.1), here on aggregates and not on single updates, so that it works on sums
under masks. It sees damage to the held-out loss and nothing else: a backdoor that leaves the loss as it is
passes, and so does a decline of less than the margin a round, since each passed adapter is the next one's
measure.

The judge is the median of the sites' losses, which fewer than half of them cannot move beyond what honest
sites say, or the server's own rows, which no site can touch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from statistics import median

import numpy as np

from fedtune.aggregation.carrying import Carried, side_car_of
from fedtune.config.schema import Config, GateConfig
from fedtune.data.load import load_examples
from fedtune.data.tokenize import TokenizedExample, tokenize_all
from fedtune.errors import TrainingError, UpdateError
from fedtune.evaluation.loss import held_out_loss
from fedtune.federation.downlink import placed
from fedtune.models.adapted import load_tokenizer, shared_adapted_model
from fedtune.models.adapter import Adapter
from fedtune.models.hardware import physical_cores, set_threads
from fedtune.observability.events import Event, GateJudged, effective_events

__all__ = ["Gate", "ServerRows", "median_loss"]

Loss = Callable[[int, Adapter, Carried], float | None]
"""Held-out loss of a round's adapter in nats per response token; None where there is none."""


def median_loss(losses: Iterable[float]) -> float | None:
    """Return the median of what sites say; None where none says anything."""
    known = sorted(losses)
    return median(known) if known else None


@dataclass(kw_only=True)
class Gate:
    """Judges one adapter after another; each that passes is what the next is measured by.

    Attributes:
        config: When an adapter is turned away.
        loss: Measures one.
        record: Keeps the event.
    """

    config: GateConfig
    loss: Loss
    record: Callable[[Event], None]
    _good_loss: float | None = field(init=False, default=None)
    _good_round: int = field(init=False, default=0)

    def begin(self, events: Iterable[Event], adapter: Adapter, carried: Carried) -> None:
        """Know the adapter that a session starts from: from the log, or by measuring the seeded start.

        Args:
            events: Of the run so far; what a resume voids does not count.
            adapter: That the session starts from.
            carried: What the aggregation method remembers with it.
        """
        judged = [event for event in effective_events(events) if isinstance(event, GateJudged)]
        if not judged:
            self._pass(0, self.loss(0, adapter, carried))
        elif judged[-1].passed:
            self._good_loss, self._good_round = judged[-1].loss, judged[-1].round
        else:
            self._good_loss, self._good_round = judged[-1].last_good_loss, judged[-1].last_good_round

    def judge(self, round_number: int, received: Adapter, made: Adapter, carried: Carried) -> bool:
        """Return whether what a round made becomes the global adapter.

        Args:
            round_number: The round.
            received: The last good adapter, which the round's sites received.
            made: What was made of it.
            carried: What the aggregation method would remember.
        """
        moved = _distance(received, made)
        bound = self.config.norm_bound
        if bound is not None and not moved <= bound:
            reason = f"the global adapter moved by {moved:.3g}, at most {bound:.3g} is allowed"
            return self._fail(round_number, None, reason)
        loss = self.loss(round_number, made, carried)
        if loss is None:
            return self._fail(round_number, None, "there is no held-out loss to judge the adapter by")
        if self._good_loss is not None and not loss <= self._good_loss + self.config.margin:
            return self._fail(
                round_number,
                loss,
                f"the held-out loss is {loss:.4f}, {self.config.margin:g} more than that of round "
                f"{self._good_round} is allowed, which was {self._good_loss:.4f}",
            )
        return self._pass(round_number, loss)

    def refuse(self, round_number: int, error: UpdateError) -> bool:
        """Turn away a round whose updates gave no finite adapter; any other error is raised again.

        Raises:
            UpdateError: The error, unless it is FT508.
        """
        if any(problem.code != "FT508" for problem in error.problems):
            raise error
        return self._fail(round_number, None, error.problems[0].what)

    def _pass(self, round_number: int, loss: float | None) -> bool:
        before = self._good_loss, self._good_round
        self._good_loss, self._good_round = loss, round_number
        return self._say(round_number, loss, None, before)

    def _fail(self, round_number: int, loss: float | None, reason: str) -> bool:
        return self._say(round_number, loss, reason, (self._good_loss, self._good_round))

    def _say(
        self, round_number: int, loss: float | None, reason: str | None, good: tuple[float | None, int]
    ) -> bool:
        self.record(
            GateJudged(
                round=round_number,
                passed=reason is None,
                reason=reason,
                loss=loss,
                last_good_loss=good[0],
                last_good_round=good[1],
            )
        )
        return reason is None


class ServerRows:
    """Held-out rows that lie at the server, and the base model to judge adapters by.

    Args:
        config: ``gate.files`` names the rows; ``data`` says how they are read and tokenized.

    Raises:
        DataError: Every problem of the rows.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._rows: list[TokenizedExample] = _rows(config)

    def loss(self, _: int, adapter: Adapter, carried: Carried) -> float | None:
        """Return the held-out loss of an adapter; None where it is not finite."""
        config = self._config
        set_threads(config.training.threads or physical_cores())
        model = shared_adapted_model(
            config.model, config.peft, gradient_checkpointing=config.training.gradient_checkpointing
        )
        try:
            with placed(model, adapter, side_car_of(carried)):
                tokens = config.evaluation.microbatch_tokens
                return held_out_loss(model, self._rows, microbatch_tokens=tokens).loss
        except TrainingError as error:
            if error.problems[0].code != "FT404":
                raise
            return None


def _rows(config: Config) -> list[TokenizedExample]:
    data = replace(config.data, source="files", files=config.gate.files)
    return tokenize_all(load_examples(data).examples, load_tokenizer(config.model), data)


def _distance(before: Adapter, after: Adapter) -> float:
    squares = (
        float(np.sum((after[name].astype(np.float64) - before[name].astype(np.float64)) ** 2))
        for name in before
    )
    return float(np.sqrt(sum(squares)))
