"""Whatever an archive holds, nothing is written but new files in the folder that it is unpacked into."""

from __future__ import annotations

import io
import tarfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedtune.coordinator.backup_content import belongs
from fedtune.coordinator.restore import Restored, unpack
from fedtune.errors import FederationError

MANIFEST = (
    b'{\n "format": "fedtune-backup/1",\n "made": "2026-11-20T18:00:00+00:00",\n "version": "0.1.0"\n}\n'
)
FILE = tarfile.REGTYPE


def archive(*members: tuple[str, int, bytes, bytes], manifest: bytes = MANIFEST) -> bytes:
    """A tar archive of members with a name, a mode, a type and a content."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, mode, kind, content in (("backup.json", 0o600, FILE, manifest), *members):
            member = tarfile.TarInfo(name)
            member.mode, member.type, member.size = mode, kind, len(content)
            member.linkname = "../../outside" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def unpacked(data: bytes, into: Path) -> Restored:
    return unpack(io.BytesIO(data).read, into, where="a backup")


def refusal_of(data: bytes, into: Path) -> str:
    with pytest.raises(FederationError) as caught:
        unpacked(data, into)
    [problem] = caught.value.problems
    assert problem.code == "FT672"
    return problem.what


def test_an_archive_of_a_backup_is_taken(tmp_path: Path) -> None:
    data = archive(("ca.key", 0o600, FILE, b"key"), ("runs/a/b/c.json", 0o644, FILE, b""))
    assert unpacked(data, tmp_path).files == 2
    assert (tmp_path / "ca.key").read_bytes() == b"key"


NAMES = [
    "../ca.key",
    "/etc/passwd",
    "runs/../../x",
    "runs//x",
    "runs/./x",
    "runs/x/",
    "runs",
    "nodes/..",
    "nodes\\..\\x",
    "runs/a\nb",
    "runs/\x1b[2J",
    "runs/\u202ereversed",
    "runs/" + "x" * 256,
    "/".join(["runs"] * 17),
    "passwd",
    "CA.KEY",
    "state/server.jsonl",
    "state/../ca.key",
    "runs/a/.lock",
    "runs/a/.x.tmp",
    "backup.json",
    "",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_no_backup_holds_is_refused(tmp_path: Path, name: str) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    assert not belongs(name)
    told = refusal_of(archive((name, 0o600, FILE, b"x")), inside)
    # tarfile itself drops a slash at the end of a name.
    assert told.endswith("is nothing that a backup holds") or told.endswith("is no file")
    assert list(inside.iterdir()) == []
    assert list(tmp_path.iterdir()) == [inside]


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE],
)
def test_what_is_no_file_is_refused(tmp_path: Path, kind: bytes) -> None:
    assert refusal_of(archive(("runs/x", 0o600, kind, b"")), tmp_path) == "'runs/x' in it is no file"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("ca.key", 0o644),
        ("ca.key", 0o640),
        ("tls/hub.key", 0o604),
        ("state/superlink.db", 0o644),
        ("runs/a/secagg/coordinator.key", 0o644),
        ("ca.pem", 0o666),
        ("ca.pem", 0o755),
        ("ca.pem", 0o4644),
        ("ca.pem", 0o044),
        ("ca.pem", 0),
    ],
)
def test_a_mode_that_a_file_may_not_have_is_refused(tmp_path: Path, name: str, mode: int) -> None:
    told = refusal_of(archive((name, mode, FILE, b"x")), tmp_path)
    assert told == f"{name!r} in it has the mode {mode:o}, which it may not have"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("second", ["nodes/a", "nodes/a/b"])
def test_a_name_that_occurs_twice_is_refused(tmp_path: Path, second: str) -> None:
    refusal_of(archive(("nodes/a", 0o644, FILE, b"1"), (second, 0o644, FILE, b"2")), tmp_path)
    assert (tmp_path / "nodes" / "a").read_bytes() == b"1"


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"{}",
        MANIFEST.replace(b"backup/1", b"backup/2"),
        MANIFEST.replace(b"2026-11", b"2026-13"),
        MANIFEST.replace(b'"0.1.0"', b"1"),
        MANIFEST + b" " * 5_000,
    ],
)
def test_a_backup_that_does_not_say_what_it_is_is_refused(tmp_path: Path, manifest: bytes) -> None:
    assert "backup.json" in refusal_of(archive(manifest=manifest), tmp_path)


def test_what_says_nothing_first_is_refused(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("ca.pem"))
    for data in (out.getvalue(), b"", bytes(10_240)):
        refusal_of(data, tmp_path)


WHOLE = archive(
    ("ca.key", 0o600, FILE, b"key" * 200),
    ("runs/" + "long/" * 12 + "n" * 90, 0o644, FILE, b"x" * 600),
    ("runs/ü/rounds.jsonl", 0o644, FILE, b"{}\n"),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=400)
@given(data=st.data())
def test_no_archive_gets_out_of_its_folder_or_raises_anything_else(
    tmp_path: Path, data: st.DataObject
) -> None:
    changed = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(0, 4))):
        # Headers are where damage matters, so most changes go there.
        block = data.draw(st.integers(0, len(changed) // 512 - 1))
        at = 512 * block + data.draw(st.integers(0, 511))
        changed[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
        mend_checksum(changed, 512 * block)
    inside = tmp_path / "inside"
    inside.mkdir(exist_ok=True)
    with suppress(FederationError, OSError):
        unpacked(bytes(changed), inside)
    assert list(tmp_path.iterdir()) == [inside]
    for path in sorted(inside.rglob("*"), reverse=True):
        assert not path.is_symlink()
        if path.is_file():
            assert path.stat().st_mode & 0o7133 == 0
            assert belongs(path.relative_to(inside).as_posix())
            path.unlink()
        else:
            path.rmdir()


def mend_checksum(data: bytearray, start: int) -> None:
    """Let a changed header pass tarfile's own check, so that what it says is what counts."""
    header = data[start : start + 512]
    if len(header) == 512:
        total = sum(header[:148]) + sum(header[156:]) + 8 * 32
        data[start + 148 : start + 156] = b"%06o\0 " % total


@given(data=st.binary(max_size=3_000))
def test_noise_is_no_archive(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "noise"
    folder.mkdir(exist_ok=True)
    refusal_of(data, folder)
