"""The `Site` of a deployment: this machine's rows and model under a coordinator's configuration."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fedtune.config.schema import Config
from fedtune.config.wire import config_hash
from fedtune.data.load import load_examples
from fedtune.data.partition import split_held_out
from fedtune.data.tokenize import TokenizedExample, tokenize_all
from fedtune.federation.secure import policy_of
from fedtune.federation.secure_site import ReceivedAdapter, SecureSite
from fedtune.federation.site import Site
from fedtune.models.adapted import AdaptedModel, load_tokenizer, shared_adapted_model
from fedtune.models.hardware import physical_cores
from fedtune.secagg.client import SecureAggregationClient
from fedtune.secagg.cohorts import CohortLog
from fedtune.secagg.identity import Identity
from fedtune.secagg.pinning import PinnedRoster
from fedtune.secagg.problems import refusal
from fedtune.secagg.roster import Roster
from fedtune.secagg.spent import SpentJournal
from fedtune.site.folder import SiteFolder
from fedtune.training.train import StepReport

__all__ = ["DeployedSite"]

logger = logging.getLogger(__name__)

OnStep = Callable[[str, int, StepReport], None]


@dataclass(frozen=True, kw_only=True)
class _Rows:
    train: list[TokenizedExample]
    held_out: list[TokenizedExample]
    skipped: int


@dataclass(kw_only=True)
class DeployedSite:
    """Gives the `Site` of one configuration; rows and secrets stay in memory from message to message.

    A site works for one run at a time: what it knows of another is dropped when the configuration changes.
    The base model stays, as long as the configuration of the model and the adapter does.

    Attributes:
        folder: The site's.
        name: Its name, as it is enrolled.
        audit_head: Head of its audit log, 32 bytes, which its adverts sign.
        on_step: Told of each optimizer step; what it raises ends the training.
        on_microbatch: Called before each forward pass of an evaluation; what it raises ends it.
        on_model: Told when a base model was loaded.
    """

    folder: SiteFolder
    name: str
    audit_head: Callable[[], bytes]
    on_step: OnStep
    on_microbatch: Callable[[], object]
    on_model: Callable[[], None]
    _loaded: AdaptedModel | None = field(default=None, repr=False)
    _hash: str = ""
    _rows: _Rows | None = None
    _secure: SecureSite | None = None
    _pinned: Roster | None = field(default=None, repr=False)

    def of(self, config: Config, *, base_name: str) -> Site:
        """Return the site under a configuration.

        Args:
            config: As it holds on this machine (`fedtune.site.settings.here`).
            base_name: What the coordinator calls the base model: where that lies here does not leave.

        Raises:
            DataError: With all problems of the site's rows.
            SecureAggregationError: FT918, no roster is accepted, or this site is not in it; FT928, its
                identity.
        """
        now = config_hash(config)
        if now != self._hash:
            self._hash, self._rows, self._secure = now, None, None
        if self._rows is None:
            self._rows = self._read(config)
        return Site(
            name=self.name,
            config=config,
            train=self._rows.train,
            held_out=self._rows.held_out,
            skipped_rows=self._rows.skipped,
            state_dir=self._state(config),
            model=lambda: self._model(config),
            threads=config.training.threads or physical_cores(),
            secure=self._secured(config) if config.secagg.enabled else None,
            base_name=base_name,
            own_model_dir=self._state(config) / "personal",
            on_step=self.on_step,
            on_microbatch=self.on_microbatch,
        )

    def _model(self, config: Config) -> AdaptedModel:
        model = shared_adapted_model(
            config.model, config.peft, gradient_checkpointing=config.training.gradient_checkpointing
        )
        if model is not self._loaded:
            self._loaded = model
            logger.info("the base model is loaded, in %.1f s", model.info.load_seconds)
            self.on_model()
        return model

    def _state(self, config: Config) -> Path:
        return self.folder.of_run(config.name)

    def _read(self, config: Config) -> _Rows:
        data = load_examples(config.data)
        split = split_held_out(len(data.examples), config.data, seed=config.seed, site=self.name)
        tested = split.validation if config.evaluation.rows == "validation" else split.held_out
        tokenizer = load_tokenizer(config.model)
        train, held_out = (
            tokenize_all([data.examples[row] for row in rows], tokenizer, config.data)
            for rows in (split.train, tested)
        )
        return _Rows(train=train, held_out=held_out, skipped=data.skipped_rows)

    def _secured(self, config: Config) -> SecureSite:
        """Return the part in secure aggregation; made anew when another version of the roster was
        accepted.
        """
        pinned = PinnedRoster(self.folder.pin).roster
        if self._secure is not None and pinned == self._pinned:
            return self._secure
        identity, spent = Identity.load(self.folder.identity), SpentJournal(self.folder.spent)
        entry = pinned.members.get(identity.public)
        if entry is None or entry.site != self.name:
            what = f"version {pinned.version} of the roster does not have {self.name} with this identity"
            raise refusal("FT918", what, where=str(self.folder.pin))
        self._pinned = pinned
        self._secure = SecureSite(
            roster=pinned,
            spent=spent,
            member=SecureAggregationClient(
                identity=identity,
                policy=policy_of(config),
                roster=pinned,
                spent=spent,
                cohorts=CohortLog(self.folder.cohorts),
            ),
            received=ReceivedAdapter(self._state(config) / "received.safetensors"),
            weight=entry.weight,
            audit_head=self.audit_head,
        )
        return self._secure
