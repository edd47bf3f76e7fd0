from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.model_settings import model_config

from fedtune.errors import MachineError
from fedtune.models.cache import cache_folder, cache_key, file_sha256, make_once


def test_the_cache_folder_is_configured_or_from_the_environment_or_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDTUNE_CACHE_DIR", str(tmp_path / "environment"))
    assert cache_folder(model_config("m", cache_dir=str(tmp_path))) == tmp_path
    assert cache_folder(model_config("m")) == tmp_path / "environment"
    monkeypatch.delenv("FEDTUNE_CACHE_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder(model_config("m")) == tmp_path / ".cache" / "fedtune"


def test_different_parts_have_different_keys() -> None:
    assert cache_key("a", "b") == cache_key("a", "b")
    assert len({cache_key("a", "b"), cache_key("ab"), cache_key("ab", ""), cache_key("b", "a")}) == 4


def test_a_folder_is_made_once(tmp_path: Path) -> None:
    made = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "file").write_text("whole")

    target = tmp_path / "entries" / "one"
    for _ in range(2):
        assert make_once(target, make) == target
        assert (target / "file").read_text() == "whole"
    assert len(made) == 1


def test_a_failure_leaves_nothing_under_the_name(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "file").write_text("half")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        make_once(tmp_path / "one", fail)
    assert [path.name for path in tmp_path.iterdir()] in ([".one.lock"], [])


def test_what_a_killed_process_left_is_not_taken_for_whole(tmp_path: Path) -> None:
    killed = tmp_path / ".one.partial"
    killed.mkdir()
    (killed / "stale").write_text("half")
    make_once(tmp_path / "one", lambda folder: (folder / "file").touch())
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["file"]


COUNTING = """
import sys, time
from pathlib import Path
from fedtune.models.cache import make_once
def make(folder):
    with open(sys.argv[2], "a") as count:
        count.write("made\\n")
    time.sleep(0.5)
    (folder / "file").write_text("whole")
print((make_once(Path(sys.argv[1]), make) / "file").read_text())
"""


def test_of_two_processes_one_makes_it_and_both_get_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", COUNTING, str(tmp_path / "one"), str(tmp_path / "count")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=60)[0] for process in both]
    assert said == ["whole\n", "whole\n"]
    assert (tmp_path / "count").read_text() == "made\n"


FILLING = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from safetensors.numpy import save_file
from fedtune.errors import MachineError
from fedtune.models.cache import make_once
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # the disk ends here
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
writes = {
    "python": lambda folder: (folder / "f").write_bytes(bytes(10000)),
    "safetensors": lambda folder: save_file({"x": np.zeros(10000)}, folder / "f"),
}
try:
    make_once(Path(sys.argv[1]), writes[sys.argv[2]])
except MachineError as error:
    print(error)
"""


@pytest.mark.parametrize("writer", ["python", "safetensors"])
def test_a_full_disk_is_said_whoever_met_it_and_leaves_nothing(tmp_path: Path, writer: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FILLING, str(tmp_path / "one"), writer],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "FT802: the cache of models is full" in done.stdout, done.stderr
    assert "model.cache_dir" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) in ([".one.lock"], [])


def test_a_cache_under_a_file_is_refused_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MachineError, match="FT802: the cache of models cannot be written") as caught:
        make_once(tmp_path / "file" / "one", lambda folder: None)
    assert str(tmp_path / "file") in caught.value.problems[0].where


def test_a_library_error_that_is_no_disks_passes_through(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        raise OSError("the library says: unknown tensor type")

    with pytest.raises(OSError, match="unknown tensor type"):
        make_once(tmp_path / "one", fail)


def test_a_hash_is_kept_until_size_or_time_change(tmp_path: Path) -> None:
    file, cache = tmp_path / "weights", tmp_path / "cache"
    file.write_bytes(b"abc")
    first = file_sha256(file, cache)
    assert first == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
    status = file.stat()
    file.write_bytes(b"abd")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file_sha256(file, cache) == first  # not read again: the stamp is the same
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert file_sha256(file, cache) != first


def test_a_damaged_or_unwritable_note_costs_time_and_nothing_else(tmp_path: Path) -> None:
    file, cache = tmp_path / "weights", tmp_path / "cache"
    file.write_bytes(b"abc")
    first = file_sha256(file, cache)
    (note,) = (cache / "fingerprints").iterdir()
    for damage in ("", "{", "[]", "null", '{"path": 1}'):
        note.write_text(damage)
        assert file_sha256(file, cache) == first
    blocked = tmp_path / "blocked"
    blocked.touch()
    assert file_sha256(file, blocked) == first
