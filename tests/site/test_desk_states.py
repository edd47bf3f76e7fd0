"""For any sequence of requests, restarts, words of the operator and hours, the desk decides as a model does.

The model knows what is said in the documentation and nothing of how the desk keeps it.
"""

from __future__ import annotations

import copy
import shutil
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
from flwr.app import Message
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from support.asking import AskedSite, body_of
from support.site_folder import federation_config

from fedtune.config.schema import Config
from fedtune.config.wire import config_hash
from fedtune.federation.wire import Failure, content
from fedtune.site import admission as admission_module
from fedtune.site.approvals import Approvals, write_standing
from fedtune.site.folder import SiteFolder

BUNDLES = {"installed": None, "listed": "c" * 64, "unknown": "d" * 64}
OVERRIDES = (("seed=0",), ("seed=1",), ("seed=2",), ("training.steps_per_round=5",), ("backend=inprocess",))
ROUNDS_A_DAY, EVALUATIONS_A_DAY, STEPS = 3, 2, 4
PREAPPROVED = 2
KINDS = ("query.hello", "train", "query.secagg", "evaluate", "query.other")
Standing = Literal["open", "paused", "left"]


class Machine(RuleBasedStateMachine):
    """A site, and what is known of it."""

    made: AskedSite

    def __init__(self) -> None:
        super().__init__()
        self.root = tempfile.TemporaryDirectory(prefix="desk-")
        self.site = copy.copy(self.made)
        self.site.folder = SiteFolder(Path(self.root.name) / "ear")
        shutil.copytree(self.made.folder.path, self.site.folder.path)
        self.configs: list[Config] = [self.site.config(*each) for each in OVERRIDES]
        self.standing: Standing = "open"
        self.approved: set[tuple[int, str]] = set()
        self.waiting: set[tuple[int, str]] = set()
        self.used: dict[tuple[str, Any], int] = {}
        self.asked = 0

    @initialize()
    def begin(self) -> None:
        self.site.allow(
            preapproved=[config_hash(self.configs[PREAPPROVED])],
            bundles=["installed", BUNDLES["listed"]],
            hours={"start": "06:00", "end": "18:00"},
            timezone="Etc/UTC",
            limits__steps_per_round=STEPS,
            limits__rounds_per_day=ROUNDS_A_DAY,
            limits__evaluations_per_day=EVALUATIONS_A_DAY,
        )
        self.restart()

    def expected(self, kind: str, number: int, bundle: str) -> str:
        """The code of the refusal, with the policy's reasons; empty where the work is done."""
        if kind == "query.other":
            return "FT645"
        if self.standing != "open":
            return "FT641"
        if bundle == "unknown":
            return "FT620"
        if number == 4:
            return "FT645"
        day, reasons = self.site.now.date(), []
        trip = kind == "query.secagg"
        if not (6 <= self.site.now.hour < 18) and not trip:
            reasons.append("hours")
        most = EVALUATIONS_A_DAY if kind == "evaluate" else ROUNDS_A_DAY
        counted = "evaluate" if kind == "evaluate" else "train"
        if self.used.get((counted, day), 0) >= most and not trip:
            reasons.append("evaluations" if kind == "evaluate" else "rounds")
        if number == 3:
            reasons.append("steps")
        if reasons:
            return "FT640: " + ", ".join(reasons)
        if number != PREAPPROVED and (number, bundle) not in self.approved:
            self.waiting.add((number, bundle))
            return "FT642"
        if kind in ("train", "evaluate"):
            self.used[kind, day] = self.used.get((kind, day), 0) + 1
        return ""

    @rule(
        kind=st.sampled_from(KINDS),
        number=st.integers(0, len(OVERRIDES) - 1),
        bundle=st.sampled_from(list(BUNDLES)),
    )
    def ask(self, kind: str, number: int, bundle: str) -> None:
        expected = self.expected(kind, number, bundle)
        body = body_of(self.site.ask(kind, self.configs[number], bundle=BUNDLES[bundle]))
        self.asked += 1
        if body["code"] == "FT640":
            assert body["reason"].startswith("the site's policy refuses this: ")
            reasons = set(body["reason"].partition(": ")[2].split(", "))
            assert expected.startswith("FT640: ")
            assert reasons == set(expected.removeprefix("FT640: ").split(", "))
        else:
            assert body["code"] == (expected or "WORKED")

    @rule()
    def restart(self) -> None:
        self.site.start()
        self.site.desk._app = worked
        self.site.desk._site.of = lambda *_, **__: None  # type: ignore[assignment,method-assign,return-value]

    @rule(state=st.sampled_from(["open", "paused", "left"]))
    def say(self, state: Standing) -> None:
        write_standing(self.site.folder.standing, state, operator="me", reason="")
        self.standing = state

    @rule(number=st.integers(0, 1), bundle=st.sampled_from(["installed", "listed"]))
    def approve(self, number: int, bundle: str) -> None:
        approvals = Approvals(self.site.folder.approvals, self.site.folder.pending)
        known = {(each.subject.config, each.subject.bundle): each.subject for each in approvals.waiting()}
        assert len(known) == len(self.waiting)
        sha256 = BUNDLES[bundle] or admission_module.installed_bundle().sha256
        subject = known.get((config_hash(self.configs[number]), sha256))
        assert (subject is not None) == ((number, bundle) in self.waiting)
        if subject is not None:
            approvals.approve(subject, operator="me")
            self.approved.add((number, bundle))
            self.waiting.remove((number, bundle))

    @rule(hours=st.integers(1, 13))
    def wait(self, hours: int) -> None:
        self.site.now += timedelta(hours=hours)

    def teardown(self) -> None:
        events = [line["event"] for line in self.site.lines()]
        assert events[::2] == ["asked"] * self.asked
        assert set(events[1::2]) <= {"left", "refused"}
        assert len(events) == 2 * self.asked
        self.root.cleanup()


def worked(message: Message, _: object) -> Message:
    """In place of the work: the rest is the desk's own."""
    return Message(content(Failure(site="ear", code="WORKED", reason="")), reply_to=message)


def test_the_desk_decides_as_the_model_does(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Machine, "made", AskedSite(root=tmp_path, model=tiny_model_dir), raising=False)
    found = admission_module.estimate(federation_config(tiny_model_dir))
    monkeypatch.setattr(admission_module, "estimate", lambda _: found)  # of no seed or number of steps
    run_state_machine_as_test(
        Machine, settings=settings(max_examples=8, stateful_step_count=25, deadline=None)
    )
