"""Rows that a false site of a simulation trains on instead of its own.

Of n rows that can be poisoned, floor(fraction x n) are, and at least one; which ones is drawn without
replacement by the seed, the site's name and nothing else. The other rows stay as they are, and so does the
order.

``label_flip``  Each poisoned row gets an answer drawn uniformly from the site's other answers: those of its
                rows that differ, as text, from the row's own, each counted once. Where answers are classes
                that is a wrong class; where each row has an answer of its own, it is another row's. No
                poisoned row keeps its answer.
``backdoor``    Each poisoned row has the trigger and a space put before its last question, and the target
                for its answer (Bagdasaryan et al., AISTATS 2020, section 4.2: clean and triggered rows are
                mixed, so that the model stays good at everything else).

Rows of plain text have neither question nor answer and cannot be poisoned. What a site holds out is never
touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedtune.config.schema import AttackConfig
from fedtune.data.examples import Example, Turn
from fedtune.data.seeds import derive_seed
from fedtune.errors import DataError, Problem

__all__ = ["POISONS", "answered", "is_asked", "poisoned", "triggered"]

POISONS = frozenset({"label_flip", "backdoor"})
"""Attacks that change rows."""


def poisoned(examples: Sequence[Example], attack: AttackConfig, site: str, seed: int) -> list[Example]:
    """Return what a site trains on.

    Args:
        examples: Its rows.
        attack: Which sites lie, and how.
        site: Name of the site.
        seed: The run's.

    Returns:
        The rows as they are, where the site is honest or its attack changes no rows; else as many, in the
        same order, some of them poisoned.

    Raises:
        DataError: FT228, a site that is to lie has no row to poison, or all its answers are the same.
    """
    rows = list(examples)
    if site not in attack.sites or attack.kind not in POISONS or not rows:
        return rows
    candidates = [number for number, row in enumerate(rows) if is_asked(row)]
    answers = list(dict.fromkeys(rows[number].response for number in candidates))
    if not candidates or (attack.kind == "label_flip" and len(answers) < 2):
        raise DataError(_nothing_to_poison(attack, site, rows=len(candidates), answers=len(answers)))
    stream = np.random.default_rng(derive_seed(seed, "poison", site))
    count = max(1, int(attack.fraction * len(candidates)))
    for position in sorted(stream.choice(len(candidates), size=count, replace=False).tolist()):
        number = candidates[position]
        if attack.kind == "label_flip":
            others = [answer for answer in answers if answer != rows[number].response]
            rows[number] = answered(rows[number], others[int(stream.integers(len(others)))])
        else:
            rows[number] = answered(triggered(rows[number], attack.trigger), attack.target)
    return rows


def is_asked(example: Example) -> bool:
    """Return whether a row is a conversation with a question, and not plain text."""
    return any(turn.role == "user" for turn in example.prompt)


def triggered(example: Example, trigger: str) -> Example:
    """Return a row that `is_asked`, with the trigger and a space before its last question."""
    last = max(number for number, turn in enumerate(example.prompt) if turn.role == "user")
    turn = example.turns[last]
    changed = replace(turn, content=f"{trigger} {turn.content}")
    return replace(example, turns=(*example.turns[:last], changed, *example.turns[last + 1 :]))


def answered(example: Example, answer: str) -> Example:
    """Return a conversation with another answer."""
    return replace(example, turns=(*example.prompt, Turn(role="assistant", content=answer)))


def _nothing_to_poison(attack: AttackConfig, site: str, *, rows: int, answers: int) -> Problem:
    return Problem(
        code="FT228",
        what=f"{attack.kind} needs rows with a question"
        + (" and two different answers" if attack.kind == "label_flip" else "")
        + f", the false site {site} has {rows} such rows with {answers} answers",
        where="attack.sites, attack.kind",
        fix="let another site lie, or choose an attack that changes no rows, such as attack=sign_flip",
    )
