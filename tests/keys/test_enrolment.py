"""A site enrols, joins, changes its keys and leaves; whoever stands between two people gets nowhere."""

from __future__ import annotations

import base64
import json
import os
import shutil
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key
from flwr.cli.supernode.register import try_load_public_key
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, uses_nist_ec_curve
from support.enrolment import NOW, SERVER, Coordinator

from fedtune.errors import FederationError, FedtuneError, Problem
from fedtune.keys.certificates import certificate_hash
from fedtune.keys.enrolment import enrol
from fedtune.keys.joining import accept, check, read_connection
from fedtune.keys.node import make_node, request_path
from fedtune.keys.removal import remove_site
from fedtune.keys.request import read_request
from fedtune.secagg.entry import fingerprint
from fedtune.secagg.files import read_roster
from fedtune.secagg.identity import Identity
from fedtune.secagg.roster import GENESIS, Roster

SITES = ("ear", "eye", "heart")


@pytest.fixture
def coordinator(tmp_path: Path) -> Coordinator:
    """Three sites have asked."""
    coordinator = Coordinator(tmp_path)
    coordinator.begin()
    for site in SITES:
        coordinator.ask(site)
    return coordinator


def write_roster(coordinator: Coordinator, *sites: str) -> Path:
    entries = tuple(read_request(request_path(coordinator.root / site, site)).entry for site in sites)
    path = coordinator.root / "roster-1.json"
    path.write_text(Roster(federation="f", version=1, previous=GENESIS, entries=entries).to_json())
    return path


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def found(error: pytest.ExceptionInfo[FedtuneError]) -> tuple[Problem, ...]:
    return error.value.problems


def test_a_site_makes_two_keys_for_itself_alone_that_flower_takes(coordinator: Coordinator) -> None:
    folder = coordinator.root / "ear"
    for name in ("node.key", "identity.key"):
        assert (folder / name).stat().st_mode & 0o777 == 0o600
    coordinator.answer("ear")
    private = load_ssh_private_key((folder / "node.key").read_bytes(), None)
    registered = try_load_public_key(coordinator.folder / "nodes" / "ear.pub")
    assert uses_nist_ec_curve(bytes_to_public_key(registered))
    assert bytes_to_public_key(registered) == private.public_key()


def test_no_private_key_is_in_what_is_sent(coordinator: Coordinator) -> None:
    bundles = coordinator.answer(*SITES)
    sent = [request_path(coordinator.root / site, site) for site in SITES] + list(bundles.iterdir())
    for path in coordinator.root.rglob("*.key"):
        secret = scalar(path)
        forms = [secret.hex(), *(base64.b64encode(secret[at:][:30]).decode() for at in range(3))]
        assert any(form in spread(path) for form in forms[1:])
        for file in sent:
            assert not any(form in spread(file) for form in forms)


def scalar(path: Path) -> bytes:
    """The number that makes a key private."""
    data = path.read_bytes()
    load = load_ssh_private_key if b"OPENSSH" in data else load_pem_private_key
    key = load(data, None)
    if isinstance(key, Ed25519PrivateKey):
        return key.private_bytes_raw()
    assert isinstance(key, EllipticCurvePrivateKey)
    return key.private_numbers().private_value.to_bytes(48, "big")


def spread(path: Path) -> str:
    """A file's text without what breaks its lines."""
    return path.read_text().replace("\\n", "").replace("\n", "")


def test_sites_join_and_know_whom_they_trust(coordinator: Coordinator) -> None:
    coordinator.answer(*SITES, roster=write_roster(coordinator, *SITES))
    for site in SITES:
        folder = coordinator.root / site
        joined = coordinator.join(site)
        assert read_connection(folder / "connection.json") == joined
        assert (joined.site, joined.federation, joined.server) == (site, "f", SERVER)
        assert (folder / "ca.pem").read_bytes() == (coordinator.folder / "ca.pem").read_bytes()
        assert read_roster(folder / "roster-1.json").members[Identity.load(folder / "identity.key").public]
        assert not (folder / "pin.json").exists()


def test_nothing_is_written_without_the_fingerprint_that_was_heard(coordinator: Coordinator) -> None:
    coordinator.answer("ear")
    folder = coordinator.root / "ear"
    before = content(folder)
    answer = check(folder, coordinator.bundle("ear"), NOW)
    for heard in ("", "aaaa", fingerprint(Identity.generate().public), "\x1b[2J\nü"):
        with pytest.raises(FederationError, match="FT633") as error:
            accept(answer, heard)
        assert len(str(error.value).splitlines()) == 3
    assert content(folder) == before
    accept(answer, fingerprint(answer.bundle.coordinator).upper().replace("-", " "))


