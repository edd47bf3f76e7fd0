"""What ``inspect`` says of every kind of file, of files that are wrong, and of what will end soon."""

from __future__ import annotations

import base64
import shutil
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.enrolment import NOW, Coordinator

from fedtune.keys.inspection import Inspected, inspect


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Coordinator:
    coordinator = Coordinator(tmp_path_factory.mktemp("federation"))
    coordinator.begin(days=100)
    coordinator.server(days=50)
    coordinator.ask("ear")
    coordinator.answer("ear")
    coordinator.join("ear")
    return coordinator


def kinds(files: list[Inspected]) -> dict[str, str]:
    return {file.path.name: file.content.kind if file.content else "unknown" for file in files}


def test_every_file_of_a_deployment_is_known(coordinator: Coordinator) -> None:
    assert kinds(inspect(coordinator.folder, NOW)) == {
        "ca.key": "private key",
        "ca.pem": "certificate of an authority",
        "coordinator.key": "identity, private",
        "ear.pub": "node key, public",
    }
    assert kinds(inspect(coordinator.root / "tls", NOW)) == {
        "hub.key": "private key",
        "hub.pem": "certificate of a server",
    }
    assert kinds(inspect(coordinator.root / "ear", NOW)) == {
        "ca.pem": "certificate of an authority",
        "connection.json": "connection of a site",
        "ear.request.json": "request of a site",
        "identity.key": "identity, private",
        "node.key": "node key, private",
    }
    (bundle,) = inspect(coordinator.root / "bundles", NOW)
    assert bundle.content is not None
    assert bundle.content.kind == "bundle for a site"
    for folder in (coordinator.folder, coordinator.root / "tls", coordinator.root / "ear"):
        assert not [problem for file in inspect(folder, NOW) for problem in file.problems]


def test_what_belongs_together_has_the_same_fingerprint(coordinator: Coordinator) -> None:
    def shown(name: str) -> str | None:
        (file,) = inspect(coordinator.root / name, NOW)
        assert file.content is not None
        return file.content.fingerprint

    assert shown("ear/ear.request.json") == shown("ear/identity.key")
    assert shown("ear/node.key") == shown("coordinator/nodes/ear.pub")
    assert (
        shown("ear/connection.json")
        == shown("bundles/ear.bundle.json")
        == shown("coordinator/coordinator.key")
    )
    assert shown("ear/ca.pem") == shown("coordinator/ca.pem") != shown("tls/hub.pem")


@pytest.mark.parametrize(
    ("days", "left", "warnings", "problems"),
    [
        (0, 50, (), 0),
        (20, 30, (), 0),
        (21, 29, ("it ends in 29 days",), 0),
        (49.5, 0, ("it ends in 0 days",), 0),
        (51, -1, (), 1),
    ],
)
def test_thirty_days_before_its_end_a_certificate_is_pointed_out(
    coordinator: Coordinator, days: float, left: int, warnings: tuple[str, ...], problems: int
) -> None:
    (file,) = inspect(coordinator.root / "tls" / "hub.pem", NOW + timedelta(days=days))
    assert file.content is not None
    assert (file.days_left, file.content.warnings) == (left, warnings)
    assert [problem.code for problem in file.problems] == ["FT631"] * problems


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o610, 0o620, 0o602, 0o601])
def test_a_private_key_that_others_may_use_is_an_error_with_its_fix(
    coordinator: Coordinator, tmp_path: Path, mode: int
) -> None:
    for name in ("ear/node.key", "ear/identity.key", "coordinator/ca.key", "tls/hub.key"):
        path = tmp_path / Path(name).name
        shutil.copy2(coordinator.root / name, path)
        path.chmod(mode)
        (file,) = inspect(path, NOW)
        assert [(problem.code, problem.fix) for problem in file.problems] == [("FT630", f"chmod 600 {path}")]
        assert file.mode == f"{mode:04o}"


def test_a_joining_that_was_cut_short_is_seen(coordinator: Coordinator, tmp_path: Path) -> None:
    folder = tmp_path / "ear"
    shutil.copytree(coordinator.root / "ear", folder)
    other = Coordinator(tmp_path / "other")
    other.begin()
    shutil.copy2(other.folder / "ca.pem", folder / "ca.pem")
    (problem,) = [problem for file in inspect(folder, NOW) for problem in file.problems]
    assert (problem.code, problem.where) == ("FT636", str(folder / "connection.json"))
    (folder / "ca.pem").unlink()
    (problem,) = [problem for file in inspect(folder, NOW) for problem in file.problems]
    assert problem.code == "FT631"


def test_nothing_and_nonsense_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "deep.json").write_text("{" * 10_000)
    for name in ("none", "empty", "notes.txt", "list.json", "deep.json"):
        (file,) = inspect(tmp_path / name, NOW)
        assert [(problem.code, problem.where) for problem in file.problems] == [
            ("FT636", str(tmp_path / name))
        ]
    assert [file.path.name for file in inspect(tmp_path, NOW)] == ["deep.json", "list.json"]


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", denied)
    (file,) = inspect(tmp_path, NOW)
    assert [problem.what for problem in file.problems] == ["the folder cannot be read: Permission denied"]


@pytest.mark.parametrize(
    "name", ["coordinator/ca.pem", "tls/hub.pem", "tls/hub.key", "ear/node.key", "coordinator/nodes/ear.pub"]
)
def test_a_bit_that_is_wrong_below_the_base64_is_described_or_named(
    coordinator: Coordinator, tmp_path: Path, name: str
) -> None:
    """In each byte some bit: the parsers of `cryptography` raise more kinds of error than ValueError."""
    text = (coordinator.root / name).read_text()
    body = max(text.replace(" ", "-----").split("-----"), key=len)
    raw = base64.b64decode(body)
    damaged = tmp_path / Path(name).name
    for at in range(len(raw)):
        for bit in (1, 2 << at % 6, 128):
            changed = raw[:at] + bytes([raw[at] ^ bit]) + raw[at + 1 :]
            encoded = base64.b64encode(changed).decode()
            lines = "\n".join(encoded[start : start + 64] for start in range(0, len(encoded), 64))
            damaged.write_text(text.replace(body, f"\n{lines}\n" if "\n" in body else encoded))
            damaged.chmod(0o600)
            (file,) = inspect(damaged, NOW)
            assert file.content is not None or file.problems


@settings(max_examples=150, deadline=None)
@given(which=st.integers(0), where=st.integers(0), change=st.integers(1, 255), cut=st.booleans())
def test_a_damaged_file_is_described_or_named_and_never_more(
    coordinator: Coordinator,
    tmp_path_factory: pytest.TempPathFactory,
    which: int,
    where: int,
    change: int,
    cut: bool,
) -> None:
    files = sorted(path for path in coordinator.root.rglob("*") if path.is_file())
    source = files[which % len(files)]
    data = bytearray(source.read_bytes())
    data[where % len(data)] ^= change
    if cut:
        del data[where % len(data) :]
    damaged = tmp_path_factory.getbasetemp() / source.name
    damaged.write_bytes(data)
    damaged.chmod(0o600)
    (file,) = inspect(damaged, NOW)
    assert file.content is not None or file.problems
    assert all(len(str(problem).splitlines()) == 3 for problem in file.problems)
