"""The peak memory of this process."""

from __future__ import annotations

import subprocess
import sys

CHECK = """
import numpy as np
from fedtune.training.memory import peak_memory_mib
before = peak_memory_mib()
block = np.ones(200 * 2**20, dtype=np.uint8)
during = peak_memory_mib()
del block
print(before, during, peak_memory_mib())
"""


def test_it_grows_with_what_is_held_and_keeps_the_peak():
    # A process of its own: the peak of this one may be anywhere above.
    done = subprocess.run([sys.executable, "-c", CHECK], check=True, capture_output=True, text=True)
    before, during, after = (float(value) for value in done.stdout.split())
    assert 195 < during - before < 260
    assert after > during - 1  # the kernel adds it up in batches
