"""Control variates on their way between a site and the server."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support.adapters import random_adapter, small_spec

from fedtune.config.compose import compose
from fedtune.errors import UpdateError
from fedtune.federation.controls import read_controls, with_change
from fedtune.updates.codec import to_arrays

UPDATES = replace(compose(["name=x"]).updates, max_norm=10.0)


def test_a_change_comes_back_bit_for_bit_beside_the_update() -> None:
    spec = small_spec()
    update, change = random_adapter(spec, 1), random_adapter(spec, 2)
    rest, found = read_controls(
        with_change(to_arrays(update), change), spec, ("A", "B"), UPDATES, where="round 1, client ear"
    )
    assert list(rest) == list(to_arrays(update))
    for name, values in change.items():
        np.testing.assert_array_equal(found[name], values, strict=True)


def test_a_change_longer_than_an_update_may_be_is_refused() -> None:
    spec = small_spec()
    adapter = random_adapter(spec, 1)
    far = {name: np.full_like(values, 1e3) for name, values in adapter.items()}
    with pytest.raises(UpdateError) as refused:
        read_controls(with_change(to_arrays(adapter), far), spec, ("A", "B"), UPDATES, where="client ear")
    (problem,) = refused.value.problems
    assert (problem.code, problem.where) == ("FT511", "client ear, control variates")
