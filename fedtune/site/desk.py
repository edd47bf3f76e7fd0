"""Where every message to a site passes: the operator's word, the policy, the audit log, and only then the
work.

    asked (audit) -> standing -> version -> bundle -> configuration -> policy -> approval -> work -> left
    (audit)

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

import fedtune
from fedtune.config.schema import Config
from fedtune.config.wire import config_from_json, config_hash
from fedtune.errors import FederationError, FedtuneError, Problem
from fedtune.federation.bundle import installed_bundle
from fedtune.federation.client import build_client_app
from fedtune.federation.server import CONFIG_KEY, VERSION_KEY
from fedtune.federation.site import Site
from fedtune.federation.wire import ARRAYS, SECAGG, Failure, content
from fedtune.models.base import base_hash
from fedtune.models.estimate import estimate
from fedtune.observability.json_log import log_context, words_of
from fedtune.secagg.entry import fingerprint
from fedtune.site.accepted import AcceptedLog
from fedtune.site.approvals import Approvals, Subject, read_standing
from fedtune.site.audit import AuditLog
from fedtune.site.audit_events import HasLeft, SentTensor, WasAsked, WasRefused
from fedtune.site.deployed import DeployedSite
from fedtune.site.envelope import KINDS, body_of, round_of, run_of, size_of, told_metrics
from fedtune.site.folder import SiteFolder
from fedtune.site.health_state import SiteState
from fedtune.site.policy import Asked, Coordinator, decide
from fedtune.site.policy_schema import ANY, INSTALLED, SitePolicy
from fedtune.site.settings import SiteSettings, here

__all__ = ["Desk"]

logger = logging.getLogger(__name__)

_AT_ANY_TIME: Final = ("hours", "rounds")
"""What a policy says of a request to train, and not of the trips that end a round which it let begin."""

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
    _training_mib: dict[str, float] = field(init=False, default_factory=dict)
    _libraries_mib: float | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._site = DeployedSite(
            folder=self.folder,
            name=self.name,
            audit_head=self.audit.head,
            on_step=self._on_step,
            on_model=lambda: self.state.set_model_loaded(True),
        )
        self._app = build_client_app(self._find_site)
        self._approvals = Approvals(self.folder.approvals, self.folder.pending)
        self._accepted = AcceptedLog(self.folder.accepted)

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
                given, config = self._admit(message, context, bundle)
                self._current = self._site.of(config, base_name=given.model.name)
                started = time.monotonic()
                reply = self._said(message, self._app(message, context))
                if kind == "train" and "code" not in body_of(reply):
                    self.state.trained(seconds=time.monotonic() - started)
            except FedtuneError as error:
                return self._refuse(message, asked, error, received)
            except Exception as error:
                logger.exception("%s could not be looked at", asked.message)
                return self._refuse(message, asked, _unexpected(error), received)
            finally:
                self._current = None
            return self._leave(reply, asked, received)

    def _admit(self, message: Message, context: Context, bundle: str) -> tuple[Config, Config]:
        """Return the configuration as the coordinator gives it, and as it holds here.

        Raises:
            FedtuneError: What the standing, the bundle, the version, the configuration, the policy or a
            missing approval says against it.
        """
        kind = KINDS.get(message.metadata.message_type)
        if kind is None:
            raise _refused("FT645", "a site knows no messages of this type")
        self._require_standing()
        own = bundle == installed_bundle().sha256
        theirs = str(context.run_config.get(VERSION_KEY, "?"))[:40]
        if not own and theirs != fedtune.__version__ and bundle not in self.policy.bundles:
            what = f"the coordinator runs fedtune {theirs}, this site fedtune {fedtune.__version__}"
            raise _refused("FT601", what, fix="install the same fedtune on the server and on every site")
        if not (own and INSTALLED in self.policy.bundles) and bundle not in self.policy.bundles:
            raise _refused("FT620", f"the site does not allow the bundle {bundle}")
        given = config_from_json(str(context.run_config.get(CONFIG_KEY, "")), where="the run's configuration")
        if given.backend.name != "deployment":
            raise _refused("FT645", "this run is a simulation: backend.name is not deployment")
        config = here(given, self.settings, files=self.policy.data.files, runs_dir=self.folder.runs)
        base = base_hash(config.model)
        subject = Subject(run=given.name, config=config_hash(given), base_model=base, bundle=bundle)
        now = self.clock()
        asked = Asked.of(
            given,
            kind="hello" if kind == "secagg" else kind,
            coordinator=Coordinator(name=self.federation, fingerprint=fingerprint(self.coordinator)),
            round_number=round_of(message) or 0,
            bundle=bundle,
            bundle_installed=own,
            base_model=base,
            memory_mib=self._memory_mib(config, subject.config),
        )
        decision = decide(self.policy, asked, self._accepted.usage(self.policy, now), now)
        if kind == "secagg":
            decision = decision.without(_AT_ANY_TIME)
        if not decision.accepted:
            for problem in decision.problems:
                logger.warning("refused: %s", words_of(problem))
            raise _PolicyRefusal(decision.refusal(), decision.reasons)
        self._require_approval(subject, given)
        match kind:
            case "train" | "evaluate":
                self._accepted.add(kind, now, run=given.name, round_number=round_of(message) or 0)
        return given, config

    def _require_standing(self) -> None:
        standing = read_standing(self.folder.standing)
        if standing.state != "open":
            what = "the site has paused" if standing.state == "paused" else "the site has left the federation"
            raise _refused("FT641", what)

    def _require_approval(self, subject: Subject, config: Config) -> None:
        preapproved = self.policy.preapproved
        if ANY in preapproved or subject.config in preapproved or self._approvals.approved(subject):
            return
        self._approvals.ask(subject, _summary(config, subject))
        logger.warning(
            "run %s waits: fedtune client approve %s %s", subject.run, self.folder.path, subject.run
        )
        raise _refused("FT642", "the run waits for the approval of the site's operator")

    def _memory_mib(self, config: Config, key: str) -> float:
        """Return what training is estimated to take; the same at every call.

        The libraries' share is what this process held when it was first asked: later that may hold a model.
        """
        if key not in self._training_mib:
            found = estimate(config)
            if self._libraries_mib is None:
                self._libraries_mib = found.libraries_mib
            self._training_mib = {key: found.total_mib - found.libraries_mib}
        return self._training_mib[key] + (self._libraries_mib or 0.0)

    def _find_site(self, _: Context) -> Site:
        if self._current is None:
            raise RuntimeError("a site is found for an admitted message alone")
        return self._current

    def _on_step(self, *_: object) -> None:
        """End a training at once when the operator pauses or leaves, or ends the client."""
        if self.stopping():
            raise _refused("FT641", "the site's client is about to end")
        self._require_standing()

    def _refuse(self, message: Message, asked: WasAsked, error: FedtuneError, received: int) -> Message:
        problem = error.problems[0]
        reasons = error.reasons if isinstance(error, _PolicyRefusal) else ()
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


class _PolicyRefusal(FederationError):
    """A refusal of the policy, with its reasons."""

    def __init__(self, refusal: FederationError, reasons: tuple[str, ...]) -> None:
        super().__init__(refusal.problems)
        self.reasons = reasons


def _unexpected(error: Exception) -> FederationError:
    """An exception of which the type alone may leave: its words may quote a record."""
    return _refused("FT609", f"unexpected {type(error).__name__}", fix="see the site's own log")


def _refused(code: str, what: str, *, fix: str = "ask the site's operator") -> FederationError:
    return FederationError(Problem(code=code, what=what, where="the site", fix=fix))


def _summary(config: Config, subject: Subject) -> tuple[str, ...]:
    """Say what a run would do, for the operator who decides."""
    training, secagg = config.training, config.secagg
    hidden = f"summed under masks, of {secagg.k_min} sites or more" if secagg.enabled else "sent in clear"
    return (
        f"{config.federation.rounds} rounds of {training.steps_per_round} steps of "
        f"{training.examples_per_step} rows of at most {config.data.max_tokens} tokens",
        f"{config.peft.method} of rank {config.peft.rank} on {config.model.name} "
        f"({config.model.quantization})",
        f"updates are {hidden}; numbers that leave: {', '.join(config.federation.metrics) or 'none'}",
        f"base model {subject.base_model}",
        f"bundle {subject.bundle}",
        f"configuration {subject.config}",
    )
