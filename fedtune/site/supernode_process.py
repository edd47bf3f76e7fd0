"""Flower's SuperNode, as a process that ends when a part of it has ended.

A line that breaks in the middle of a TLS handshake makes Flower give up its connection for good, and an
answer that it does not expect ends the thread of its heartbeats. Its process lives on either way, and waits
for nothing: nobody would start it again. Here it ends. ``python -m fedtune.site.supernode_process`` takes the
arguments of ``flower-supernode``.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from flwr.supernode.cli.flower_supernode import flower_supernode

__all__ = ["run_whole"]


def run_whole(work: Callable[[], object]) -> NoReturn:
    """Do the work of a process, and end it with exit code 1 when that is done or a thread of it has failed.

    The traceback of a thread is written to stderr. Threads that still run are not waited for.
    """
    told = threading.excepthook

    def failed(arguments: threading.ExceptHookArgs) -> None:
        told(arguments)
        _end(f"a thread has ended: {arguments.exc_type.__name__}")

    threading.excepthook = failed
    work()
    _end("the connection to the coordinator was given up")


def _end(why: str) -> NoReturn:
    with suppress(OSError):  # a full disk keeps nothing alive
        print(why, file=sys.stderr)
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(1)


if __name__ == "__main__":
    run_whole(flower_supernode)
