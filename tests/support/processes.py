"""Child processes of tests."""

from __future__ import annotations

import signal

__all__ = ["hears_ctrl_c"]


def hears_ctrl_c() -> None:
    """Let a child hear SIGINT: a shell starts background jobs deaf to it, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
