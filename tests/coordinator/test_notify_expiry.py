"""Certificates announce their end 30, 7 and 1 days before, once each, whatever restarts in between."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.enrolment import NOW, Coordinator, never_asked

from fedtune.coordinator.notify import Notice
from fedtune.coordinator.notify_expiry import ExpiryWatch
from fedtune.keys.server import ServerOrder, renew_server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    hub = Coordinator(tmp_path)
    hub.begin(days=3_650)
    hub.server(days=40)
    (tmp_path / "tls").rename(hub.folder / "tls")
    return hub.folder


def looked(folder: Path, now: datetime) -> list[str]:
    """What a server that has just started tells."""
    told: list[Notice] = []
    ExpiryWatch(folder, federation="heart", give=told.append).look(now)
    assert all(notice.kind == "expiry" and notice.federation == "heart" for notice in told)
    assert all((notice.run, notice.round, notice.when) == (None, None, now) for notice in told)
    return [notice.what for notice in told]


def test_each_is_given_once_over_restarts(folder: Path) -> None:
    told = {day: looked(folder, NOW + timedelta(days=day, hours=1)) for day in range(45)}
    days = {day: what for day, what in told.items() if what}
    ends = f"on {NOW + timedelta(days=40):%Y-%m-%d}; fedtune keys show says how to renew it"
    assert days == {
        10: [f"the certificate tls/hub.pem ends in 29 days, {ends}"],
        33: [f"the certificate tls/hub.pem ends in 6 days, {ends}"],
        39: [f"the certificate tls/hub.pem ends within a day, {ends}"],
    }


def test_a_server_that_starts_late_gives_the_most_urgent_alone(folder: Path) -> None:
    assert [what.partition(",")[0] for what in looked(folder, NOW + timedelta(days=36))] == [
        "the certificate tls/hub.pem ends in 4 days"
    ]
    assert looked(folder, NOW + timedelta(days=37)) == []
    assert [what.partition(",")[0] for what in looked(folder, NOW + timedelta(days=60))] == [
        "the certificate tls/hub.pem has ended"
    ]


def test_a_renewed_certificate_announces_its_own_end(folder: Path) -> None:
    assert len(looked(folder, NOW + timedelta(days=35))) == 1
    order = ServerOrder(name="hub", dns=("localhost",), days=40, out=folder / "tls")
    renew_server(folder, order, never_asked, NOW + timedelta(days=35))
    assert looked(folder, NOW + timedelta(days=36)) == []
    assert json.loads((folder / "state" / "notified.json").read_text())["given"] == []
    assert len(looked(folder, NOW + timedelta(days=70))) == 1


def test_the_authority_is_looked_at_too(folder: Path) -> None:
    told = looked(folder, NOW + timedelta(days=3_645))
    assert [what.partition(",")[0] for what in told] == [
        "the certificate ca.pem ends in 5 days",
        "the certificate tls/hub.pem has ended",
    ]


def test_a_state_that_cannot_be_kept_is_remembered_by_the_process(folder: Path) -> None:
    (folder / "state").touch()
    told: list[Notice] = []
    watch = ExpiryWatch(folder, federation="heart", give=told.append)
    for hour in range(3):
        watch.look(NOW + timedelta(days=36, hours=hour))
    assert len(told) == 1


def test_a_folder_without_certificates_tells_nothing(tmp_path: Path) -> None:
    assert looked(tmp_path, NOW) == []


STATES = st.binary(max_size=60) | st.builds(
    lambda form, given: json.dumps({"format": form, "given": given}).encode(),
    st.just("fedtune-notified/1") | st.text(max_size=4),
    st.lists(st.lists(st.text(max_size=5) | st.integers(), max_size=4) | st.none(), max_size=3),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(state=STATES)
def test_a_damaged_state_counts_as_none(folder: Path, state: bytes) -> None:
    (folder / "state").mkdir(exist_ok=True)
    (folder / "state" / "notified.json").write_bytes(state)
    assert len(looked(folder, NOW + timedelta(days=36))) == 1
