"""Where every message to a site passes: the operator's word, the policy, the audit log, and only then the
work.

    asked (audit) -> standing -> version -> bundle -> configuration -> policy -> approval -> work -> left
    (audit)

A preflight, which comes before a run, is asked, passes standing, version and bundle, and is told what the
rest would say.

Whatever is refused is answered with a code and written down; what is in the site's own log in detail does
not leave.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from flwr.app import ArrayRecord, Context, Message
from flwr.clientapp import ClientApp

from fedtune.config.wire import config_from_json
from fedtune.errors import FederationError, FedtuneError
from fedtune.federation.client import build_client_app
from fedtune.federation.dialogue import MESSAGE_TYPES
from fedtune.federation.site import Site
from fedtune.federation.wire import ARRAYS, PROTOCOL, SECAGG, Failure, PreflightRequest, content, parse
from fedtune.observability.json_log import log_context, words_of
from fedtune.site.admission import Admission, PolicyRefusal, refused
from fedtune.site.audit import AuditLog
from fedtune.site.audit_events import HasLeft, SentTensor, WasAsked, WasRefused
from fedtune.site.deployed import DeployedSite
from fedtune.site.envelope import body_of, round_of, run_of, size_of, told_metrics
from fedtune.site.folder import SiteFolder
from fedtune.site.health_state import SiteState
from fedtune.site.policy_schema import SitePolicy
from fedtune.site.preflight import Readiness
from fedtune.site.settings import SiteSettings

__all__ = ["Desk"]

logger = logging.getLogger(__name__)

PREFLIGHT: Final = MESSAGE_TYPES["preflight"]
"""Asked before a run: it needs no approval, and trains nothing."""

_MAY_BE_SAID: Final = ("FT1", "FT402", "FT403", "FT404", "FT5", "FT6", "FT9")
_MAY_NOT_BE_SAID: Final = ("FT926", "FT928")
"""Codes whose words speak of what was asked, and not of this machine or its rows; and those among them whose
words name a file of the site.
"""

_LONGEST_REASON: Final = 4_000


@dataclass(kw_only=True)
class Desk:
    """Answers one site's messages.

    Guarantees:
        * Nothing is done for a message that the standing, the policy or the operator's approval refuses; that
          it came and that it was refused is on the disk before the answer leaves.
        * What leaves is in the audit log, by names, sizes, norms and hashes, before it is handed to the
          network; where the log cannot be written, `answer` raises and there is no answer to hand over.
        * No answer says more of a refusal than its code and the policy's reasons, and none says a word of
          what failed on this machine.
        * A pause, a departure and the end of the client end a training with its next step.

    Attributes:
        folder: The site's.
        name: Its name, as it is enrolled.
        federation: What it belongs to; the policy's name of the coordinator.
        coordinator: Identity of the coordinator whose authority vouches for the connection.
        policy: What the site allows.
        settings: How it runs here.
        audit: The audit log.
        state: Told of each message, for health and metrics.
        stopping: Whether the client is about to end.
        clock: Gives the time, with its zone.
    """

    folder: SiteFolder
    name: str
    federation: str
    coordinator: bytes
    policy: SitePolicy
    settings: SiteSettings
    audit: AuditLog
    state: SiteState
    stopping: Callable[[], bool] = lambda: False
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    _site: DeployedSite = field(init=False)
    _app: ClientApp = field(init=False)
    _current: Site | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._site = DeployedSite(
            folder=self.folder,
            name=self.name,
            audit_head=self.audit.head,
            on_step=self._go_on,
            on_microbatch=self._go_on,
            on_model=lambda: self.state.set_model_loaded(True),
        )
        self._app = build_client_app(self._find_site)
        self._admission = Admission(
            folder=self.folder,
            federation=self.federation,
            coordinator=self.coordinator,
            policy=self.policy,
            settings=self.settings,
            clock=self.clock,
        )
        self._readiness = Readiness(self.folder, self.name)

    def answer(self, message: Message, context: Context, bundle: str) -> Message:
        """Answer a message.

        Args:
            message: As it came.
            context: Flower's, with the coordinator's run config.
            bundle: SHA-256 of the bundle that came with it, in hex.

        Raises:
            MachineError: FT830 to FT832, the audit log cannot be written: nothing may leave.
        """
        kind = message.metadata.message_type
        asked = WasAsked(run=run_of(context), round=round_of(message), message=kind[:40], bundle=bundle)
        with log_context(run=asked.run, round=asked.round), self.state.working(asked.run, asked.round):
            self.audit.append(asked)
            received = size_of(message)
            try:
                if kind == PREFLIGHT:
                    reply = self._preflight(message, context, bundle)
                else:
                    reply = self._work(message, context, bundle)
            except FedtuneError as error:
                return self._refuse(message, asked, error, received)
            except Exception as error:
                logger.exception("%s could not be looked at", asked.message)
                return self._refuse(message, asked, _unexpected(error), received)
            finally:
                self._current = None
            return self._leave(reply, asked, received)

    def _work(self, message: Message, context: Context, bundle: str) -> Message:
        """Do what a message of a run asks.

        Raises:
            FedtuneError: As `Admission.admit`.
        """
        given, config = self._admission.admit(message, context, bundle)
        self._current = self._site.of(config, base_name=given.model.name)
        started = time.monotonic()
        reply = self._said(message, self._app(message, context))
        if message.metadata.message_type == "train" and "code" not in body_of(reply):
            self.state.trained(seconds=time.monotonic() - started)
        return reply

    def _preflight(self, message: Message, context: Context, bundle: str) -> Message:
        """Say whether the site is ready for a run; nothing is trained, and nothing counts for a limit.

        Raises:
            FedtuneError: What the standing, the version, the bundle, the coordinator or the configuration
                says against an answer.
        """
        self._admission.admit_bundle(context, bundle)
        request = parse(message, PreflightRequest)
        if request.protocol != PROTOCOL:
            what = f"the server speaks protocol {request.protocol}, this site {PROTOCOL}"
            raise refused("FT601", what, fix="install the same fedtune on the server and on every site")
        given = config_from_json(request.config, where="the configuration that is asked about")
        answer = self._admission.foretell(given, bundle, to_be_approved=request.to_be_approved)
        return Message(content(self._readiness.reply(given, answer)), reply_to=message)

    def _find_site(self, _: Context) -> Site:
        if self._current is None:
            raise RuntimeError("a site is found for an admitted message alone")
        return self._current

    def _go_on(self, *_: object) -> None:
        """End a training or an evaluation at once when the operator pauses or leaves, or ends the client."""
        if self.stopping():
            raise refused("FT641", "the site's client is about to end")
        self._admission.require_standing()

    def _refuse(self, message: Message, asked: WasAsked, error: FedtuneError, received: int) -> Message:
        problem = error.problems[0]
        reasons = error.reasons if isinstance(error, PolicyRefusal) else ()
        logger.warning("refused %s: %s", asked.message, words_of(problem))
        self.audit.append(WasRefused(**dataclasses.asdict(asked), code=problem.code, reasons=reasons))
        reply = self._failure(message, problem.code, problem.what)
        self.state.refused(
            asked.message, received=received, sent=size_of(reply), reasons=reasons or (problem.code,)
        )
        return reply

    def _said(self, message: Message, reply: Message) -> Message:
        """Return an answer as it may leave: of a failure on this machine, the code alone."""
        body = body_of(reply)
        code = body.get("code")
        return reply if code is None else self._failure(message, str(code), str(body.get("reason", "")))

    def _failure(self, message: Message, code: str, what: str) -> Message:
        sayable = code.startswith(_MAY_BE_SAID) and code not in _MAY_NOT_BE_SAID
        said = what if sayable else "the site's own log says more"
        failure = Failure(site=self.name, code=code, reason=said[:_LONGEST_REASON])
        return Message(content(failure), reply_to=message)

    def _leave(self, reply: Message, asked: WasAsked, received: int) -> Message:
        """Write down what an answer carries, and only then hand it over."""
        failure, sent = body_of(reply).get("code"), size_of(reply)
        arrays, sealed = (reply.content.get(name) for name in (ARRAYS, SECAGG))
        tensors = [
            SentTensor.of(name, array.numpy())
            for name, array in (arrays.items() if isinstance(arrays, ArrayRecord) else ())
        ]
        frames = list(sealed.values()) if isinstance(sealed, ArrayRecord) else []
        self.audit.append(
            HasLeft(
                run=asked.run,
                round=asked.round,
                message=asked.message if failure is None else f"{asked.message}: {failure}",
                bytes=sent,
                tensors=tuple(tensors),
                sealed=hashlib.sha256(frames[0].data).hexdigest() if frames else None,
                metrics=told_metrics(body_of(reply)),
            )
        )
        if failure is None:
            self.state.answered(asked.message, received=received, sent=sent)
        elif failure == "FT641":
            self.state.refused(asked.message, received=received, sent=sent, reasons=("FT641",))
        else:
            self.state.failed(asked.message, received=received, sent=sent, code=str(failure))
        return reply


def _unexpected(error: Exception) -> FederationError:
    """An exception of which the type alone may leave: its words may quote a record."""
    return refused("FT609", f"unexpected {type(error).__name__}", fix="see the site's own log")
