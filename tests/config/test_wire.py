"""The JSON of a configuration: canonical, exact, and safe to parse from the wire."""

import dataclasses
import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fedtune.config.compose import compose
from fedtune.config.keys import keys
from fedtune.config.schema import Config, PeftConfig, TrainingConfig
from fedtune.config.wire import (
    MAX_CONFIG_CHARACTERS,
    config_from_json,
    config_from_yaml,
    config_hash,
    config_to_json,
    config_to_yaml,
)
from fedtune.errors import ConfigError

DEMO = compose(["experiment=demo"])
DEMO_JSON = config_to_json(DEMO)

positive = st.floats(min_value=5e-324, max_value=1e300)
fractions = st.floats(min_value=0, max_value=1)
configs = st.builds(
    lambda seed, rate, warmup, alpha, prompt: dataclasses.replace(
        DEMO,
        seed=seed,
        training=dataclasses.replace(DEMO.training, learning_rate=rate, warmup_fraction=warmup),
        peft=dataclasses.replace(DEMO.peft, alpha=alpha),
        data=dataclasses.replace(DEMO.data, system_prompt=prompt),
    ),
    st.integers(0, 2**63 - 1),
    positive,
    fractions,
    positive,
    st.none() | st.text(st.characters(exclude_categories=["Cs"])),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def parsed(text: str) -> Config | ConfigError:
    """The only two things that may come of any text."""
    try:
        return config_from_json(text)
    except ConfigError as error:
        return error


@given(configs)
def test_json_gives_back_the_same_configuration(config: Config) -> None:
    text = config_to_json(config)
    assert config_from_json(text) == config
    assert config_to_json(config_from_json(text)) == text


@given(configs)
def test_yaml_gives_back_the_same_configuration(config: Config) -> None:
    assert config_from_yaml(config_to_yaml(config), where="config.yaml") == config


@pytest.mark.parametrize("prompt", ["\x85", "one\u2028two", "\u2029", "é\x85é", "plain\nlines"])
def test_what_yaml_takes_for_a_line_break_comes_back_as_it_was(prompt: str) -> None:
    config = dataclasses.replace(DEMO, data=dataclasses.replace(DEMO.data, system_prompt=prompt))
    assert config_from_yaml(config_to_yaml(config), where="config.yaml") == config


def test_json_is_canonical() -> None:
    assert json.dumps(json.loads(DEMO_JSON), sort_keys=True, separators=(",", ":")) == DEMO_JSON
    assert DEMO_JSON.isascii()


def test_the_hash_is_sha256_of_the_json_and_moves_with_every_key() -> None:
    assert len(config_hash(DEMO)) == 64
    assert config_hash(config_from_json(DEMO_JSON)) == config_hash(DEMO)
    changed = dataclasses.replace(DEMO, seed=DEMO.seed + 1)
    assert config_hash(changed) != config_hash(DEMO)


def test_every_key_of_the_schema_travels() -> None:
    values = json.loads(DEMO_JSON)
    for key in keys():
        node: Any = values
        for part in key.split("."):
            node = node[part]


@given(st.text())
def test_arbitrary_text_is_refused_as_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError):
        config_from_json(text)


@given(json_values)
def test_arbitrary_json_is_refused_as_a_config_error(value: Any) -> None:
    with pytest.raises(ConfigError):
        config_from_json(json.dumps(value))


@given(st.sampled_from(sorted(keys())), json_values)
def test_any_value_at_any_key_gives_a_configuration_or_a_config_error(key: str, value: Any) -> None:
    values = json.loads(DEMO_JSON)
    node = values
    *sections, last = key.split(".")
    for part in sections:
        node = node[part]
    node[last] = value
    result = parsed(json.dumps(values))
    if isinstance(result, ConfigError):
        assert all(problem.code.startswith("FT1") for problem in result.problems)
        assert all("\n" not in problem.what and len(problem.what) < 400 for problem in result.problems)
    else:
        assert config_from_json(config_to_json(result)) == result


@given(st.integers(0, len(DEMO_JSON) - 1), st.characters())
def test_one_damaged_character_gives_a_configuration_or_a_config_error(position: int, character: str) -> None:
    parsed(DEMO_JSON[:position] + character + DEMO_JSON[position + 1 :])


@given(st.integers(0, len(DEMO_JSON) - 1))
def test_a_text_that_was_cut_is_refused(length: int) -> None:
    with pytest.raises(ConfigError):
        config_from_json(DEMO_JSON[:length])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "[" * 100_000,
        '{"seed":' * 10_000,
        '{"seed": ' + "9" * 5_000 + "}",
        '{"seed": 1e999}',
        '"\ud800"',
        '{"seed": "\\ud800"}',
        "\ufeff{}",
        DEMO_JSON + "x",
        DEMO_JSON + " " * MAX_CONFIG_CHARACTERS,
    ],
    ids=range(12),
)
def test_hostile_text_is_refused_as_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError):
        config_from_json(text)


def test_unknown_keys_from_the_wire_are_refused_by_name() -> None:
    values = json.loads(DEMO_JSON)
    values["training"]["_target_"] = "os.system"
    values["extra"] = 1
    with pytest.raises(ConfigError) as caught:
        config_from_json(json.dumps(values), where="the server's message")
    assert {problem.what for problem in caught.value.problems} == {
        "there is no key training._target_",
        "there is no key extra",
    }
    assert {problem.where for problem in caught.value.problems} == {"the server's message"}


def test_impossible_combinations_from_the_wire_are_refused() -> None:
    values = json.loads(DEMO_JSON)
    values["training"]["microbatch_tokens"] = 8
    with pytest.raises(ConfigError, match="FT105"):
        config_from_json(json.dumps(values))


def test_a_plugin_of_the_coordinator_is_no_business_of_the_client() -> None:
    values = json.loads(DEMO_JSON)
    values["aggregation"]["method"] = "not_installed_here"
    assert config_from_json(json.dumps(values)).aggregation.method == "not_installed_here"


@pytest.mark.parametrize("text", ["a: [", "? [a]\n: b", "2020-01-01: x", "- 1", "", "&a [*a]"])
def test_damaged_yaml_is_refused_as_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError):
        config_from_yaml(text, where="config.yaml")


def test_yaml_is_plain_and_in_the_order_of_the_schema() -> None:
    values = yaml.safe_load(config_to_yaml(DEMO))
    assert list(values) == list(Config.__dataclass_fields__)
    assert list(values["peft"]) == list(PeftConfig.__dataclass_fields__)
    assert list(values["training"]) == list(TrainingConfig.__dataclass_fields__)
    assert values["training"]["learning_rate"] == DEMO.training.learning_rate
