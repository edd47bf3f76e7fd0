"""A site tells whether it is ready and not a word more; a preflight costs neither an approval nor a limit."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from support.site_folder import (
    FEDERATION,
    JoinedSite,
    federation_config,
    policy_values,
    write_policy,
    write_rows,
    write_settings,
)

import fedtune
from fedtune.config.schema import Config
from fedtune.config.wire import config_to_json
from fedtune.federation.bundle import installed_bundle
from fedtune.federation.run_config import CONFIG_KEY, VERSION_KEY
from fedtune.federation.wire import CheckName, Failure, PreflightReply, PreflightRequest, content, parse_reply
from fedtune.keys.joining import read_connection
from fedtune.models.base_hash import base_hash
from fedtune.secagg.identity import Identity
from fedtune.site import preflight
from fedtune.site.approvals import Approvals, write_standing
from fedtune.site.audit import AuditLog
from fedtune.site.desk import Desk
from fedtune.site.findings import Check
from fedtune.site.folder import SiteFolder
from fedtune.site.health_state import SiteState
from fedtune.site.policy_file import load_policy
from fedtune.site.preflight import Readiness, told_checks
from fedtune.site.settings import load_settings

# Flower 1.41 builds bundles with a class that pathspec has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")

CANARY = "Xylophone"


@dataclass(kw_only=True)
class Asking:
    """A coordinator before one site's desk."""

    joined: JoinedSite
    rows: Path
    config: Config
    changes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder = SiteFolder(self.joined.folder)
        models = [base_hash(self.config.model)]
        values = policy_values(self.joined, files=[str(self.rows)], base_models=models) | self.changes
        write_policy(self.folder.path, values)
        write_settings(self.folder.path, models={self.config.model.name: None})
        if not self.folder.audit_key.exists():
            Identity.generate().save(self.folder.audit_key)
        connection = read_connection(self.folder.connection)
        self.desk = Desk(
            folder=self.folder,
            name=connection.site,
            federation=connection.federation,
            coordinator=connection.coordinator,
            policy=load_policy(self.folder.policy).policy,
            settings=load_settings(self.folder.settings),
            audit=AuditLog(self.folder.audit_log, Identity.load(self.folder.audit_key)),
            state=SiteState(version="0", site=connection.site, federation=FEDERATION),
        )

    def answer(
        self, config: Config | None = None, *, bundle: str | None = None, to_be_approved: bool = True
    ) -> PreflightReply | Failure:
        request = PreflightRequest(
            config=config_to_json(config or self.config), to_be_approved=to_be_approved
        )
        return self.said(content(request), bundle=bundle)

    def said(self, records: RecordDict, *, bundle: str | None = None) -> PreflightReply | Failure:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
        message = Message(records, 2, "query.preflight")
        dry = replace(self.config, name="preflight-1")
        settings = {CONFIG_KEY: config_to_json(dry), VERSION_KEY: fedtune.__version__}
        context = Context(run_id=1, node_id=2, node_config={}, state=RecordDict(), run_config=settings)
        reply = self.desk.answer(message, context, bundle or installed_bundle().sha256)
        self.sent = json.dumps({name: dict(record) for name, record in reply.content.items()})
        return parse_reply(reply, PreflightReply)

    def told(self) -> PreflightReply:
        reply = self.answer()
        assert isinstance(reply, PreflightReply), reply
        return reply

    @property
    def audited(self) -> list[tuple[str, str | None]]:
        lines = [json.loads(line) for line in self.folder.audit_log.read_bytes().splitlines()]
        return [(line["event"], line["details"].get("code")) for line in lines]


@pytest.fixture
def asking(tmp_path: Path, tiny_model_dir: Path) -> Asking:
    rows = write_rows(tmp_path / "rows.jsonl", word=CANARY)
    joined = JoinedSite(root=tmp_path / "lungs", address="localhost:9", sites=("ear", "eye"))
    return Asking(joined=joined, rows=rows, config=federation_config(tiny_model_dir))


def changed(asking: Asking, **changes: Any) -> Asking:
    return Asking(joined=asking.joined, rows=asking.rows, config=asking.config, changes=changes)


def test_a_ready_site_says_so_and_trains_nothing_and_counts_nothing(asking: Asking) -> None:
    told = asking.told()
    assert told.site == "ear"
    assert told.version == fedtune.__version__
    assert told.train_refused == told.evaluate_refused == ()
    assert [check for check in told.checks if check.status == "failed"] == []
    assert {"keys", "data", "rows", "base model", "memory"} <= {check.name for check in told.checks}
    assert told.days_left is not None
    assert told.days_left > 300
    assert not asking.folder.accepted.exists()
    assert asking.audited == [("asked", None), ("left", None)]


def test_a_run_waits_from_the_preflight_on_and_can_be_approved_before_it_begins(asking: Asking) -> None:
    assert asking.told().approval == "waits"
    approvals = Approvals(asking.folder.approvals, asking.folder.pending)
    (waiting,) = approvals.waiting()
    assert waiting.subject.run == asking.config.name
    approvals.approve(waiting.subject, operator="test")
    assert asking.told().approval == "approved"
    longer = asking.answer(replace(asking.config, seed=1))
    assert isinstance(longer, PreflightReply)
    assert longer.approval == "waits"


