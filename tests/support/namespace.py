"""Another network namespace, joined to this one by a pair of virtual cards: for TCP, another machine."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

__all__ = ["HERE", "THERE", "namespace", "there"]

HERE, THERE = "198.18.77.1", "198.18.77.2"
"""Addresses of the two ends, of the range that RFC 2544 sets aside for tests."""


def there(name: str, command: Sequence[str]) -> list[str]:
    """A command that runs in a namespace."""
    return ["ip", "netns", "exec", name, *command]


@contextmanager
def namespace() -> Iterator[str]:
    """Make a namespace in which `HERE` is reachable from `THERE`; skips the test where it may not."""
    name, card = f"fedtune-{os.getpid()}", f"ft{os.getpid() % 10**6}"
    steps = [
        ["ip", "netns", "add", name],
        ["ip", "link", "add", card, "type", "veth", "peer", "name", "eth0", "netns", name],
        ["ip", "address", "add", f"{HERE}/30", "dev", card],
        ["ip", "link", "set", card, "up"],
        there(name, ["ip", "address", "add", f"{THERE}/30", "dev", "eth0"]),
        there(name, ["ip", "link", "set", "eth0", "up"]),
        there(name, ["ip", "link", "set", "lo", "up"]),
    ]
    try:
        for step in steps:
            try:
                subprocess.run(step, check=True, capture_output=True, text=True, timeout=20)
            except FileNotFoundError:
                pytest.skip("network namespaces need the program ip")
            except subprocess.CalledProcessError as error:
                pytest.skip(f"network namespaces are not allowed here: {error.stderr.strip()}")
        yield name
    finally:
        # The pair of cards goes with the namespace.
        subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True, timeout=20)