def test_another_coordinator_in_between_has_another_fingerprint(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    coordinator.answer("ear")
    between = Coordinator(tmp_path / "between")
    between.begin()
    shutil.copytree(coordinator.root / "ear", between.root / "ear")
    between.answer("ear")
    heard = fingerprint(Identity.load(coordinator.folder / "coordinator.key").public)
    answer = check(coordinator.root / "ear", between.bundle("ear"), NOW)
    with pytest.raises(FederationError, match="the operator confirmed"):
        accept(answer, heard)
    coordinator.join("ear")
    with pytest.raises(FederationError, match="this site has accepted the coordinator"):
        check(coordinator.root / "ear", between.bundle("ear"), NOW)


def test_a_bundle_is_good_for_its_request_alone(coordinator: Coordinator) -> None:
    coordinator.answer("ear", "eye")
    with pytest.raises(FederationError, match=r"it is for eye, and there is no request of eye"):
        check(coordinator.root / "ear", coordinator.bundle("eye"), NOW)
    again = coordinator.root / "again"
    make_node(again, site="ear", federation="f")
    with pytest.raises(FederationError, match="it answers another request"):
        check(again, coordinator.bundle("ear"), NOW)


def test_a_site_looks_at_all_of_its_own_files_before_it_joins(coordinator: Coordinator) -> None:
    coordinator.answer("ear")
    folder = coordinator.root / "ear"
    (folder / "identity.key").chmod(0o640)
    shutil.copy2(coordinator.root / "eye" / "node.key", folder / "node.key")
    (folder / "connection.json").write_text("{}")
    before = content(folder)
    with pytest.raises(FederationError) as error:
        check(folder, coordinator.bundle("ear"), NOW)
    assert [(problem.code, Path(problem.where).name) for problem in found(error)] == [
        ("FT630", "node.key"), ("FT928", "identity.key"), ("FT636", "connection.json")
    ]  # fmt: skip
    assert content(folder) == before


def test_an_older_bundle_does_not_bring_an_old_authority_back(coordinator: Coordinator) -> None:
    coordinator.answer("ear")
    new = Coordinator(coordinator.root / "new")
    new.begin()
    for name in ("coordinator.key", "nodes"):
        source, target = coordinator.folder / name, new.folder / name
        (shutil.copytree if source.is_dir() else shutil.copy2)(source, target)
    shutil.copytree(coordinator.root / "ear", new.root / "ear")
    new.answer("ear", later=1)
    first = coordinator.join("ear")
    answer = check(coordinator.root / "ear", new.bundle("ear"), NOW)
    second = accept(answer, fingerprint(first.coordinator))
    assert second.authority == certificate_hash(answer.bundle.authority) != first.authority
    with pytest.raises(FederationError, match="older than the bundle that this site accepted"):
        coordinator.join("ear")
    assert read_connection(coordinator.root / "ear" / "connection.json") == second


def test_a_bundle_with_an_authority_that_ended_is_refused(tmp_path: Path) -> None:
    past = Coordinator(tmp_path, now=NOW - timedelta(days=3))
    past.begin(days=2)
    past.ask("ear")
    past.answer("ear")
    with pytest.raises(FederationError, match="the certificate ended on"):
        check(tmp_path / "ear", past.bundle("ear"), NOW)


def test_everything_that_is_wrong_with_any_request_is_said_at_once_and_nothing_written(
    coordinator: Coordinator,
) -> None:
    root = coordinator.root
    make_node(root / "other", site="skin", federation="another")
    make_node(root / "twin", site="ear", federation="f")
    (root / "pickle").write_bytes(b"\x80\x04cos\nsystem\n.")
    coordinator.answer("eye")
    before = content(root)
    names = ["other/skin", "twin/ear", "ear/ear", "eye/eye"]
    requests = [root / f"{name}.request.json" for name in names] + [root / "pickle", root / "none"]
    with pytest.raises(FederationError) as error:
        enrol(
            coordinator.folder,
            requests,
            federation="f",
            server="nowhere",
            out=root / "bundles",
            now=NOW,
            roster=write_roster(coordinator, "ear", "eye"),
        )
    said = [(problem.code, problem.where) for problem in found(error)]
    skin, twin, ear, eye = map(str, requests[:4])
    assert sorted(said) == sorted(
        [
            ("FT635", "--server"),
            ("FT632", str(root / "pickle")),
            ("FT632", str(root / "none")),
            ("FT632", skin),  # asks for another federation
            ("FT632", skin),  # is not in the roster
            ("FT632", twin),  # the roster has the name with another identity
            ("FT632", twin),
            ("FT632", ear),  # both ask with one name
            ("FT634", str(coordinator.bundle("eye"))),
        ]
    )
    assert eye not in {where for _, where in said}
    assert content(root) | {root / "roster-1.json": b""} == before | {root / "roster-1.json": b""}


def test_two_sites_never_share_a_key(coordinator: Coordinator) -> None:
    ear = coordinator.root / "ear"
    shutil.copy2(request_path(ear, "ear"), ear / "copy.request.json")
    with pytest.raises(FederationError) as error:
        enrol(
            coordinator.folder,
            [request_path(ear, "ear"), ear / "copy.request.json"],
            federation="f",
            server=SERVER,
            out=coordinator.root / "bundles",
            now=NOW,
        )
    kinds = {problem.what.removeprefix("another request has the same ") for problem in found(error)}
    assert kinds == {"name", "identity", "node key"}


def test_a_site_that_is_enrolled_gets_another_bundle_but_no_other_key(coordinator: Coordinator) -> None:
    coordinator.answer("ear")
    node = coordinator.folder / "nodes" / "ear.pub"
    before = node.read_bytes()
    coordinator.answer("ear", out="later", later=60)
    assert node.read_bytes() == before
    make_node(coordinator.root / "new", site="ear", federation="f")
    arguments = {"federation": "f", "server": SERVER, "now": NOW}
    request = coordinator.root / "new" / "ear.request.json"
    with pytest.raises(FederationError, match="ear is enrolled with another node key"):
        enrol(coordinator.folder, [request], out=coordinator.root / "third", **arguments)
    removed = remove_site("ear", folder=coordinator.folder)
    assert removed.node is not None
    assert not node.exists()
    enrol(coordinator.folder, [request], out=coordinator.root / "third", **arguments)
    with pytest.raises(FederationError, match="was removed and is not enrolled again"):
        coordinator.answer("ear", out="fourth")


def test_a_removed_site_is_not_in_the_next_version_of_the_roster(coordinator: Coordinator) -> None:
    coordinator.answer(*SITES)
    first, out = write_roster(coordinator, *SITES), coordinator.root / "roster-2.json"
    removed = remove_site("eye", folder=coordinator.folder, roster=first, out=out)
    second = read_roster(out)
    assert second == removed.roster
    assert (second.version, second.previous) == (2, read_roster(first).hash)
    assert sorted(entry.site for entry in second.entries) == ["ear", "heart"]
    nodes = coordinator.folder / "nodes"
    assert sorted(path.name for path in nodes.glob("*.pub")) == ["ear.pub", "heart.pub"]


def test_what_cannot_be_removed_is_said_at_once_and_nothing_changes(coordinator: Coordinator) -> None:
    coordinator.answer("ear")
    roster = write_roster(coordinator, "ear")
    before = content(coordinator.root)
    with pytest.raises(FederationError) as error:
        remove_site("eye", folder=coordinator.folder, roster=roster, out=roster)
    assert [(problem.code, problem.where) for problem in found(error)] == [
        ("FT637", str(roster)),
        ("FT634", str(roster)),
        ("FT637", str(coordinator.folder / "nodes" / "eye.pub")),
    ]
    with pytest.raises(FederationError, match="ear is the only site of version 1"):
        remove_site("ear", roster=roster, out=coordinator.root / "2")
    with pytest.raises(FederationError, match="FT635"):
        remove_site("../ca", folder=coordinator.folder)
    assert content(coordinator.root) == before


def test_a_bundle_names_a_roster_with_the_site_in_it(coordinator: Coordinator) -> None:
    with pytest.raises(FederationError, match="version 1 of the roster does not have ear"):
        coordinator.answer("ear", roster=write_roster(coordinator, "eye"))
    roster = write_roster(coordinator, "ear")
    text = json.loads(roster.read_text()) | {"federation": "g"}
    roster.write_text(json.dumps(text))
    with pytest.raises(FederationError, match="FT918"):
        coordinator.answer("ear", roster=roster)


def test_an_interrupted_making_leaves_no_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.fsync, []

    def full(file: int) -> None:
        calls.append(file)
        if len(calls) > 2:
            raise OSError(28, "No space left on device")
        real(file)

    monkeypatch.setattr("fedtune.keys.storage.os.fsync", full)
    with pytest.raises(FedtuneError, match="FT705"):
        make_node(tmp_path / "site", site="ear", federation="f")
    assert list((tmp_path / "site").iterdir()) == []
    monkeypatch.undo()
    make_node(tmp_path / "site", site="ear", federation="f")


@pytest.mark.parametrize("lost", ["ca.pem", "coordinator.key"])
def test_a_coordinator_without_its_files_says_which(coordinator: Coordinator, lost: str) -> None:
    (coordinator.folder / lost).unlink()
    with pytest.raises(FederationError) as error:
        coordinator.answer("ear")
    assert [problem.where for problem in found(error)] == [str(coordinator.folder / lost)]


def test_enrolling_needs_no_key_of_the_authority(coordinator: Coordinator) -> None:
    (coordinator.folder / "ca.key").unlink()
    coordinator.answer("ear")
    assert coordinator.join("ear").site == "ear"


def test_everything_that_a_site_declares_wrongly_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "node.key").touch()
    with pytest.raises(FederationError) as error:
        make_node(tmp_path / "s", site="e r", federation="\n", weight=3, group="\x1b")
    assert [problem.code for problem in found(error)] == ["FT635", "FT929", "FT929", "FT929", "FT634"]
