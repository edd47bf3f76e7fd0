"""Every YAML file under conf/ composes into a valid configuration."""

from pathlib import Path

import pytest
import yaml

from fedtune.config.compose import compose
from fedtune.config.keys import GROUPS, keys
from fedtune.config.location import config_dir
from fedtune.errors import ConfigError

# What a shipped option cannot know: the user's own files and columns.
NEEDED = {
    "data=files": ["data.files=[rows.jsonl]", "partition=iid"],
    "partition=natural": ["partition.column=site"],
    "asynchronous=fedbuff": ["speed=lognormal"],
    "training=scaffold": ["aggregation.weighting=uniform"],
    "gate=server": ["gate.files=[rows.jsonl]"],
    "defence=bulyan": ["partition=iid", "partition.clients=7"],
}

SHIPPED = sorted(f"{path.parent.name}={path.stem}" for path in config_dir().glob("*/*.yaml"))


def test_every_group_is_shipped_and_no_other() -> None:
    folders = {path.name for path in config_dir().iterdir() if path.is_dir()}
    assert folders == {*GROUPS, "experiment"}


@pytest.mark.parametrize("option", SHIPPED)
def test_every_shipped_option_composes(option: str) -> None:
    config = compose([option, *NEEDED.get(option, [])])
    group, _, name = option.partition("=")
    if group == "experiment":
        assert config.name == name
    else:
        given = yaml.safe_load((config_dir() / group / f"{name}.yaml").read_text(encoding="utf-8"))
        given = given.get(group, given)  # a file for _global_ names its section
        section = getattr(config, group)
        assert set(given) == set(section.__dataclass_fields__), "every key of the section is spelled out"


@pytest.mark.parametrize("option", sorted(NEEDED))
def test_options_that_need_more_say_so(option: str) -> None:
    with pytest.raises(ConfigError, match=r"FT105: .*\n.*\n  do: "):
        compose([option])


@pytest.mark.parametrize("option", SHIPPED)
def test_every_shipped_file_begins_with_what_it_is_for(option: str) -> None:
    group, _, name = option.partition("=")
    lines = (config_dir() / group / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    comments = [line for line in lines[:2] if line.startswith("# ") and not line.startswith("# @")]
    assert comments


def test_every_key_is_documented() -> None:
    undocumented = [key.name for key in keys().values() if len(key.description) < 10]
    assert undocumented == []


def test_the_defaults_are_those_of_the_demo() -> None:
    config = compose([])
    assert config.federation.rounds == 4
    assert config.training.steps_per_round == 8
    assert config.training.examples_per_step == 4
    assert config.training.learning_rate == 1e-3
    assert config.data.max_tokens == 256
    assert config.evaluation.every_rounds == 1


def test_a_run_without_a_name_is_named_by_its_time_and_no_two_alike() -> None:
    names = {compose([]).name for _ in range(3)}
    assert all(name[:8].isdigit() for name in names)
    assert len(names) == 3


def test_composing_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    compose(["experiment=demo"])
    assert list(tmp_path.iterdir()) == []
