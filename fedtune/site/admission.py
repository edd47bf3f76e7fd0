"""Whether a message may be obeyed: the operator's word, the bundle, the version, the policy, the approval."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal

from flwr.app import Context, Message

import fedtune
from fedtune.config.schema import Config
from fedtune.config.wire import config_from_json, config_hash
from fedtune.errors import FederationError, FedtuneError, Problem
from fedtune.federation.bundle import installed_bundle
from fedtune.federation.run_config import CONFIG_KEY, VERSION_KEY
from fedtune.models.base_hash import base_hash
from fedtune.models.estimate import estimate
from fedtune.observability.json_log import words_of
from fedtune.secagg.entry import fingerprint
from fedtune.site.accepted import AcceptedLog
from fedtune.site.approvals import Approvals, Subject, read_standing
from fedtune.site.checkup.model import without_download
from fedtune.site.envelope import KINDS, round_of
from fedtune.site.folder import SiteFolder
from fedtune.site.policy import Asked, Coordinator, Decision, decide
from fedtune.site.policy_schema import ANY, INSTALLED, SitePolicy
from fedtune.site.settings import SiteSettings, here

__all__ = ["Admission", "Foretold", "PolicyRefusal", "refused"]

logger = logging.getLogger(__name__)

_AT_ANY_TIME: Final = ("hours", "rounds")
"""What a policy says of a request to train, and not of the trips that end a round which it let begin."""

_FORETOLD: Final[tuple[Literal["train", "evaluate"], ...]] = ("train", "evaluate")


class PolicyRefusal(FederationError):
    """A refusal of the policy, with its reasons."""

    def __init__(self, decision: Decision) -> None:
        super().__init__(decision.refusal().problems)
        self.reasons = decision.reasons


@dataclass(frozen=True, kw_only=True)
class Foretold:
    """What the policy and the operator would say to a run.

    Attributes:
        train_refused: Reasons against training.
        evaluate_refused: Reasons against evaluating.
        approved: Whether it needs no further word of the operator.
    """

    train_refused: tuple[str, ...]
    evaluate_refused: tuple[str, ...]
    approved: bool


@dataclass(kw_only=True)
class Admission:
    """Decides on one site's messages; attributes as those of `fedtune.site.desk.Desk`."""

    folder: SiteFolder
    federation: str
    coordinator: bytes
    policy: SitePolicy
    settings: SiteSettings
    clock: Callable[[], datetime]
    _training_mib: dict[str, float] = field(init=False, default_factory=dict)
    _libraries_mib: float | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._approvals = Approvals(self.folder.approvals, self.folder.pending)
        self._accepted = AcceptedLog(self.folder.accepted)

    def admit(self, message: Message, context: Context, bundle: str) -> tuple[Config, Config]:
        """Return the configuration as the coordinator gives it, and as it holds here.

        Raises:
            FedtuneError: What the standing, the bundle, the version, the configuration, the policy or a
                missing approval says against it.
        """
        kind = KINDS.get(message.metadata.message_type)
        if kind is None:
            raise refused("FT645", "a site knows no messages of this type")
        self.admit_bundle(context, bundle)
        given = config_from_json(str(context.run_config.get(CONFIG_KEY, "")), where="the run's configuration")
        _require_deployment(given)
        config = here(given, self.settings, files=self.policy.data.files, runs_dir=self.folder.runs)
        base = base_hash(config.model)
        subject = Subject(run=given.name, config=config_hash(given), base_model=base, bundle=bundle)
        now, number = self.clock(), round_of(message) or 0
        decision = self._decide(
            given,
            "hello" if kind == "secagg" else kind,
            subject,
            self._memory_mib(config, subject.config),
            now=now,
            round_number=number,
        )
        if kind == "secagg":
            decision = decision.without(_AT_ANY_TIME)
        if not decision.accepted:
            for problem in decision.problems:
                logger.warning("refused: %s", words_of(problem))
            raise PolicyRefusal(decision)
        self._require_approval(subject, given)
        match kind:
            case "train" | "evaluate":
                self._accepted.add(kind, now, run=given.name, round_number=number)
        return given, config

    def admit_bundle(self, context: Context, bundle: str) -> None:
        """Say whether the site takes part in anything that comes with this bundle.

        Raises:
            FederationError: FT641, it takes part in nothing; FT601, another version; FT620, another bundle.
        """
        self.require_standing()
        own = bundle == installed_bundle().sha256
        theirs = str(context.run_config.get(VERSION_KEY, "?"))[:40]
        if not own and theirs != fedtune.__version__ and bundle not in self.policy.bundles:
            what = f"the coordinator runs fedtune {theirs}, this site fedtune {fedtune.__version__}"
            raise refused("FT601", what, fix="install the same fedtune on the server and on every site")
        if not (own and INSTALLED in self.policy.bundles) and bundle not in self.policy.bundles:
            raise refused("FT620", f"the site does not allow the bundle {bundle}")

    def require_standing(self) -> None:
        """Say whether the site takes part in anything at all.

        Raises:
            FederationError: FT641, it has paused or left.
        """
        standing = read_standing(self.folder.standing)
        if standing.state != "open":
            what = "the site has paused" if standing.state == "paused" else "the site has left the federation"
            raise refused("FT641", what)

    def foretell(self, given: Config, bundle: str, *, to_be_approved: bool) -> Foretold:
        """Return what would be said to a run that has not begun; nothing counts for a limit.

        A base model that is not at this site is taken to be an allowed one: that it is missing is said by the
        site's checks.

        Args:
            given: The run's configuration, as the coordinator gives it.
            bundle: SHA-256 of the bundle that came with the question, in hex.
            to_be_approved: Let the run wait for the operator from now on, if the policy would accept it.

        Raises:
            PolicyRefusal: The policy does not know who asks: then nothing else is told.
            FederationError: FT645, a simulation.
        """
        _require_deployment(given)
        base, memory_mib = None, 0.0
        try:
            config = here(given, self.settings, files=self.policy.data.files, runs_dir=self.folder.runs)
            base = base_hash(without_download(config.model))
            memory_mib = self._memory_mib(config, config_hash(given))
        except FedtuneError as error:
            logger.warning("the preflight knows no base model: %s", words_of(error.problems[0]))
        known = base or next(iter(self.policy.base_models), "unknown")
        subject = Subject(run=given.name, config=config_hash(given), base_model=known, bundle=bundle)
        now = self.clock()
        train, evaluate = (
            self._decide(given, kind, subject, memory_mib, now=now, round_number=1) for kind in _FORETOLD
        )
        if "coordinator" in train.reasons:
            raise PolicyRefusal(train)
        for problem in dict.fromkeys((*train.problems, *evaluate.problems)):
            logger.warning("the preflight foretells a refusal: %s", words_of(problem))
        approved = base is not None and self._is_approved(subject)
        if to_be_approved and base is not None and train.accepted and not approved:
            self._approvals.ask(subject, _summary(given, subject))
        return Foretold(train_refused=train.reasons, evaluate_refused=evaluate.reasons, approved=approved)

    def _decide(
        self,
        given: Config,
        kind: Literal["hello", "train", "evaluate"],
        subject: Subject,
        memory_mib: float,
        *,
        now: datetime,
        round_number: int,
    ) -> Decision:
        asked = Asked.of(
            given,
            kind=kind,
            coordinator=Coordinator(name=self.federation, fingerprint=fingerprint(self.coordinator)),
            round_number=round_number,
            bundle=subject.bundle,
            bundle_installed=subject.bundle == installed_bundle().sha256,
            base_model=subject.base_model,
            memory_mib=memory_mib,
        )
        return decide(self.policy, asked, self._accepted.usage(self.policy, now), now)

    def _require_approval(self, subject: Subject, config: Config) -> None:
        if self._is_approved(subject):
            return
        self._approvals.ask(subject, _summary(config, subject))
        logger.warning(
            "run %s waits: fedtune client approve %s %s", subject.run, self.folder.path, subject.run
        )
        raise refused("FT642", "the run waits for the approval of the site's operator")

    def _is_approved(self, subject: Subject) -> bool:
        preapproved = self.policy.preapproved
        return ANY in preapproved or subject.config in preapproved or self._approvals.approved(subject)

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


