"""One site's desk over a real folder, and a coordinator's messages to it, without a network."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.app.message.message import make_message
from flwr.app.metadata import Metadata
from flwr.supercore.task_identity import TaskIdentity
from support.site_folder import federation_config, write_rows

import fedtune
from fedtune.aggregation.registry import aggregator
from fedtune.config.schema import Config
from fedtune.config.wire import config_to_json
from fedtune.federation.bundle import installed_bundle
from fedtune.federation.requests import train_request
from fedtune.federation.run_config import CONFIG_KEY, VERSION_KEY
from fedtune.federation.wire import PROTOCOL, RECORD, EvaluateRequest, HelloRequest, content
from fedtune.models.adapted import adapter_spec
from fedtune.models.adapter import Adapter, initial_adapter
from fedtune.secagg.entry import fingerprint
from fedtune.secagg.identity import Identity
from fedtune.site.audit import AuditLog, verify_audit
from fedtune.site.desk import Desk
from fedtune.site.folder import SiteFolder
from fedtune.site.health_state import SiteState
from fedtune.site.policy_file import load_policy
from fedtune.site.settings import load_settings
from fedtune.site.setup import initialise
from fedtune.updates.codec import to_arrays

__all__ = ["CANARY", "FEDERATION", "MODEL", "AskedSite", "body_of"]

FEDERATION, MODEL = "lungs", "tiny"
CANARY = "Quintessa Marrowbone-Vex"
"""A patient's name that stands in a row of the site."""

_numbers = itertools.count()


@dataclass(kw_only=True)
class AskedSite:
    """A site that `fedtune client init` made, and its coordinator.

    Attributes:
        root: Where both are.
        model: Folder of the base model.
        now: What the site's clock says.
    """

    root: Path
    model: Path
    now: datetime = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
    coordinator: Identity = field(default_factory=Identity.generate)

    def __post_init__(self) -> None:
        rows = write_rows(self.root / "private-rows.jsonl")
        with rows.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"instruction": f"Who is {CANARY}?", "output": f"{CANARY}, 61"}) + "\n")
        made = initialise(
            self.root / "ear",
            site="ear",
            federation=FEDERATION,
            coordinator=fingerprint(self.coordinator.public),
            data=[rows],
            model=MODEL,
            place=str(self.model),
            k_min=3,
        )
        self.folder: SiteFolder = made.folder
        self.allow(
            preapproved=["any"],
            metrics=["examples", "tokens", "train_loss", "held_out_loss", "peak_memory"],
            limits__rounds_per_day=1000,
            limits__evaluations_per_day=1000,
            limits__tokens_per_round=10_000_000,
            secure_aggregation__required=False,
            secure_aggregation__max_clip_bound=None,
        )
        self.start()

    def allow(self, **changed: Any) -> None:
        """Change keys of ``site.yaml``, with dots as double underscores; `start` reads them."""
        values = yaml.safe_load(self.folder.policy.read_text(encoding="utf-8"))
        for name, value in changed.items():
            *sections, last = name.split("__")
            section = values
            for part in sections:
                section = section[part]
            section[last] = value
        self.folder.policy.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")

    def start(self) -> None:
        """Start the client's process anew, as far as its desk goes."""
        self.state = SiteState(version=fedtune.__version__, site="ear", federation=FEDERATION)
        self.audit = AuditLog(self.folder.audit_log, Identity.load(self.folder.audit_key))
        self.desk = Desk(
            folder=self.folder,
            name="ear",
            federation=FEDERATION,
            coordinator=self.coordinator.public,
            policy=load_policy(self.folder.policy).policy,
            settings=load_settings(self.folder.settings),
            audit=self.audit,
            state=self.state,
            clock=lambda: self.now,
        )

    def config(self, *overrides: str) -> Config:
        """A run's configuration as its coordinator writes it."""
        config = federation_config(self.model, "federation.metrics=[examples,train_loss]", *overrides)
        return replace(config, model=replace(config.model, name=MODEL))

    def adapter(self, config: Config) -> Adapter:
        """The adapter that a run of this configuration begins with."""
        own = replace(config.model, name=str(self.model))
        return initial_adapter(adapter_spec(own, config.peft), seed=config.seed)

    def ask(
        self,
        kind: str = "query.hello",
        config: Config | str | None = None,
        *,
        round_number: int = 1,
        bundle: str | None = None,
        version: str = fedtune.__version__,
        records: RecordDict | None = None,
    ) -> Message:
        """Let a message come, and return the answer.

        Args:
            kind: Its type.
            config: The run's, or any text in its place.
            round_number: Of the request.
            bundle: SHA-256 of the coordinator's bundle; that of the installed one unless given.
            version: Of fedtune, as the coordinator says.
            records: The content; what a coordinator would send unless given.
        """
        given = self.config() if config is None else config
        text = given if isinstance(given, str) else config_to_json(given)
        if records is None:
            records = self.request(kind, given if isinstance(given, Config) else self.config(), round_number)
        context = Context(
            run_id=7,
            node_id=42,
            node_config={},
            state=RecordDict(),
            run_config={CONFIG_KEY: text, VERSION_KEY: version},
            series_id=0,
        )
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 7, 42, 9
        digest = installed_bundle().sha256 if bundle is None else bundle
        return self.desk.answer(_message(kind, records), context, digest)

    def request(self, kind: str, config: Config, round_number: int = 1) -> RecordDict:
        """What a coordinator would send."""
        if kind == "train":
            body = train_request(config, aggregator(config.aggregation), round_number)
            return content(body, to_arrays(self.adapter(config)))
        if kind == "evaluate":
            return content(EvaluateRequest(round=round_number), to_arrays(self.adapter(config)))
        return content(HelloRequest(protocol=PROTOCOL))

    def train_with(self, arrays: ArrayRecord, config: Config | None = None) -> Message:
        """Ask for a round that begins with these arrays."""
        config = config or self.config()
        return self.ask(
            "train", config, records=content(train_request(config, aggregator(config.aggregation), 1), arrays)
        )

    def lines(self, event: str | None = None) -> list[dict[str, Any]]:
        """Lines of the audit log, of one event or all; the chain has to verify."""
        if not self.folder.audit_log.exists():
            return []
        assert verify_audit(self.folder.audit_log, Identity.load(self.folder.audit_key).public).intact
        lines = [json.loads(line) for line in self.folder.audit_log.read_bytes().splitlines()]
        return [line for line in lines if event in (None, line["event"])]


def body_of(reply: Message) -> dict[str, Any]:
    """The JSON of an answer."""
    body: dict[str, Any] = json.loads(str(reply.content[RECORD]["json"]))
    return body


def _message(kind: str, records: RecordDict) -> Message:
    metadata = Metadata(
        run_id=7,
        message_id=f"m{next(_numbers)}",
        src_node_id=1,
        dst_node_id=42,
        reply_to_message_id="",
        group_id="",
        created_at=datetime.now(UTC).timestamp(),
        ttl=3600.0,
        message_type=kind,
    )
    return make_message(metadata, records)
