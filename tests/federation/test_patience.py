"""A reply that stays unfinished is given up in time, and the bound is gone afterwards."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectUnavailableError, pull_objects
from flwr.superlink.grid import http_grid

from fedtune.federation.patience import GRID_MODULE, PULL, bounded_pulls


def never(object_id: str) -> bytes:
    raise ObjectUnavailableError(object_id)


def test_arrays_that_never_come_are_given_up_after_the_bound() -> None:
    with bounded_pulls(0.2), pytest.raises(ObjectPullError):
        vars(http_grid)["pull_objects"](["some object"], never)


def test_the_bound_holds_within_and_no_longer() -> None:
    assert vars(http_grid)["pull_objects"] is pull_objects
    with bounded_pulls(5.0):
        assert vars(http_grid)["pull_objects"] is not pull_objects
    assert vars(http_grid)["pull_objects"] is pull_objects


def test_a_simulation_does_not_load_flowers_network_for_it() -> None:
    code = (
        "import sys, fedtune.simulation.simulate, fedtune.federation.patience as patience\n"
        "with patience.bounded_pulls(1.0): pass\n"
        f"print({GRID_MODULE!r} in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["False"]


def test_flowers_grid_calls_the_name_that_is_bounded() -> None:
    assert (http_grid.__name__, vars(http_grid)[PULL]) == (GRID_MODULE, pull_objects)
    source = inspect.getsource(http_grid.HttpGrid.pull_messages)
    assert "pull_objects(" in source
    assert "max_time" not in source
