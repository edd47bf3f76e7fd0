"""What is set for the libraries under torch is set before they load, and never over a user's own value."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

NAMES = (
    "OMP_WAIT_POLICY",
    "OPENBLAS_NUM_THREADS",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY",
    "LRU_CACHE_CAPACITY",
)
CODE = (
    "import json, os, sys, fedtune; "
    f"print(json.dumps([[os.environ.get(name) for name in {NAMES}], "
    "[name for name in ('torch', 'numpy') if name in sys.modules]]))"
)


@pytest.mark.parametrize("own", [None, "7"])
def test_libraries_are_told_before_they_load_and_own_values_are_kept(own: str | None) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    environment |= dict.fromkeys(NAMES, own) if own else {}
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=environment, check=True, capture_output=True, text=True
    )
    values, loaded = json.loads(done.stdout)
    assert loaded == []
    assert values == ([own] * len(NAMES) if own else ["passive", "1", "64", "64"])


def test_the_screen_stays_free_of_advice_about_a_kernel_that_is_never_used() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import fedtune.simulation.simulate, bitsandbytes"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("", "")
