"""A coordinator's folder is made whole or not at all, and grows by what sites send."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.enrolment import NOW

from fedtune.coordinator.folder import HOME_VARIABLE, CoordinatorFolder
from fedtune.coordinator.settings import SETTINGS, load_settings, written
from fedtune.coordinator.setup import enrol_sites, initialise, remove
from fedtune.errors import FederationError
from fedtune.keys.node import make_node
from fedtune.secagg.files import read_roster

ORDER: dict[str, Any] = {
    "federation": "lungs",
    "dns": ["fedtune.example.org"],
    "ip": [],
    "port": 9092,
    "superlink_port": 9091,
    "now": NOW,
}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"dns": ["*.example.org"]}, "example.org"),
        ({"ip": ["300.1.1.1"]}, "300.1.1.1"),
        ({"dns": [], "ip": []}, "at least one host name"),
        ({"days": 0}, "0"),
        ({"superlink_port": 9092}, "the gate and the SuperLink cannot listen on one port"),
        ({"superlink_port": 70_000}, "70000 is no port"),
        ({"port": 70_000}, "70000"),
        ({"federation": ""}, "federation"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_is_made(
    tmp_path: Path, wrong: dict[str, Any], said: str
) -> None:
    with pytest.raises(FederationError, match="FT635") as caught:
        initialise(tmp_path / "hub", **ORDER | wrong)
    assert said in str(caught.value)
    assert not list((tmp_path / "hub").glob("*")) if (tmp_path / "hub").exists() else True
    initialise(tmp_path / "hub", **ORDER)


@pytest.mark.parametrize(
    ("names", "address", "listen"),
    [
        ({}, "fedtune.example.org:9092", "0.0.0.0:9092"),
        ({"dns": [], "ip": ["10.0.0.7"]}, "10.0.0.7:9092", "0.0.0.0:9092"),
        ({"dns": [], "ip": ["2001:db8::7"]}, "[2001:db8::7]:9092", "[::]:9092"),
    ],
)
def test_the_settings_that_are_written_can_be_read(
    tmp_path: Path, names: dict[str, Any], address: str, listen: str
) -> None:
    made = initialise(tmp_path / "hub", **ORDER | names)
    settings = load_settings(CoordinatorFolder(tmp_path / "hub").settings)
    assert (made.address, settings.address, settings.listen) == (address, address, listen)


def test_nothing_is_written_over(tmp_path: Path) -> None:
    initialise(tmp_path / "hub", **ORDER)
    before = {path: path.read_bytes() for path in (tmp_path / "hub").rglob("*") if path.is_file()}
    with pytest.raises(FederationError, match="FT634"):
        initialise(tmp_path / "hub", **ORDER)
    assert {path: path.read_bytes() for path in (tmp_path / "hub").rglob("*") if path.is_file()} == before


def test_sites_are_enrolled_and_removed_and_every_version_of_the_roster_is_kept(tmp_path: Path) -> None:
    initialise(tmp_path / "hub", **ORDER)
    folder = CoordinatorFolder(tmp_path / "hub")
    requests = {}
    for name in ("ear", "eye", "heart"):
        make_node(tmp_path / name, site=name, federation="lungs")
        (requests[name],) = (tmp_path / name).glob("*.request.json")
    first = enrol_sites(folder, [requests["ear"], requests["eye"]], now=NOW)
    assert (first.roster.version, first.before) == (1, None)
    second = enrol_sites(folder, [requests["heart"]], now=NOW)
    assert (second.roster.version, second.before) == (2, first.roster)
    assert read_roster(folder.roster) == second.roster
    assert {path.stem for path in folder.nodes.glob("*.pub")} == {"ear", "eye", "heart"}
    removed = remove(folder, "eye")
    assert removed.roster is not None
    assert {entry.site for entry in read_roster(folder.roster).entries} == {"ear", "heart"}
    assert {path.stem for path in folder.nodes.glob("*.pub")} == {"ear", "heart"}
    assert [read_roster(folder.roster_version(version)).version for version in (1, 2, 3)] == [1, 2, 3]


@given(federation=st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), min_size=1, max_size=30))
def test_any_text_that_is_written_is_read_back(federation: str) -> None:
    text = written(federation=federation, address="a:1", listen="0.0.0.0:1", superlink_port=2)
    assert SETTINGS.parse(text, where="server.yaml").federation == federation


def test_a_process_knows_whose_it_is_by_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(HOME_VARIABLE, raising=False)
    assert CoordinatorFolder.of_process() is None
    monkeypatch.setenv(HOME_VARIABLE, "/srv/hub")
    assert CoordinatorFolder.of_process() == CoordinatorFolder(Path("/srv/hub"))
