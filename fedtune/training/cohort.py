"""Local training of several clients together: the frozen base is run once for the tokens of all.

Each client keeps what it has alone: its rows and their order, its adapter, its own loss, dropout masks,
clipping, optimizer and schedule. Their microbatches of one step stand end to end in one forward and one
backward pass (`fedtune.training.cohort_pass`); a client that has fewer microbatches or fewer steps than
others is not in the later ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence

import torch

from fedtune.data.tokenize import TokenizedExample
from fedtune.errors import TrainingError
from fedtune.models.adapted import AdaptedModel
from fedtune.models.stacked import StackedAdapters
from fedtune.training.batches import Microbatch
from fedtune.training.cohort_pass import CohortPass
from fedtune.training.course import Assignment, Course, TrainingResult
from fedtune.training.modes import evaluation_mode, has_dropout, training_mode
from fedtune.training.step import finite

__all__ = ["train_cohort"]


def train_cohort(
    model: AdaptedModel, assignments: Sequence[Assignment]
) -> list[TrainingResult | TrainingError]:
    """Train clients side by side, each as `fedtune.training.train.train` would alone.

    Guarantees:
        * A result is that of the client alone, up to the rounding of products of another shape.
        * A client whose loss or gradient is not finite fails alone, with the error that it would have alone.
        * The model's own adapter is not touched; torch's random state is left as it was found, and so are the
          modes of the model's layers.
        * The same assignments in the same order and number of threads give the same bits.

    Args:
        model: Base and adapter, of the rank of all assignments; `fedtune.training.cohort_check.cannot_batch`
            has found nothing against them.
        assignments: One for each client, of the same factors.

    Returns:
        In the order of the assignments: what was trained, or FT402 or FT403.

    Raises:
        ValueError: A step without response tokens.
    """
    return _Cohort(model, assignments).train()


class _Cohort:
    def __init__(self, model: AdaptedModel, assignments: Sequence[Assignment]) -> None:
        self._model, self._assignments = model, assignments
        self._errors: dict[int, TrainingError] = {}
        self._adapters = StackedAdapters(
            model, [assignment.adapter for assignment in assignments], assignments[0].factors
        )
        self._courses = [
            Course(assignment, model.model, model.spec, self._adapters.parameters(number))
            for number, assignment in enumerate(assignments)
        ]
        self._pass = CohortPass(model, self._adapters)

    def train(self) -> list[TrainingResult | TrainingError]:
        started, module = time.perf_counter(), self._model.model
        before: dict[int, float] = {}
        if has_dropout(module):  # without it, the first step's own loss is the one before
            before = self._evaluate("the loss before training")
        devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
        with torch.random.fork_rng(devices=devices), training_mode(module):
            while walking := [number for number in self._sound() if not self._courses[number].is_over]:
                self._step(walking)
        after = self._evaluate("the loss after training")
        return [
            self._errors[number]
            if number in self._errors
            else course.result(
                self._adapters.read(number),
                loss_before=before.get(number),
                loss_after=after[number],
                started=started,
            )
            for number, course in enumerate(self._courses)
        ]

    def _sound(self) -> list[int]:
        return [number for number in range(len(self._courses)) if number not in self._errors]

    def _step(self, walking: Collection[int]) -> None:
        """Take the next step of each of these."""
        begun = time.perf_counter()
        rows = {number: self._courses[number].rows for number in walking}
        for number in walking:
            self._adapters.dropout.seed(number, self._courses[number].seed)
        names = {number: self._courses[number].name for number in walking}
        try:
            sums, targets = self._sums(rows, names.__getitem__, trained=True)
            self._adapters.hand_out_gradients()
            taken = {}
            for number in sums:
                course = self._courses[number]
                try:
                    norm = course.optimization.update(course.rows, targets[number], course.rate, course.name)
                except TrainingError as error:
                    self._errors[number] = error
                else:
                    taken[number] = sums[number] / targets[number], norm
        finally:
            self._adapters.drop_gradients()
        seconds = time.perf_counter() - begun
        for number, (loss, norm) in taken.items():
            self._courses[number].advance(loss, norm, seconds)

    def _evaluate(self, name: str) -> dict[int, float]:
        """Return the mean nats per response token of the first step's rows, without dropout."""
        rows = {number: self._assignments[number].steps[0] for number in self._sound()}
        with evaluation_mode(self._model.model):
            sums, targets = self._sums(rows, lambda _: name, trained=False)
        return {number: nats / targets[number] for number, nats in sums.items()}

    def _sums(
        self,
        rows: dict[int, Sequence[TokenizedExample]],
        name: Callable[[int], str],
        *,
        trained: bool,
    ) -> tuple[dict[int, float], dict[int, int]]:
        """Return the summed loss and the targets of each client's rows, of those whose loss is finite."""
        layouts = {number: self._courses[number].optimization.lay_out(own) for number, own in rows.items()}
        sums = dict.fromkeys(rows, 0.0)
        for turn in range(max(map(len, layouts.values()), default=0)):
            parts: dict[int, Microbatch] = {
                number: layouts[number][turn]
                for number in rows
                if number not in self._errors and turn < len(layouts[number])
            }
            if not parts:
                break
            with self._pass.losses(parts, trained=trained) as losses:
                if trained:
                    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
            for number, loss in losses.items():
                of_part = [rows[number][row] for row in parts[number].rows]
                try:
                    sums[number] += finite(float(loss.detach()), of_part, name(number))
                except TrainingError as error:
                    self._errors[number] = error
        sound = [number for number in rows if number not in self._errors]
        return (
            {number: sums[number] for number in sound},
            {number: sum(len(part.target_ids) for part in layouts[number]) for number in sound},
        )
