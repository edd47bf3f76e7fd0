"""A line between a site and its server that can be slow, silent or cut: TCP on loopback, byte for byte."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from typing import Literal

__all__ = ["Link"]

State = Literal["open", "cut", "silent"]


class Link:
    """Forwards connections to a port of 127.0.0.1.

    Attributes:
        port: Where it listens.
        state: ``open`` forwards; ``cut`` ends every connection and refuses new ones; ``silent`` takes
            connections and forwards nothing, as a firewall that drops does.
        delay_seconds: How long each piece is held back, either way.
        carried: Bytes forwarded so far.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.2)
        self.port: int = self._listener.getsockname()[1]
        self.state: State = "open"
        self.delay_seconds = 0.0
        self.carried = 0
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._threads: list[threading.Thread] = []
        self._spawn(self._accept)

    def cut(self) -> None:
        """End all connections, and refuse new ones until `mend`."""
        self.state = "cut"
        with self._lock:
            for each in self._open:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        """Carry on."""
        self.state = "open"

    def close(self) -> None:
        self._closed = True
        self.cut()
        for thread in list(self._threads):
            thread.join(timeout=5)
        self._listener.close()

    def _spawn(self, work: object, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closed:
            try:
                near, _ = self._listener.accept()
            except OSError:
                continue
            if self.state == "cut":
                near.close()
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self._target), timeout=5)
            except OSError:
                near.close()
                continue
            with self._lock:
                self._open |= {near, far}
            self._spawn(self._carry, near, far)
            self._spawn(self._carry, far, near)

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        source.settimeout(0.2)
        try:
            while not self._closed and self.state != "cut":
                if self.state == "silent":
                    time.sleep(0.1)
                    continue
                try:
                    piece = source.recv(65_536)
                except TimeoutError:
                    continue
                if not piece:
                    break
                time.sleep(self.delay_seconds)
                sink.sendall(piece)
                self.carried += len(piece)
        except OSError:
            pass
        finally:
            with self._lock:
                self._open -= {source, sink}
            for each in (source, sink):
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
                each.close()
