"""The preview shows what is sent: the types' own fields, the handlers' own silence, the frames' own size."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from support.secure_sum import federation
from support.site_folder import JoinedSite, federation_config, policy_values, write_policy, write_rows

from fedtune.config.schema import Config, Metric
from fedtune.federation import wire
from fedtune.federation.dialogue import MESSAGE_TYPES
from fedtune.secagg.messages import Kind, Signed
from fedtune.secagg.roster import Roster
from fedtune.site.envelope import METRIC_OF_FIELD
from fedtune.site.policy_file import load_policy
from fedtune.site.policy_schema import SitePolicy
from fedtune.site.preview.described import described_fields, grouped, in_words
from fedtune.site.preview.frames import frames
from fedtune.site.preview.meanings import MEANINGS, UNKNOWN
from fedtune.site.preview.outgoing import Preview, as_json, preview
from fedtune.site.preview.trial import Trial, try_one_step, with_trial
from fedtune.training.delta import Delta
from fedtune.updates.codec import to_arrays, wire_bytes
from fedtune.updates.encode import encode
from fedtune.updates.protect import protect

METRICS: tuple[Metric, ...] = get_args(Metric)
CANARY = "Xylophone"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> JoinedSite:
    return JoinedSite(root=tmp_path_factory.mktemp("site"), address="localhost:9")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", word=CANARY)


@pytest.fixture(scope="module")
def policy(site: JoinedSite, rows: Path) -> SitePolicy:
    write_policy(
        site.folder, policy_values(site, files=[str(rows)], base_models=[]) | {"metrics": list(METRICS)}
    )
    return load_policy(site.folder / "site.yaml").policy


@pytest.fixture(scope="module")
def roster(site: JoinedSite) -> Roster:
    return site.pin(*site.sites)


def local(config: Config, policy: SitePolicy) -> Config:
    """The configuration as it holds at this site."""
    data = dataclasses.replace(config.data, source="files", files=policy.data.files)
    return dataclasses.replace(config, data=data)


def shown(config: Config, policy: SitePolicy | None, roster: Roster | None = None) -> Preview:
    return preview(config, site="ear", policy=policy, roster=roster)


@pytest.fixture(scope="module")
def plain(tiny_model_dir: Path) -> Config:
    return federation_config(tiny_model_dir)


@pytest.fixture(scope="module")
def secure(tiny_model_dir: Path) -> Config:
    return federation_config(tiny_model_dir, "secagg=on")


# The types decide what is shown


@pytest.mark.parametrize("kind", MEANINGS, ids=lambda kind: kind.__name__)
def test_every_field_of_every_type_has_a_meaning_and_no_meaning_is_left_over(kind: type) -> None:
    assert set(MEANINGS[kind]) == {field.name for field in dataclasses.fields(kind)}
    for meaning in MEANINGS[kind].values():
        assert meaning.metric in (None, *METRICS)
        assert len(meaning.text) > 8


def test_every_reply_and_every_frame_that_exists_is_shown(secure: Config, roster: Roster) -> None:
    replies = {kind.__name__ for kind in get_args(wire.Body) if not kind.__name__.endswith("Request")}
    frames_of_sites = {kind.name for kind in Kind if kind % 2 == 0}
    messages = shown(secure, None, roster).messages
    assert {message.name for message in messages} == replies | frames_of_sites
    assert {message.stage for message in messages} == {*MESSAGE_TYPES, "any"}


def test_a_field_that_nobody_described_is_shown_all_the_same(plain: Config) -> None:
    @dataclasses.dataclass
    class NewReply:
        site: str
        diagnosis: str | None

    found = described_fields(NewReply, plain, None)
    assert [(field.name, field.type, field.leaves) for field in found] == [
        ("site", "text", "leaves"),
        ("diagnosis", "text", "leaves"),
    ]
    assert {field.meaning for field in found} == {UNKNOWN.text}


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int | None, "whole number"),
        (bool, "yes or no"),
        (tuple[int, ...], "list"),
        (int | str, "whole number or text"),
    ],
)
def test_types_are_said_in_words(hint: Any, words: str) -> None:
    assert in_words(hint) == words


def test_every_frame_shows_all_that_is_packed_in_it(secure: Config, roster: Roster) -> None:
    by_name = {message.name: message for message in shown(secure, None, roster).messages}
    fields = {field.name for field in by_name["ADVERT"].fields}
    assert {"sender", "signature", "mask_key", "audit_head", "binding.run", "binding.roster_hash"} <= fields
    assert "records.sealed" in {field.name for field in by_name["SHARES"].fields}
    assert {"b_shares.share", "key_shares.salt"} <= {field.name for field in by_name["UNMASKED"].fields}


# What a site really says


@pytest.fixture(scope="module", params=[(), *((metric,) for metric in METRICS), METRICS], ids=str)
def tried(request: pytest.FixtureRequest, tiny_model_dir: Path, policy: SitePolicy) -> tuple[Config, Trial]:
    metrics = f"federation.metrics=[{','.join(request.param)}]"
    config = federation_config(tiny_model_dir, metrics, "aggregation.weighting=uniform")
    return config, try_one_step(local(config, policy), site="ear")


def test_a_field_is_null_in_the_preview_exactly_where_the_site_says_nothing(
    tried: tuple[Config, Trial], policy: SitePolicy
) -> None:
    config, trial = tried
    predicted = {message.name: message for message in shown(config, policy).messages}
    assert len(trial.replies) == 3
    for reply in trial.replies:
        for field in predicted[type(reply).__name__].fields:
            assert (field.leaves == "null") == (getattr(reply, field.name) is None), field


def test_what_the_policy_does_not_let_out_refuses_the_request(plain: Config, policy: SitePolicy) -> None:
    strict = dataclasses.replace(policy, metrics=("held_out_loss",))
    predicted = {message.name: message for message in shown(plain, strict).messages}
    refused = {field.name for field in predicted["TrainReply"].fields if field.leaves == "refused"}
    assert refused == {
        "examples",
        "tokens",
        "response_tokens",
        "loss_before",
        "loss_after",
        "peak_memory_mib",
    }


def test_a_trial_fills_in_values_and_norms_and_sends_no_word_of_the_rows(
    plain: Config, policy: SitePolicy, site: JoinedSite
) -> None:
    before = sorted(site.folder.iterdir())
    trial = try_one_step(local(plain, policy), site="ear")
    filled = with_trial(shown(plain, policy), trial)
    values = {field.name: field.value for field in filled.messages[2].fields}
    assert values["examples"] == 4
    assert values["steps"] == 1
    assert 0 < values["loss_after"] < values["loss_before"] < 10
    norms = [norm for group in filled.messages[2].tensors for norm in group.norms]
    assert len(norms) == len(trial.norms) == sum(len(group.names) for group in filled.messages[2].tensors)
    assert max(norms) > 0
    text = json.dumps(as_json(filled))
    assert CANARY not in text
    assert "grade" not in text
    assert sorted(site.folder.iterdir()) == before


def test_the_preview_and_the_audit_log_say_the_same_of_each_number() -> None:
    metrics = {
        name: meaning.metric
        for fields in MEANINGS.values()
        for name, meaning in fields.items()
        if meaning.metric
    }
    assert metrics == METRIC_OF_FIELD


# How many bytes


def test_the_bytes_of_a_plain_update_are_those_of_the_real_one(plain: Config, policy: SitePolicy) -> None:
    message = shown(plain, policy).messages[2]
    names = [name for group in message.tensors for name in group.names]
    shapes = {name: group.shape for group in message.tensors for name in group.names}
    delta = {name: np.ones(shapes[name], dtype=np.float32) for name in sorted(names)}
    assert sum(group.bytes for group in message.tensors) == wire_bytes(to_arrays(delta))
    assert 0 < message.bytes - wire_bytes(to_arrays(delta)) < 400


@pytest.mark.parametrize(
    "overrides",
    [
        ["aggregation=core"],
        ["aggregation=sketch", "aggregation.sketch_width=8"],
        ["aggregation=ffa", "aggregation.site_ranks={ear: 2}"],
        ["aggregation=svd", "aggregation.site_ranks={ear: 2}"],
        ["aggregation=svd", "updates=int8", "updates.error_feedback=false"],
        ["aggregation=alternating", "updates=int4"],
        ["aggregation=ffa", "aggregation.site_ranks={ear: 2}", "updates=int4"],
        ["training=scaffold", "aggregation=ffa", "aggregation.weighting=uniform"],
    ],
    ids=" ".join,
)
def test_the_update_that_is_shown_is_the_one_that_is_sent(
    tiny_model_dir: Path, policy: SitePolicy, overrides: list[str]
) -> None:
    config = federation_config(tiny_model_dir, *overrides)
    (message,) = (each for each in shown(config, policy).messages if each.name == "TrainReply")
    trial = try_one_step(local(config, policy), site="ear")
    assert {name for group in message.tensors for name in group.names} == set(trial.norms)
    assert ("sketches" in message.when) == ("aggregation=sketch" in overrides)
    delta = Delta(
        tensors={
            name: np.ones(group.shape, dtype=np.float32) for group in message.tensors for name in group.names
        }
    )
    real = wire_bytes(to_arrays(encode(protect(delta), config.updates)[0]))
    headers = 0 if config.updates.quantization == "none" else 2 * 128 + len("codes" + "scales")
    assert sum(group.bytes for group in message.tensors) + headers == real


@pytest.mark.parametrize("members", [3, 5, 9])
def test_frames_are_as_long_as_those_of_a_real_round(members: int, tmp_path: Path) -> None:
    real = federation(tmp_path, members)
    lengths: dict[Kind, set[int]] = {}
    attempt = real.attempt()
    while attempt.trip.value in list(Kind):
        for reply in real.send()(attempt.requests()):
            lengths.setdefault(Signed.read(reply).kind, set()).add(len(reply))
            attempt.receive(reply)
        attempt.advance()
    rules = real.rules()
    predicted = frames(rules.binding, rules.encoding, real.policy, members=members)
    assert {frame.kind: {frame.bytes} for frame in predicted} == lengths


def test_the_masked_update_counts_each_entry_once(secure: Config, roster: Roster, policy: SitePolicy) -> None:
    secured = shown(secure, policy, roster)
    by_name = {message.name: message for message in secured.messages}
    assert by_name["TrainReply"].tensors == ()
    vector = by_name["MASKED"]
    assert all(group.masked for group in vector.tensors)
    assert 0 < vector.bytes - sum(group.bytes for group in vector.tensors) < 300
    assert secured.bytes_a_round == sum(
        by_name[name].bytes
        for name in ("TrainReply", "ADVERT", "SHARES", "MASKED", "CONFIRMED", "UNMASKED", "EvaluateReply")
    )


def test_alternating_rounds_send_one_factor_each(tiny_model_dir: Path) -> None:
    config = federation_config(tiny_model_dir, "aggregation=alternating")
    first, second = (
        preview(config, site="ear", policy=None, roster=None, round_number=number).messages[2].tensors
        for number in (1, 2)
    )
    assert {group.name.split(".")[-2] for group in first} == {"lora_B"}
    assert {group.name.split(".")[-2] for group in second} == {"lora_A"}


@pytest.mark.parametrize(
    ("every", "number", "due"), [(0, 1, False), (0, 4, True), (1, 1, True), (2, 1, False), (2, 2, True)]
)
def test_an_evaluation_counts_in_the_rounds_that_have_one(
    tiny_model_dir: Path, every: int, number: int, due: bool
) -> None:
    config = federation_config(tiny_model_dir, f"evaluation.every_rounds={every}", "federation.rounds=4")
    found = preview(config, site="ear", policy=None, roster=None, round_number=number)
    (evaluation,) = [message for message in found.messages if message.name == "EvaluateReply"]
    assert evaluation.in_round == due


def test_tensors_of_many_layers_are_one_line_in_the_order_of_the_layers() -> None:
    shapes = {f"model.layers.{layer}.q.lora_A.weight": (4, 8) for layer in range(12)} | {"head.w": (2, 2)}
    first, second = grouped(shapes, dict.fromkeys(shapes, 3), dtype="float32", masked=False)
    assert (first.name, len(first.names), first.bytes) == ("head.w", 1, 3)
    assert (second.name, second.bytes) == ("model.layers.*.q.lora_A.weight", 36)
    assert second.names[9:11] == ("model.layers.9.q.lora_A.weight", "model.layers.10.q.lora_A.weight")


def test_secure_aggregation_without_a_roster_is_no_preview(secure: Config) -> None:
    with pytest.raises(ValueError, match="needs a roster"):
        shown(secure, None)
