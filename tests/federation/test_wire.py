"""The parser of what the other side says: exact round trips, and nothing but UpdateError on anything else."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import strategies as st

from fedtune.errors import UpdateError
from fedtune.federation import wire
from fedtune.federation.wire import (
    Failure,
    PreflightReply,
    PreflightRequest,
    SiteCheck,
    TrainReply,
    TrainRequest,
    content,
    frame_of,
    parse,
    parse_reply,
    with_frame,
)

REQUEST = TrainRequest(round=3, factors=("A", "B"), first_step=16, total_steps=32)
REPLY = TrainReply(
    site="heart",
    round=3,
    examples=32,
    tokens=900,
    response_tokens=300,
    steps=8,
    loss_before=3.0,
    loss_after=2.5,
    started=1.0,
    finished=2.0,
    peak_memory_mib=800.0,
)
PREFLIGHT = PreflightReply(
    protocol=1,
    site="heart",
    version="0.1.0",
    flwr="1.41.0",
    python="3.11.2",
    torch="2.13.0+cpu",
    train_refused=("k_min", "peft.rank"),
    evaluate_refused=(),
    approval="waits",
    checks=(SiteCheck(name="data", status="failed", code="FT855"),),
    checks_age_seconds=3.5,
    days_left=-2,
)
ASKED = PreflightRequest(config="{}", to_be_approved=True)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(autouse=True)
def _somebody() -> None:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def message(records: RecordDict) -> Message:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    return Message(records, 2, "train")


def with_json(text: str) -> Message:
    return message(RecordDict({"fedtune": ConfigRecord({"json": text})}))


@pytest.mark.parametrize(
    "body", [REQUEST, REPLY, Failure(site="a", code="FT401", reason="NaN"), PREFLIGHT, ASKED]
)
def test_what_was_sent_is_what_is_read(body: object) -> None:
    assert parse(message(content(body)), type(body)) == body


def test_a_failure_is_told_from_a_reply() -> None:
    failure = Failure(site="a", code="FT401", reason="The loss is not a number.")
    assert parse_reply(message(content(failure)), TrainReply) == failure
    assert parse_reply(message(content(REPLY)), TrainReply) == REPLY


@given(
    text=st.text(max_size=200) | JSON.map(json.dumps),
    kind=st.sampled_from([TrainRequest, TrainReply, Failure, PreflightRequest, PreflightReply]),
)
def test_any_text_gives_an_update_error_or_a_valid_body(text: str, kind: type) -> None:
    with suppress(UpdateError):
        assert isinstance(parse(with_json(text), kind), kind)


@given(field=st.sampled_from(sorted(json.loads(content(REPLY)["fedtune"]["json"]))), value=JSON)
def test_a_field_of_a_wrong_type_or_range_is_refused(field: str, value: object) -> None:
    fields = json.loads(content(REPLY)["fedtune"]["json"]) | {field: value}
    try:
        reply = parse(with_json(json.dumps(fields)), TrainReply)
    except UpdateError:
        return
    again = json.loads(content(reply)["fedtune"]["json"])
    assert again[field] == value
    assert type(value) is not bool


@given(field=st.sampled_from(sorted(json.loads(content(PREFLIGHT)["fedtune"]["json"]))), value=JSON)
def test_a_preflights_answer_holds_nothing_but_what_its_fields_are_for(field: str, value: object) -> None:
    fields = json.loads(content(PREFLIGHT)["fedtune"]["json"]) | {field: value}
    try:
        reply = parse(with_json(json.dumps(fields)), PreflightReply)
    except UpdateError:
        return
    assert json.loads(content(reply)["fedtune"]["json"])[field] == value


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("train_refused", ["Mrs Marrowbone"]),
        ("evaluate_refused", ["k_min"] * 41),
        ("version", "0.1.0 of /home/heart"),
        ("checks", [{"name": "data /srv/rows.jsonl", "status": "ok", "code": None}]),
        ("checks", [{"name": "data", "status": "row 7", "code": None}]),
        ("checks", [{"name": "data", "status": "failed", "code": "FT855: row 7"}]),
        ("checks", [{"name": "data", "status": "ok", "code": None, "finding": "7 rows"}]),
        ("checks", [{"name": "data", "status": "ok", "code": None}] * 101),
        ("approval", "perhaps"),
        ("days_left", 1.5),
        ("checks_age_seconds", -1.0),
    ],
)
def test_a_preflights_answer_has_no_room_for_words(field: str, value: object) -> None:
    fields = json.loads(content(PREFLIGHT)["fedtune"]["json"]) | {field: value}
    with pytest.raises(UpdateError):
        parse(with_json(json.dumps(fields)), PreflightReply)


def test_all_problems_of_a_body_are_reported_at_once() -> None:
    text = json.dumps({"kind": "train", "round": 0, "factors": ["C"], "first_step": -1, "boot": "x"})
    with pytest.raises(UpdateError) as caught:
        parse(with_json(text), TrainRequest)
    assert len(caught.value.problems) >= 5


def test_a_number_that_is_not_finite_is_refused() -> None:
    text = content(REPLY)["fedtune"]["json"].replace("3.0", "NaN")
    with pytest.raises(UpdateError):
        parse(with_json(text), TrainReply)


@pytest.mark.parametrize(
    "records",
    [
        RecordDict(),
        RecordDict({"fedtune": ConfigRecord({"json": 3})}),
        RecordDict({"fedtune": ConfigRecord({"other": "x"})}),
        RecordDict({"fedtune": ConfigRecord({"json": " " * (wire.MAX_JSON_CHARACTERS + 1)})}),
    ],
)
def test_a_message_without_a_readable_record_is_refused(records: RecordDict) -> None:
    with pytest.raises(UpdateError):
        parse(message(records), TrainRequest)


def test_missing_arrays_are_refused() -> None:
    with pytest.raises(UpdateError):
        wire.arrays_of(message(content(REQUEST)))


@given(frame=st.binary(max_size=200))
def test_bytes_of_the_secure_protocol_come_back_as_they_were(frame: bytes) -> None:
    assert frame_of(message(with_frame(RecordDict(), frame))) == frame


@pytest.mark.parametrize(
    "records",
    [
        RecordDict(),
        RecordDict({"secagg": ConfigRecord({"secagg": b"x"})}),
        RecordDict({"secagg": ArrayRecord()}),
    ],
)
def test_a_message_without_bytes_of_the_secure_protocol_is_refused(records: RecordDict) -> None:
    with pytest.raises(UpdateError, match="FT520"):
        frame_of(message(records))


def test_more_bytes_than_can_be_meant_are_refused() -> None:
    with pytest.raises(UpdateError, match="101 bytes of secure aggregation came, at most 100"):
        frame_of(message(with_frame(RecordDict(), bytes(101))), at_most=100)
