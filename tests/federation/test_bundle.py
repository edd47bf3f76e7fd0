"""The bundle is one sequence of bytes for one installation, whoever makes it and wherever."""

from __future__ import annotations

import inspect
import io
import os
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
from flwr.cli import build
from flwr.cli.build import build_fab_from_disk
from flwr.supercore.fab import Fab

from fedtune.federation.bundle import installed_bundle, write_bundle

HASH = "from fedtune.federation.bundle import installed_bundle; print(installed_bundle().sha256)"


@pytest.fixture
def anew() -> None:
    installed_bundle.cache_clear()


def test_two_processes_make_the_same_bytes() -> None:
    made = {
        subprocess.run(
            [sys.executable, "-c", HASH],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONHASHSEED": seed, "TZ": zone, "UMASK": "077"},
        ).stdout
        for seed, zone in (("1", "UTC"), ("2", "Asia/Tokyo"))
    }
    assert made == {installed_bundle().sha256 + "\n"}


@pytest.mark.usefixtures("anew")
@pytest.mark.parametrize("level", [0, 1, 9])
def test_what_compresses_has_no_say(monkeypatch: pytest.MonkeyPatch, level: int) -> None:
    expected = installed_bundle()
    installed_bundle.cache_clear()
    real = zlib.compressobj

    def other(_: int = -1, *arguments: Any) -> Any:
        return real(level, *arguments)

    monkeypatch.setattr(zlib, "compressobj", other)
    assert installed_bundle() == expected


def test_it_holds_two_entry_points_and_no_fedtune() -> None:
    with zipfile.ZipFile(io.BytesIO(installed_bundle().content)) as archive:
        names = archive.namelist()
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    assert {"server/app.py", "client/app.py", "pyproject.toml"} <= set(names)
    assert not [name for name in names if name.startswith("fedtune/")]


def test_flower_builds_from_a_folder_and_gives_bytes(tmp_path: Path) -> None:
    assert tuple(inspect.signature(build_fab_from_disk).parameters) == ("app",)
    archive = build_fab_from_disk(write_bundle(tmp_path / "fedtune-app"))
    assert zipfile.is_zipfile(io.BytesIO(archive))
    assert hasattr(build, "build_fab_from_files")


def test_flower_takes_a_bundle_by_hash_and_content() -> None:
    bundle = installed_bundle()
    assert Fab(hash_str=bundle.sha256, content=bundle.content, verifications={}).content == bundle.content
