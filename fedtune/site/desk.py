"""Where every message to a site passes: the operator's word, the policy, the audit log, and only then the work.

    asked (audit) -> standing -> bundle -> version -> configuration -> policy -> approval -> work -> left (audit)

Whatever is refused is answered with a code and written down; what is in the site's own log in detail does not leave.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal, TypeVar

from flwr.app import ArrayRecord, Context, Message
from flwr.clientapp import ClientApp

import fedtune
from fedtune.config.schema import Config
from fedtune.config.wire import config_from_json, config_hash
from fedtune.errors import ConfigError, FederationError, FedtuneError, Problem
from fedtune.federation.bundle import installed_bundle
from fedtune.federation.client import build_client_app
from fedtune.federation.server import CONFIG_KEY, VERSION_KEY
from fedtune.federation.site import Site
from fedtune.federation.wire import (
    ARRAYS,
    RECORD,
    SECAGG,
    EvaluateReply,
    EvaluateRequest,
    Failure,
    HelloReply,
    TrainReply,
    TrainRequest,
    content,
    parse,
)
from fedtune.models.base import base_hash
from fedtune.models.estimate import estimate
from fedtune.observability.json_log import log_context
from fedtune.secagg.entry import fingerprint
from fedtune.site.accepted import AcceptedLog
from fedtune.site.approvals import Approvals, Subject, read_standing
from fedtune.site.audit import AuditLog
from fedtune.site.audit_events import HasLeft, SentTensor, WasAsked, WasRefused
from fedtune.site.deployed import DeployedSite
from fedtune.site.folder import SiteFolder
from fedtune.site.policy import Asked, Coordinator, decide
from fedtune.site.policy_schema import ANY, INSTALLED, SitePolicy
from fedtune.site.settings import SiteSettings, here

__all__ = ["Desk", "Watcher"]

logger = logging.getLogger(__name__)

Kind = Literal["hello", "train", "secagg", "evaluate"]
KINDS: Final[dict[str, Kind]] = {
    "query.hello": "hello",
    "train": "train",
    "query.secagg": "secagg",
    "evaluate": "evaluate",
}
_METRICS: Final = {
    "train_examples": "examples",
    "held_out_examples": "examples",
    "skipped_rows": "examples",
    "examples": "examples",
    "tokens": "tokens",
    "response_tokens": "tokens",
    "loss_before": "train_loss",
    "loss_after": "train_loss",
    "loss": "held_out_loss",
    "peak_memory_mib": "peak_memory",
}
"""Field of a reply -> the metric that it tells; `told_metrics` reads the replies by it."""

T = TypeVar("T")


class Watcher:
    """Told of what happens at the desk, for health and metrics; does nothing itself."""

    def begun(self, kind: str, run: str, round_number: int | None) -> None: ...

    def answered(self, kind: str, outcome: str, *, code: str | None, sent: int) -> None: ...


@dataclass(kw_only=True)
class Desk:
    """Answers one site's messages.

    Guarantees:
        * Nothing is done for a message that the standing, the policy or the operator's approval refuses; that
          it came and that it was refused is on the disk before the answer leaves.
        * What leaves is in the audit log, by names, sizes, norms and hashes, before it is handed to the network.
        * No answer says more of a refusal than its code and the policy's reasons.

    Attributes:
        folder: The site's.
        name: Its name, as it is enrolled.
        federation: What it belongs to; the policy's name of the coordinator.
        coordinator: Identity of the coordinator whose authority vouches for the connection.
        policy: What the site allows.
        settings: How it runs here.
        audit: The audit log.
        watcher: Told of each message.
        clock: Gives the time, with its zone.
    """

    folder: SiteFolder
    name: str
    federation: str
    coordinator: bytes
    policy: SitePolicy
    settings: SiteSettings
    audit: AuditLog
    watcher: Watcher = field(default_factory=Watcher)
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    _site: DeployedSite = field(init=False)
    _app: ClientApp = field(init=False)
    _current: Site | None = None
    _memory: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._site = DeployedSite(
            folder=self.folder, name=self.name, audit_head=self.audit.head, on_step=self._on_step
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
        """
        kind = KINDS.get(message.metadata.message_type)
        run, round_number = _run_of(context), _round_of(message)
        shown = message.metadata.message_type[:40]
        with log_context(run=run, round=round_number):
            self.watcher.begun(shown, run, round_number)
            asked = WasAsked(run=run, round=round_number, message=shown, bundle=bundle)
            self.audit.append(asked)
            try:
                if kind is None:
                    raise _refused("FT645", f"there is no message of this type: {shown!r}")
                config = self._admit(kind, message, context, bundle)
                self._current = self._site.of(config)
                reply = self._app(message, context)
            except FedtuneError as error:
                return self._refuse(message, asked, error)
            finally:
                self._current = None
            return self._leave(reply, asked)

    def _admit(self, kind: Kind, message: Message, context: Context, bundle: str) -> Config:
        """Return the configuration to work by, as it holds here.

        Raises:
            FedtuneError: What the standing, the bundle, the version, the configuration, the policy or a missing
                approval says against it.
        """
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
        config = here(
            given, self.settings, files=self.policy.data.files, runs_dir=self.folder.runs
        )
        base = base_hash(config.model)
        subject = Subject(run=given.name, config=config_hash(given), base_model=base, bundle=bundle)
        if kind == "secagg":
            self._require_approval(subject, given)
            return config
        now = self.clock()
        asked = Asked.of(
            given,
            kind=kind,
            coordinator=Coordinator(name=self.federation, fingerprint=fingerprint(self.coordinator)),
            round_number=_round_of(message) or 0,
            bundle=bundle,
            bundle_installed=own,
            base_model=base,
            memory_mib=self._memory_mib(config, subject.config),
        )
        decision = decide(self.policy, asked, self._accepted.usage(self.policy, now), now)
        if not decision.accepted:
            for problem in decision.problems:
                logger.warning("refused: %s", problem)
            raise _PolicyRefusal(decision.refusal(), decision.reasons)
        self._require_approval(subject, given)
        if kind != "hello":
            self._accepted.add(kind, now, run=given.name, round_number=_round_of(message) or 0)
        return config

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
        logger.warning("run %s waits: fedtune client approve %s %s", subject.run, self.folder.path, subject.run)
        raise _refused("FT642", "the run waits for the approval of the site's operator")

    def _memory_mib(self, config: Config, key: str) -> float:
        """Return what training is estimated to take; once for each configuration."""
        if key not in self._memory:
            # The libraries' share is what this process holds, which may be the model already.
            before = sum(self._memory.values()) > 0
            found = estimate(config)
            self._memory = {key: found.training_mib if before else found.total_mib}
        return self._memory[key]

    def _find_site(self, _: Context) -> Site:
        if self._current is None:
            raise RuntimeError("a site is found for an admitted message alone")
        return self._current

    def _on_step(self, *_: object) -> None:
        """End a training at once when the operator pauses or leaves."""
        self._require_standing()

    def _refuse(self, message: Message, asked: WasAsked, error: FedtuneError) -> Message:
        problem = error.problems[0]
        reasons = error.reasons if isinstance(error, _PolicyRefusal) else ()
        logger.warning("refused %s: %s", asked.message, problem)
        said = problem.what if problem.code not in _PRIVATE else "the site cannot take part; its log says why"
        self.audit.append(
            WasRefused(**dataclasses.asdict(asked), code=problem.code, reasons=reasons)
        )
        reply = Message(
            content(Failure(site=self.name, code=problem.code, reason=said[:4_000])), reply_to=message
        )
        self.watcher.answered(asked.message, "refused", code=problem.code, sent=0)
        return reply

    def _leave(self, reply: Message, asked: WasAsked) -> Message:
        arrays, sealed = reply.content.get(ARRAYS), reply.content.get(SECAGG)
        failure = _parsed(reply, Failure)
        tensors = _tensors(arrays) if isinstance(arrays, ArrayRecord) else ()
        sent = sum(array.data.nbytes if hasattr(array.data, "nbytes") else len(array.data)
                   for record in (arrays, sealed) if isinstance(record, ArrayRecord)
                   for array in record.values())
        self.audit.append(
            HasLeft(
                run=asked.run,
                round=asked.round,
                message=asked.message if failure is None else f"{asked.message} failed {failure.code}",
                bytes=sent,
                tensors=tensors,
                sealed=None if not isinstance(sealed, ArrayRecord) else _sealed_hash(sealed),
                metrics=told_metrics(reply),
            )
        )
        code = None if failure is None else failure.code
        self.watcher.answered(asked.message, "answered" if code is None else "failed", code=code, sent=sent)
        return reply
