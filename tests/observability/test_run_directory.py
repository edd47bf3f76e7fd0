"""A run directory has one writer, and holds whole files or none."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedtune.errors import RunError
from fedtune.observability import disk
from fedtune.observability.events import EventLog, RoundFinished
from fedtune.observability.run_directory import RunDirectory, checkpoint_rounds, events_path

EVENT = RoundFinished(time=1.0, round=1, held_out_loss=2.0)


def files(path: Path) -> dict[str, bytes]:
    return {
        str(entry.relative_to(path)): entry.read_bytes()
        for entry in sorted(path.rglob("*"))
        if entry.is_file() and entry.name != ".lock"
    }


def code(error: pytest.ExceptionInfo[RunError]) -> str:
    return error.value.problems[0].code


def test_an_existing_run_is_refused_with_both_ways_out(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "demo") as run:
        assert not run.resumed
        run.write_config("name: demo\n")
        run.events.append(EVENT)
    before = files(tmp_path)
    with pytest.raises(RunError, match="already a run named 'demo'") as error:
        RunDirectory.create(tmp_path / "demo")
    assert code(error) == "FT701"
    assert "resume=true" in str(error.value)
    assert "name=" in str(error.value)
    assert files(tmp_path) == before


def test_resume_goes_on_with_what_is_there_and_starts_anew_where_nothing_is(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "demo", resume=True) as run:
        assert not run.resumed
        run.events.append(EVENT)
    with RunDirectory.create(tmp_path / "demo", resume=True) as run:
        assert run.resumed
        assert run.events.read() == [EVENT]


def test_a_start_that_was_killed_before_its_first_event_does_not_count_as_a_run(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path / "demo").close()
    (tmp_path / "demo" / ".config.yaml.77.tmp").write_text("nam")
    with RunDirectory.create(tmp_path / "demo") as run:
        assert not run.resumed
    assert files(tmp_path) == {"demo/rounds.jsonl": b""}


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_something_else_is_never_written_into(tmp_path: Path, resume: bool) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(RunError, match=r"not a run: thesis\.tex") as error:
        RunDirectory.create(tmp_path, resume=resume)
    assert code(error) == "FT701"
    assert files(tmp_path) == {"thesis.tex": b"mine"}


def test_a_second_writer_is_refused_by_the_pid_of_the_first(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path\n"
            "from fedtune.observability.run_directory import RunDirectory\n"
            "run = RunDirectory.create(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()",
            str(tmp_path / "demo"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        for resume in (False, True):
            with pytest.raises(RunError, match=f"pid {holder.pid}") as error:
                RunDirectory.create(tmp_path / "demo", resume=resume)
            assert code(error) == "FT702"
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    RunDirectory.create(tmp_path / "demo", resume=True).close()  # the lock died with its process


def test_the_lock_is_free_after_close_and_after_a_refusal(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "demo") as run:
        run.events.append(EVENT)
    with pytest.raises(RunError, match="already a run"):
        RunDirectory.create(tmp_path / "demo")
    run = RunDirectory.create(tmp_path / "demo", resume=True)
    run.close()
    run.close()


def test_checkpoints_are_listed_only_when_complete_and_replaced_whole(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "demo") as run:
        assert run.checkpoints() == ()
        run.write_checkpoint(1, {"adapter": b"one", "state": b"1"})
        run.write_checkpoint(12, {"adapter": b"twelve"})
        run.write_checkpoint(1, {"adapter": b"again"})
        assert run.checkpoints() == checkpoint_rounds(run.path) == (1, 12)
        assert files(run.path / "checkpoints") == {"0001/adapter": b"again", "0012/adapter": b"twelve"}
        assert run.checkpoint_path(12) == run.path / "checkpoints" / "0012"


def test_what_a_killed_process_left_half_written_is_swept_on_resume(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "demo") as run:
        run.write_checkpoint(1, {"adapter": b"one"})
    half = tmp_path / "demo" / "checkpoints" / ".0002.new.tmp"
    half.mkdir()
    (half / "adapter").write_bytes(b"tw")
    (tmp_path / "demo" / ".config.yaml.9.tmp").write_bytes(b"na")
    with RunDirectory.create(tmp_path / "demo", resume=True) as run:
        assert run.checkpoints() == (1,)
    assert files(tmp_path / "demo") == {"checkpoints/0001/adapter": b"one", "rounds.jsonl": b""}


def test_a_file_is_replaced_atomically_and_leaves_nothing_temporary(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    disk.write_atomic(path, b"old")
    before = os.open(path, os.O_RDONLY)
    disk.write_atomic(path, b"new")
    assert os.pread(before, 10, 0) == b"old"  # whoever had it open keeps a whole old file
    os.close(before)
    assert files(tmp_path) == {"config.yaml": b"new"}


def test_a_full_disk_keeps_the_old_file_every_event_and_every_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunDirectory.create(tmp_path / "demo") as run:
        run.write_config("name: demo\n")
        run.events.append(EVENT)
        run.write_checkpoint(1, {"adapter": b"one"})
        before = files(run.path)
        write = os.write
        half_written = 0

        def full(file: int, data: memoryview) -> int:
            nonlocal half_written
            if half_written:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            half_written = write(file, data[: len(data) // 2])  # a disk fills in the middle of a file
            return half_written

        monkeypatch.setattr(os, "write", full)
        attempts = {
            "config": lambda: run.write_config("name: demo, with more to say\n"),
            "checkpoint": lambda: run.write_checkpoint(2, {"adapter": b"two"}),
            "replaced checkpoint": lambda: run.write_checkpoint(1, {"adapter": b"again"}),
            "event": lambda: run.events.append(EVENT),
        }
        for attempt in attempts.values():
            half_written = 0
            with pytest.raises(RunError, match="no space left") as error:
                attempt()
            assert half_written > 0
            assert code(error) == "FT705"
            assert "kept: " in str(error.value)
            assert "resume=true" in str(error.value)
            assert files(run.path) == before
        monkeypatch.undo()
        run.events.append(EVENT)  # with space again, the same process goes on
        assert run.events.read() == [EVENT, EVENT]


def test_the_error_of_a_full_disk_says_which_checkpoint_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunDirectory.create(tmp_path / "demo") as run:
        run.write_checkpoint(3, {"adapter": b"three"})

        def full(file: int, data: memoryview) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "write", full)
        with pytest.raises(RunError, match="kept: all events so far, the checkpoint after round 3"):
            run.write_file("report.html", b"x")


def test_a_file_size_limit_is_met_like_a_full_disk(tmp_path: Path) -> None:
    """The kernel itself refuses here, in the middle of a write, with no part of the code replaced."""
    code_ = (
        "import sys; from pathlib import Path\n"
        "from fedtune.errors import RunError\n"
        "from fedtune.observability.run_directory import RunDirectory\n"
        "run = RunDirectory.create(Path(sys.argv[1]))\n"
        "run.write_checkpoint(1, {'adapter': b'x' * 4096})\n"
        "try: run.write_checkpoint(2, {'adapter': b'x' * 100_000})\n"
        "except RunError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code_, str(tmp_path / "demo")],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "FT705" in done.stdout
    assert "the checkpoint after round 1" in done.stdout
    assert files(tmp_path / "demo" / "checkpoints") == {"0001/adapter": b"x" * 4096}


def append_until_it_fails(run: RunDirectory) -> None:
    while True:
        run.events.append(EVENT)


def test_a_small_file_system_that_runs_full_leaves_a_run_that_goes_on(tmp_path: Path) -> None:
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mount.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {mount.stderr.strip()}")
    try:
        with RunDirectory.create(tmp_path / "demo") as run:
            run.write_checkpoint(1, {"adapter": b"x" * 30_000})
            with pytest.raises(RunError, match=r"No space left on device.*the checkpoint after round 1"):
                run.write_checkpoint(2, {"adapter": b"x" * 200_000})
            with pytest.raises(RunError, match="FT705"):
                append_until_it_fails(run)
            assert set(run.events.read()) == {EVENT}
            with pytest.raises(RunError, match="FT705"):
                run.write_checkpoint(1, {"adapter": b"y"})
            assert run.checkpoints() == (1,)
        (tmp_path / "demo" / "checkpoints" / "0001" / "adapter").write_bytes(b"")  # space again
        with RunDirectory.create(tmp_path / "demo", resume=True) as run:
            run.events.append(EVENT)
            assert run.checkpoints() == (1,)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere, so nothing is refused")
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RunError, match="FT707"):
        RunDirectory.create(tmp_path / "demo")


def test_a_runs_dir_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("not a folder")
    with pytest.raises(RunError, match="FT707") as error:
        RunDirectory.create(tmp_path / "runs" / "demo")
    assert str(tmp_path / "runs") in str(error.value)


def test_reading_needs_a_run_and_takes_no_lock(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="FT706"):
        events_path(tmp_path)
    with RunDirectory.create(tmp_path / "demo") as run:
        run.events.append(EVENT)
        assert events_path(run.path) == run.path / "rounds.jsonl"
        assert run.events.read() == [EVENT]


def test_a_failed_append_is_taken_back_even_when_the_write_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(file: int) -> None:
        raise KeyboardInterrupt

    with EventLog(tmp_path / "rounds.jsonl") as log:
        log.append(EVENT)
        monkeypatch.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            log.append(EVENT)
        monkeypatch.undo()
        assert log.read() == [EVENT]
