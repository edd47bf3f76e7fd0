"""What may leave a site."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from support.adapters import random_delta, small_spec

from fedtune.errors import UpdateError
from fedtune.training.delta import Delta
from fedtune.updates.codec import to_arrays
from fedtune.updates.protect import Protected, protect

SPEC = small_spec()


def test_a_finite_delta_passes_bitwise_unchanged() -> None:
    delta = random_delta(SPEC, 1)
    protected = protect(delta)
    assert list(protected.tensors) == list(delta.tensors)
    assert all(protected.tensors[name] is delta.tensors[name] for name in delta.tensors)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused_by_tensor_place_and_value(bad: float) -> None:
    delta = random_delta(SPEC, 1)
    first, *_, last = delta.tensors
    delta.tensors[first][0, 1] = bad
    delta.tensors[last][1, 1] = delta.tensors[last][2, 0] = bad
    with pytest.raises(UpdateError) as caught:
        protect(delta)
    assert [problem.code for problem in caught.value.problems] == ["FT504", "FT504"]
    one, two = caught.value.problems
    assert first in one.where
    assert last in two.where
    assert one.what == f"1 of 14 values are not finite, the first is {bad} at (0, 1)"
    assert two.what == f"2 of 6 values are not finite, the first is {bad} at (1, 1)"


def test_a_diverged_model_gives_a_message_that_can_be_read() -> None:
    spec = small_spec(((4, 4),) * 200)
    delta = Delta(tensors={name: np.full(shape, np.nan, "float32") for name, shape in spec.shapes.items()})
    with pytest.raises(UpdateError) as caught:
        protect(delta)
    assert len(caught.value.problems) == 21
    assert caught.value.problems[-1].what == "the same is wrong with 380 more tensors"


def test_a_delta_of_nothing_is_refused() -> None:
    with pytest.raises(UpdateError, match="FT501: the delta holds no tensors"):
        protect(Delta(tensors={}))


def test_only_protect_makes_a_protected() -> None:
    with pytest.raises(TypeError, match="only protect"):
        Protected(tensors=random_delta(SPEC, 1).tensors)


@pytest.mark.parametrize(
    "payload", [random_delta(SPEC, 1), random_delta(SPEC, 1).tensors, protect(random_delta(SPEC, 1))]
)
def test_a_delta_that_is_not_protected_and_encoded_cannot_become_a_message(payload: Any) -> None:
    with pytest.raises(TypeError, match="only an Encoded or an adapter may travel"):
        to_arrays(payload)


def test_the_norm_of_a_delta_is_that_of_all_its_values_together() -> None:
    delta = random_delta(SPEC, 3)
    values = np.concatenate([tensor.ravel() for tensor in delta.tensors.values()]).astype(np.float64)
    assert delta.norm == pytest.approx(float(np.linalg.norm(values)), rel=1e-12)


def test_a_delta_survives_a_trip_to_another_process() -> None:
    delta = random_delta(SPEC, 4)
    back = pickle.loads(pickle.dumps(delta))
    assert all(np.array_equal(back.tensors[name], delta.tensors[name]) for name in delta.tensors)
