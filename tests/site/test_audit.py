"""An audit log outlives crashes, is shared by processes, and shows every change that was not an append."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import resource
import socket
import threading
from datetime import UTC, datetime, timedelta, timezone
from logging.handlers import SysLogHandler
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtune.errors import MachineError
from fedtune.secagg.identity import Identity
from fedtune.site.audit import AuditLog, Verification, heads_to_syslog, verify_audit
from fedtune.site.audit_events import (
    Event,
    HasLeft,
    OperatorActed,
    SentTensor,
    SiteStarted,
    SiteStopped,
    WasAsked,
    WasRefused,
)

KEY = Identity.generate()
BUNDLE = "b5" * 32
EVENTS: tuple[Event, ...] = (
    SiteStarted(version="0.1.0", policy="a1" * 32),
    WasAsked(run="heart", round=None, message="query.hello", bundle=BUNDLE),
    OperatorActed(action="approve", subject="heart", operator="Dr. A", reason="ethics vote 12"),
    WasAsked(run="heart", round=1, message="train", bundle=BUNDLE),
    HasLeft(
        run="heart",
        round=1,
        message="train",
        bytes=24,
        tensors=(SentTensor.of("layer.lora_A", np.ones((2, 3), np.float32)),),
        metrics=("held_out_loss",),
    ),
    WasRefused(run="heart", round=2, message="train", bundle=BUNDLE, code="FT640", reasons=("hours",)),
    SiteStopped(reason="asked to"),
)


def written(path: Path, events: tuple[Event, ...] = EVENTS, key: Identity = KEY) -> list[bytes]:
    """Write a log; returns its heads, that of the empty log first."""
    log = AuditLog(path, key)
    return [bytes(32), *(log.append(event) for event in events)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[bytes]]:
    path = tmp_path_factory.mktemp("audit") / "whole.jsonl"
    heads = written(path)
    return path.read_bytes(), heads


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("audit") / "changed.jsonl"


def checked(path: Path, content: bytes, *, expected_head: bytes | None = None) -> Verification:
    path.write_bytes(content)
    return verify_audit(path, KEY.public, expected_head=expected_head)


def code_of(finding: Verification) -> str | None:
    return finding.problem and finding.problem.code


def test_a_log_says_what_was_asked_what_left_and_what_was_refused(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    heads = written(path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["event"] for line in lines] == [
        "started",
        "asked",
        "operator",
        "asked",
        "left",
        "refused",
        "stopped",
    ]
    assert [line["sequence"] for line in lines] == [1, 2, 3, 4, 5, 6, 7]
    assert lines[4]["details"] == {
        "run": "heart",
        "round": 1,
        "message": "train",
        "bytes": 24,
        "tensors": [
            {
                "name": "layer.lora_A",
                "shape": [2, 3],
                "dtype": "float32",
                "bytes": 24,
                "norm": pytest.approx(6**0.5),
                "sha256": hashlib.sha256(np.ones(6, np.float32).tobytes()).hexdigest(),
            }
        ],
        "sealed": None,
        "metrics": ["held_out_loss"],
    }
    assert path.stat().st_mode & 0o777 == 0o600
    finding = verify_audit(path, KEY.public, expected_head=heads[-1])
    assert finding.intact
    assert (finding.lines, finding.head, finding.expected_line) == (7, heads[-1], 7)
    assert finding.time == lines[-1]["time"]


def test_a_third_party_can_check_a_log_by_its_description(whole: tuple[bytes, list[bytes]]) -> None:
    def tagged(*parts: bytes | str) -> bytes:
        raw = [(b"s", part.encode()) if isinstance(part, str) else (b"b", part) for part in parts]
        return b"".join(tag + len(value).to_bytes(8, "big") + value for tag, value in raw)

    content, heads = whole
    key, head = Ed25519PublicKey.from_public_bytes(KEY.public), bytes(32)
    for number, line in enumerate(content.splitlines(), start=1):
        body, _, signature = line.rpartition(b',"signature":"')
        assert json.loads(line)["previous"] == head.hex()
        signed = tagged("fedtune-secagg/1", "signature", "audit line", KEY.public)
        key.verify(bytes.fromhex(signature[:128].decode()), signed + tagged(hashlib.sha256(body).digest()))
        head = hashlib.sha256(tagged("fedtune-secagg/1", "audit line", head, line)).digest()
        assert head == heads[number]


@settings(deadline=None)
@given(data=st.data())
def test_any_change_of_one_byte_is_found(whole, scratch: Path, data) -> None:
    content, _ = whole
    at = data.draw(st.integers(0, len(content) - 1))
    other = data.draw(st.integers(0, 255).filter(lambda byte: byte != content[at]))
    finding = checked(scratch, content[:at] + bytes([other]) + content[at + 1 :])
    line = content[:at].count(b"\n") + 1
    assert not finding.intact
    assert finding.bad_line == line, "the first bad line is the one that was edited"
    assert finding.problem is not None
    assert f"line {line}" in finding.problem.where


@settings(deadline=None)
@given(data=st.data())
def test_any_bytes_taken_out_are_found(whole, scratch: Path, data) -> None:
    content, heads = whole
    start = data.draw(st.integers(0, len(content) - 1))
    end = data.draw(st.integers(start + 1, len(content)) | st.just(len(content)))
    rest = content[:start] + content[end:]
    assert not checked(scratch, rest, expected_head=heads[-1]).intact
    lines = content.splitlines(keepends=True)
    whole_lines_off_the_end = rest in [b"".join(lines[:kept]) for kept in range(len(lines))]
    assert checked(scratch, rest).intact == whole_lines_off_the_end


@settings(deadline=None)
@given(data=st.data())
def test_any_bytes_put_in_are_found(whole, scratch: Path, data) -> None:
    content, _ = whole
    lines = content.splitlines(keepends=True)
    at = data.draw(st.integers(0, len(content)))
    put = data.draw(st.binary(min_size=1, max_size=40) | st.sampled_from(lines))
    changed = content[:at] + put + content[at:]
    assert not checked(scratch, changed).intact


@settings(deadline=None)
@given(order=st.permutations(range(len(EVENTS))).filter(lambda order: order != sorted(order)))
def test_any_order_but_the_right_one_is_found(whole, scratch: Path, order) -> None:
    lines = whole[0].splitlines(keepends=True)
    finding = checked(scratch, b"".join(lines[number] for number in order))
    first = next(place for place, number in enumerate(order) if number != place)
    assert (finding.bad_line, code_of(finding)) == (first + 1, "FT831")


@pytest.mark.parametrize("number", range(len(EVENTS)))
def test_a_line_taken_out_is_found_where_it_was(whole, scratch: Path, number: int) -> None:
    content, heads = whole
    lines = content.splitlines(keepends=True)
    del lines[number]
    finding = checked(scratch, b"".join(lines), expected_head=heads[-1])
    assert finding.bad_line == number + 1
    assert code_of(finding) == ("FT831" if number < len(lines) else "FT832")


@pytest.mark.parametrize("kept", range(len(EVENTS)))
def test_a_cut_shows_by_any_later_head_and_by_no_earlier_one(whole, scratch: Path, kept: int) -> None:
    content, heads = whole
    rest = b"".join(content.splitlines(keepends=True)[:kept])
    for number, head in enumerate(heads):
        finding = checked(scratch, rest, expected_head=head)
        if number <= kept:
            assert finding.intact
            assert finding.expected_line == number
        else:
            assert (code_of(finding), finding.bad_line) == ("FT832", kept + 1)


def test_a_log_written_anew_with_its_own_key_shows_by_an_earlier_head(tmp_path: Path) -> None:
    heads = written(tmp_path / "first")
    written(tmp_path / "second", EVENTS[1:])
    assert verify_audit(tmp_path / "second", KEY.public).intact
    finding = verify_audit(tmp_path / "second", KEY.public, expected_head=heads[3])
    assert code_of(finding) == "FT832"


def test_lines_of_another_log_do_not_follow_even_under_the_same_key(tmp_path: Path) -> None:
    written(tmp_path / "first")
    written(tmp_path / "second", EVENTS[1:])
    ours, theirs = ((tmp_path / name).read_bytes().splitlines(keepends=True) for name in ("first", "second"))
    finding = checked(tmp_path / "mixed", b"".join([*ours[:3], theirs[3], *ours[4:]]))
    assert finding.bad_line == 4
    assert finding.problem is not None
    assert finding.problem.what == "line 4 does not follow from the lines before it"


def test_another_key_is_named_at_the_first_line(tmp_path: Path) -> None:
    written(tmp_path / "audit")
    finding = verify_audit(tmp_path / "audit", Identity.generate().public)
    assert (finding.bad_line, finding.lines) == (1, 0)
    assert finding.problem is not None
    assert finding.problem.what == "line 1 was not signed by this key as it stands"


def test_a_signature_made_for_something_else_does_not_make_a_line(whole, scratch: Path) -> None:
    first = whole[0].splitlines()[0]
    body = first.rpartition(b',"signature":"')[0]
    forged = body + b',"signature":"' + KEY.sign("roster entry", body).hex().encode() + b'"}\n'
    assert code_of(checked(scratch, forged)) == "FT831"


def test_a_file_that_is_not_there_is_a_finding_and_an_empty_one_is_intact(tmp_path: Path) -> None:
    assert code_of(verify_audit(tmp_path / "none", KEY.public)) == "FT830"
    assert checked(tmp_path / "empty", b"").intact
    assert code_of(checked(tmp_path / "empty", b"", expected_head=b"\x01" * 32)) == "FT832"


def test_the_head_is_the_same_for_every_reader(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    assert AuditLog(path, KEY).head() == bytes(32)
    heads = written(path)
    assert AuditLog(path, KEY).head() == heads[-1]


@pytest.mark.parametrize("lost", [2, 40, 200])
def test_a_line_cut_off_by_a_crash_is_dropped_and_the_log_says_so(tmp_path: Path, lost: int) -> None:
    path = tmp_path / "audit"
    heads = written(path)
    torn = path.read_bytes()[:-lost]
    tail = torn.rpartition(b"\n")[2]
    assert code_of(checked(path, torn)) == "FT833"
    log = AuditLog(path, KEY)
    assert log.head() == heads[-2]
    head = log.append(EVENTS[-1])
    assert verify_audit(path, KEY.public, expected_head=head).lines == len(EVENTS) + 1
    dropped = json.loads(path.read_bytes().splitlines()[-2])
    assert dropped["event"] == "tail_dropped"
    assert dropped["details"] == {"bytes": len(tail), "sha256": hashlib.sha256(tail).hexdigest()}


def test_a_last_line_that_lacks_its_newline_alone_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    heads = written(path)
    path.write_bytes(path.read_bytes()[:-1])
    AuditLog(path, KEY).append(EVENTS[0])
    finding = verify_audit(path, KEY.public, expected_head=heads[-1])
    assert (finding.intact, finding.expected_line, finding.lines) == (True, len(EVENTS), len(EVENTS) + 1)


def test_a_damaged_log_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    written(path)
    damaged = path.read_bytes().replace(b"ethics vote 12", b"ethics vote 13")
    path.write_bytes(damaged)
    with pytest.raises(MachineError, match="FT831: line 4 does not follow"):
        AuditLog(path, KEY).append(EVENTS[0])
    assert path.read_bytes() == damaged


@pytest.mark.parametrize("content", [b"", b"{}\n", None], ids=["emptied", "overwritten", "cut by a line"])
def test_a_log_that_is_cut_while_a_site_runs_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "audit"
    log = AuditLog(path, KEY)
    for event in EVENTS:
        log.append(event)
    if content is None:
        content = b"".join(path.read_bytes().splitlines(keepends=True)[:-1])
    path.write_bytes(content)
    for call in (log.head, lambda: log.append(EVENTS[0])):
        with pytest.raises(MachineError, match="FT832"):
            call()
    assert path.read_bytes() == content


def test_another_key_does_not_go_on_with_a_log(tmp_path: Path) -> None:
    written(tmp_path / "audit")
    with pytest.raises(MachineError, match="FT831: line 7 was not signed by this key"):
        AuditLog(tmp_path / "audit", Identity.generate()).append(EVENTS[0])


def test_a_log_that_cannot_be_opened_says_so(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="FT830: the audit log cannot be read or written: No such file"):
        AuditLog(tmp_path / "missing" / "audit", KEY).append(EVENTS[0])


def test_a_line_is_on_the_disk_before_anyone_is_told(tmp_path: Path, monkeypatch) -> None:
    order: list[str] = []
    real = os.fsync

    def fsync(file: int) -> None:
        real(file)
        order.append(f"fsync at {os.fstat(file).st_size}")

    log = AuditLog(tmp_path / "audit", KEY, on_head=lambda number, _: order.append(f"told {number}"))
    monkeypatch.setattr(os, "fsync", fsync)
    log.append(EVENTS[0])
    assert order[-2:] == [f"fsync at {(tmp_path / 'audit').stat().st_size}", "told 1"]


def test_a_head_that_cannot_be_passed_on_does_not_undo_the_line(tmp_path: Path, caplog) -> None:
    def fail(sequence: int, head: bytes) -> None:
        raise ConnectionError("no syslog")

    log = AuditLog(tmp_path / "audit", KEY, on_head=fail)
    assert verify_audit(tmp_path / "audit", KEY.public, expected_head=log.append(EVENTS[0])).intact
    assert "The head of line 1 could not be passed on" in caplog.text


def test_heads_arrive_at_a_syslog(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as syslog:
        syslog.bind(("127.0.0.1", 0))
        syslog.settimeout(10)
        handler = SysLogHandler(address=syslog.getsockname())
        try:
            log = AuditLog(tmp_path / "audit", KEY, on_head=heads_to_syslog(handler, name="heart"))
            heads = [log.append(event) for event in EVENTS[:2]]
            arrived = [syslog.recv(4096).decode() for _ in heads]
        finally:
            handler.close()
    for number, (text, head) in enumerate(zip(arrived, heads, strict=True), start=1):
        assert f"fedtune audit log heart: line {number}, head {head.hex()}" in text


def _append_many(path: Path, who: int) -> None:
    log = AuditLog(path, KEY)
    for number in range(10):
        log.append(WasAsked(run=f"process {who}", round=number, message="train", bundle=BUNDLE))


def test_processes_share_a_log(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_append_many, args=(tmp_path / "audit", who)) for who in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert verify_audit(tmp_path / "audit", KEY.public).lines == 30
    lines = [json.loads(line)["details"] for line in (tmp_path / "audit").read_text().splitlines()]
    for who in range(3):
        assert [line["round"] for line in lines if line["run"] == f"process {who}"] == list(range(10))


def test_threads_share_one_object(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit", KEY)
    threads = [threading.Thread(target=log.append, args=(event,)) for event in EVENTS * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    finding = verify_audit(tmp_path / "audit", KEY.public, expected_head=log.head())
    assert finding.lines == len(threads)


def _append_on_a_full_disk(path: Path, results) -> None:
    log = AuditLog(path, KEY)
    log.append(EVENTS[0])
    size = path.stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, resource.RLIM_INFINITY))
    try:
        log.append(EVENTS[1])
    except MachineError as error:
        results.put(str(error))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    log.append(EVENTS[2])


def test_a_full_disk_leaves_the_log_as_it_was(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    worker = context.Process(target=_append_on_a_full_disk, args=(tmp_path / "audit", results))
    worker.start()
    worker.join()
    assert results.get().startswith("FT830: the audit log cannot be read or written: File too large")
    lines = [json.loads(line)["event"] for line in (tmp_path / "audit").read_text().splitlines()]
    assert lines == ["started", "operator"]
    assert verify_audit(tmp_path / "audit", KEY.public).intact


def test_times_are_utc_whatever_zone_the_clock_has(tmp_path: Path) -> None:
    here = datetime(2026, 11, 22, 1, 30, tzinfo=timezone(timedelta(hours=2)))
    AuditLog(tmp_path / "audit", KEY, clock=lambda: here).append(EVENTS[0])
    assert verify_audit(tmp_path / "audit", KEY.public).time == "2026-11-21T23:30:00.000000Z"
    with pytest.raises(ValueError, match="needs its zone"):
        AuditLog(tmp_path / "audit", KEY, clock=lambda: datetime.now(UTC).replace(tzinfo=None)).append(
            EVENTS[0]
        )


def test_a_tensor_is_described_and_its_values_are_nowhere(tmp_path: Path) -> None:
    canary = np.array([[1234.5678, -8765.4321]], np.float64)
    for tensor in (canary, canary.T, canary.astype(np.float32)):
        described = SentTensor.of("t", tensor)
        assert described.sha256 == hashlib.sha256(tensor.tobytes(order="C")).hexdigest()
        assert described.norm == pytest.approx(np.sqrt((canary**2).sum()), rel=1e-6)
    written(tmp_path / "audit", (HasLeft(run="r", round=1, message="train", bytes=16, tensors=(described,)),))
    assert "1234.5" not in (tmp_path / "audit").read_text()
    assert SentTensor.of("t", np.array([1.0, np.nan])).norm is None
    assert SentTensor.of("t", np.float32(3.0) * np.ones((), np.float32)).shape == ()


def test_a_text_from_outside_cannot_fill_the_log_or_end_a_line(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    written(path, (WasAsked(run="x" * 10**6, round=1, message='a\n","signature":"\ud800', bundle=BUNDLE),))
    assert path.stat().st_size < 2_000
    assert json.loads(path.read_text())["details"]["run"] == "x" * 511 + "…"
    assert verify_audit(path, KEY.public).lines == 1
