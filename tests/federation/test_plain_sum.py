"""Updates of a round are added once, by name, whoever comes first and however often they are asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtune.errors import Problem, UpdateError
from fedtune.federation.plain_sum import PlainSum
from fedtune.training.delta import Delta

NAMES = "abcde"


def delta(name: str) -> Delta:
    return Delta(tensors={"t": np.full(1, ord(name), dtype=np.float32)})


def name_of(given_: Delta) -> str:
    return chr(int(given_.tensors["t"][0]))


@given(st.lists(st.sets(st.sampled_from(NAMES)), min_size=1, max_size=3), st.randoms(use_true_random=False))
def test_attempts_at_the_same_cohort_add_in_the_order_of_the_names(
    answers: list[set[str]], random: Any
) -> None:
    added: list[tuple[str, float]] = []
    total = PlainSum(lambda name, each, weight: added.append((name + name_of(each), weight)))
    for attempt, answering in enumerate(answers, start=1):
        total.expect(NAMES)
        coming = [name for name in answering if name not in total.weights]
        random.shuffle(coming)
        gone = set(NAMES) - set(total.weights) - answering if attempt == len(answers) else ()
        for name in coming:
            total.take(name, delta(name), float(ord(name)), gone=gone)
    total.finish()
    arrived = sorted(set().union(*answers))
    assert added == [(name + name, float(ord(name))) for name in arrived]
    assert list(total.weights) == arrived


def test_an_update_that_cannot_be_added_is_laid_on_nobody() -> None:
    problem = Problem(code="FT507", what="no", where="here", fix="none")

    def refuse(_: str, each: Delta, weight: float) -> None:
        raise UpdateError(problem)

    total = PlainSum(refuse)
    total.expect("ab")
    total.take("a", delta("a"), 1.0)
    total.take("b", delta("b"), 1.0)
    with pytest.raises(UpdateError, match="FT507"):
        total.finish()
