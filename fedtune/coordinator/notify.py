"""Telling a coordinator's people what happened, through a command or a webhook, without delaying a round.

A notice says that something happened, in which run and round, and when. It has no field for anything that is
in a row or a weight.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final

import httpx

from fedtune.coordinator.notify_settings import Kind, NotifySettings, host_of

__all__ = ["Notice", "Notifier"]

logger = logging.getLogger(__name__)

COMMAND_SECONDS: Final = 30.0
WEBHOOK_SECONDS: Final = 10.0
WAITS_SECONDS: Final = (2.0, 10.0, 60.0, 300.0)
"""Before each further try of a webhook; the factor is for a server that is being restarted."""

_MOST_WAITING: Final = 256
_LONGEST_WHAT: Final = 2_000
_LONGEST_OUTPUT: Final = 2_000
_TRY_AGAIN: Final = frozenset({408, 425, 429})


@dataclass(frozen=True, kw_only=True)
class Notice:
    """Something that a coordinator's people want to know.

    Attributes:
        kind: Of the four.
        federation: Its name.
        run: The run; None where it belongs to none.
        round: Likewise.
        what: In a sentence or a few; the words of an error only as `fedtune.observability.json_log.words_of`
            gives them.
        when: With its zone.
    """

    kind: Kind
    federation: str
    run: str | None = None
    round: int | None = None
    what: str
    when: datetime

    def as_json(self) -> dict[str, Any]:
        """The object that is handed over; the keys are an interface."""
        return {
            "kind": self.kind,
            "federation": self.federation,
            "run": self.run,
            "round": self.round,
            "what": self.what[:_LONGEST_WHAT],
            "when": self.when.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        }


class Notifier:
    """Hands notices over in a thread of its own, one after the other. Close it, or use ``with``.

    Guarantees:
        * `give` returns at once and raises nothing, whatever the command or the webhook does.
        * Of a notice that could not be handed over, each way logs one warning: FT655 for the command, FT656
          for the webhook.
        * `close` returns after at most the time that it was given.

    Args:
        settings: Whom to tell, and of what.
    """

    def __init__(self, settings: NotifySettings) -> None:
        self._settings = settings
        self._waiting: queue.Queue[Notice | None] = queue.Queue(_MOST_WAITING)
        self._closing = threading.Event()
        self._given_up = threading.Event()
        self._child: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._work, name="notify", daemon=True)
        self._told = settings.command is not None or settings.webhook is not None
        if self._told:
            self._thread.start()

    def give(self, notice: Notice) -> None:
        """Let a notice be handed over, if the settings ask for its kind."""
        if not self._told or notice.kind not in self._settings.on or self._closing.is_set():
            return
        try:
            self._waiting.put_nowait(notice)
        except queue.Full:
            logger.warning("a notice (%s) was dropped: %d are waiting", notice.kind, _MOST_WAITING)

    def close(self, *, seconds: float = 20.0) -> None:
        """Hand over what is waiting, without waiting before another try, and give up after a time.

        A command that still runs then is killed. Closing twice is fine.
        """
        if not self._told or self._closing.is_set():
            return
        self._closing.set()
        until = time.monotonic() + seconds
        with suppress(queue.Full):
            self._waiting.put(None, timeout=seconds)
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive():
            logger.warning("notices were not handed over: the time to close was over")
            self._given_up.set()
            self._kill()

    def __enter__(self) -> Notifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _work(self) -> None:
        while (notice := self._waiting.get()) is not None and not self._given_up.is_set():
            try:
                self._hand_over(notice)
            except Exception:
                logger.exception("a notice (%s) could not be handed over", notice.kind)

    def _hand_over(self, notice: Notice) -> None:
        body = json.dumps(notice.as_json()).encode()
        if self._settings.command is not None and (flaw := self._run(self._settings.command, body)):
            told = {"code": "FT655"}
            logger.warning("the command of notify failed at %s: %s", notice.kind, flaw, extra=told)
        if self._settings.webhook is not None and (flaw := self._post(self._settings.webhook, body)):
            host, told = host_of(self._settings.webhook), {"code": "FT656"}
            logger.warning("the webhook at %s did not take %s: %s", host, notice.kind, flaw, extra=told)

    def _run(self, command: tuple[str, ...], body: bytes) -> str | None:
        """Start the command; returns what went wrong."""
        # Files, not pipes: what the command leaves running may keep a pipe open, and be waited for.
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as output:
            given.write(body)
            given.seek(0)
            try:
                child = subprocess.Popen(  # noqa: S603  # the operator's own settings name it; there is no shell
                    command, stdin=given, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
                )
            except (OSError, ValueError) as error:
                return f"it cannot be started: {type(error).__name__}"
            self._child = child
            if self._given_up.is_set():
                self._kill()
            try:
                status = child.wait(COMMAND_SECONDS)
            except subprocess.TimeoutExpired:
                self._kill()
                child.wait()
                return f"it ran longer than {COMMAND_SECONDS:.0f} s and was killed"
            finally:
                self._child = None
            output.seek(0)
            said = output.read(_LONGEST_OUTPUT).decode(errors="replace").strip()
        if said:
            logger.info("the command of notify said: %s", said)
        return f"it ended with {status}" if status else None

    def _kill(self) -> None:
        child = self._child
        if child is not None and child.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)

    def _post(self, url: str, body: bytes) -> str | None:
        """Post a notice, again where that may help; returns what went wrong at last."""
        # A proxy of the environment stands between this machine and others, not between it and itself.
        proxied = url.startswith("https:")
        with httpx.Client(timeout=WEBHOOK_SECONDS, follow_redirects=False, trust_env=proxied) as client:
            for wait in (*WAITS_SECONDS, None):
                last = wait is None or self._closing.is_set()
                flaw, again = _posted(client, url, body)
                if flaw is None or last or not again:
                    return flaw
                self._closing.wait(wait)
        raise AssertionError("the last try returns")


def _posted(client: httpx.Client, url: str, body: bytes) -> tuple[str | None, bool]:
    """Return what went wrong, and whether another try may help."""
    try:
        # The answer is of no use, and a stream is not read.
        with client.stream("POST", url, content=body, headers={"Content-Type": "application/json"}) as answer:
            status = answer.status_code
    except httpx.TransportError as error:
        return type(error).__name__, True
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        return type(error).__name__, False
    if answer.is_success:
        return None, False
    return f"it answered {status}", status >= 500 or status in _TRY_AGAIN