def refused(code: str, what: str, *, fix: str = "ask the site's operator") -> FederationError:
    """Return the error of a message that is not obeyed."""
    return FederationError(Problem(code=code, what=what, where="the site", fix=fix))


def _require_deployment(given: Config) -> None:
    if given.backend.name != "deployment":
        raise refused("FT645", "this run is a simulation: backend.name is not deployment")


_OWN_MODELS: Final = {
    "ditto": "beside it as many steps for a model of this site's own, which stays here",
    "clusters": "its updates are compared with other sites', and it gets the model of those that are alike",
    "fine_tuning": "after the last round steps for a model of this site's own, which stays here",
}


def _summary(config: Config, subject: Subject) -> tuple[str, ...]:
    """Say what a run would do, for the operator who decides."""
    training, secagg = config.training, config.secagg
    hidden = f"summed under masks, of {secagg.k_min} sites or more" if secagg.enabled else "sent in clear"
    return (
        f"{config.federation.rounds} rounds of {training.steps_per_round} steps of "
        f"{training.examples_per_step} rows of at most {config.data.max_tokens} tokens",
        f"{config.peft.method} of rank {config.peft.rank} on {config.model.name} "
        f"({config.model.quantization})",
        *([_OWN_MODELS[config.personal.name]] if config.personal.name != "none" else []),
        f"updates are {hidden}; numbers that leave: {', '.join(config.federation.metrics) or 'none'}",
        f"base model {subject.base_model}",
        f"bundle {subject.bundle}",
        f"configuration {subject.config}",
    )
