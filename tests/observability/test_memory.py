"""Peak memory of this process."""

from __future__ import annotations

import subprocess
import sys

from fedtune.observability.memory import peak_memory_mib


def test_the_peak_includes_a_buffer_that_is_already_gone() -> None:
    before = peak_memory_mib()
    buffer = bytearray(int(before + 64) << 20)
    del buffer
    after = peak_memory_mib()
    assert after >= before + 32
    assert peak_memory_mib() == after


def test_a_child_does_not_inherit_the_peak_of_its_parent() -> None:
    buffer = bytearray(256 << 20)
    del buffer
    code = "from fedtune.observability.memory import peak_memory_mib; print(peak_memory_mib())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(child.stdout) < 128