def test_a_run_that_nobody_announced_does_not_wait(asking: Asking) -> None:
    assert isinstance(asking.answer(to_be_approved=False), PreflightReply)
    assert Approvals(asking.folder.approvals, asking.folder.pending).waiting() == []


def test_the_policy_tells_its_reasons_without_a_value(asking: Asking) -> None:
    asking = changed(asking, metrics=[], peft={"methods": ["lora"], "max_rank": 3})
    told = asking.told()
    assert "peft.rank" in told.train_refused
    assert "peft.rank" in told.evaluate_refused
    assert "max_rank" not in asking.sent
    assert Approvals(asking.folder.approvals, asking.folder.pending).waiting() == []


def test_a_coordinator_whom_the_policy_does_not_name_is_told_nothing(asking: Asking) -> None:
    asking = changed(asking, coordinators={"other": asking.joined.coordinator})
    reply = asking.answer()
    assert isinstance(reply, Failure)
    assert reply.code == "FT640"
    assert asking.audited[-1] == ("refused", "FT640")


def test_a_paused_site_and_another_bundle_are_refused_as_for_any_other_message(asking: Asking) -> None:
    write_standing(asking.folder.standing, "paused", operator="test", reason="")
    paused = asking.answer()
    write_standing(asking.folder.standing, "open", operator="test", reason="")
    other = asking.answer(bundle="0" * 64)
    assert isinstance(paused, Failure)
    assert isinstance(other, Failure)
    assert (paused.code, other.code) == ("FT641", "FT620")
    assert [line for line in asking.audited if line[0] == "refused"] == [
        ("refused", "FT641"),
        ("refused", "FT620"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        '{"kind": "preflight"}',
        '{"kind":"preflight","protocol":1,"config":"{}","to_be_approved":true}',
    ],
)
def test_a_question_that_is_none_is_a_failure_with_a_code(asking: Asking, text: str) -> None:
    reply = asking.said(RecordDict({"fedtune": ConfigRecord({"json": text})}))
    assert isinstance(reply, Failure)
    assert reply.code.startswith(("FT1", "FT5"))


def test_a_server_of_another_protocol_is_told_so(asking: Asking) -> None:
    request = PreflightRequest(config=config_to_json(asking.config), to_be_approved=False)
    reply = asking.said(content(replace(request, protocol=2)))
    assert isinstance(reply, Failure)
    assert reply.code == "FT601"


def test_no_word_of_rows_and_no_path_leaves_even_if_they_are_broken(asking: Asking) -> None:
    with asking.rows.open("a", encoding="utf-8") as file:
        file.write(f'{{"instruction": "{CANARY}", "{CANARY}": \n')
    told = asking.told()
    failed = {(check.name, check.code) for check in told.checks if check.status == "failed"}
    assert failed == {("data", "FT855")}
    for word in (CANARY, str(asking.rows), str(asking.folder.path), asking.rows.name):
        assert word not in asking.sent


def test_a_model_that_is_missing_is_a_failed_check_and_no_refusal(asking: Asking) -> None:
    asking.desk.settings.models.clear()
    write_settings(asking.folder.path, models={})
    asking.desk._admission.settings = load_settings(asking.folder.settings)
    told = asking.told()
    assert told.train_refused == ()
    assert told.approval == "waits"
    assert ("base model", "FT644") in {(check.name, check.code) for check in told.checks}


def test_checks_are_made_once_a_minute_at_most(asking: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    now, made = [100.0], []

    def checks(folder: Path, *, config: Config) -> list[Check]:
        made.append(config.name)
        return [Check(name=f"data {folder}", status="ok", finding=CANARY, fix=None, code=None)]

    monkeypatch.setattr(preflight, "run_local_checks", checks)
    site = Readiness(asking.folder, "ear", seconds=lambda: now[0])
    answer = asking.desk._admission.foretell(asking.config, installed_bundle().sha256, to_be_approved=False)
    ages = []
    for at in (100.0, 130.0, 159.9, 160.0, 219.0):
        now[0] = at
        ages.append(site.reply(asking.config, answer).checks_age_seconds)
    assert len(made) == 2
    assert ages == pytest.approx([0.0, 30.0, 59.9, 0.0, 59.0])


def test_of_each_name_the_worst_status_is_told_with_all_its_codes() -> None:
    def check(name: str, status: Any, code: str | None) -> Check:
        return Check(name=name, status=status, finding="words", fix=None, code=code)

    told = told_checks(
        [
            check("data /srv/a.jsonl", "ok", None),
            check("data /srv/b.jsonl", "failed", "FT855"),
            check("data /srv/c.jsonl", "failed", "FT855"),
            check("hash of /models/x", "warning", None),
            check("folder of state", "ok", None),
            check("disk of models", "failed", "FT806"),
            check("keys", "failed", "FT840"),
            check("keys", "failed", "FT630"),
            check("something new", "ok", None),
        ]
    )
    assert [(each.name, each.status, each.code) for each in told] == [
        ("data", "failed", "FT855"),
        ("hash of the base model", "warning", None),
        ("folders", "ok", None),
        ("disks", "failed", "FT806"),
        ("keys", "failed", "FT840"),
        ("keys", "failed", "FT630"),
        ("other", "ok", None),
    ]


def test_no_check_of_a_real_site_is_without_a_name_of_its_own(asking: Asking) -> None:
    names = {check.name for check in asking.told().checks}
    assert "other" not in names
    assert names <= set(get_args(CheckName))
