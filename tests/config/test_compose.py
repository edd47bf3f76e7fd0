"""Overrides: all problems at once, in words, and never a traceback of hydra."""

from contextlib import suppress
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from fedtune.config.compose import compose
from fedtune.config.keys import keys
from fedtune.config.overrides import check_overrides, expand_sweep, quoted
from fedtune.errors import ConfigError, Problem


def problems_of(*overrides: str) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    return caught.value.problems


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("training.learning_rat", "training.learning_rate"),
        ("learning_rate", "training.learning_rate"),
        ("lr", "training.learning_rate"),
        ("training.lr", "training.learning_rate"),
        ("Training.Learning_Rate", "training.learning_rate"),
        ("federation.round", "federation.rounds"),
        ("rounds", "federation.rounds"),
        ("num_rounds", "federation.rounds"),
        ("batch_size", "training.examples_per_step"),
        ("optimiser", "training.optimizer"),
        ("model.quantisation", "model.quantization"),
        ("training.rank", "peft.rank"),
        ("lora_r", "peft.rank"),
        ("wd", "training.weight_decay"),
        ("aggregation.weights", "aggregation.weighting"),
        ("data.max_length", "data.max_tokens"),
        ("partition.label_column", "partition.column"),
        ("sed", "seed"),
    ],
)
def test_an_unknown_key_names_the_full_key_that_is_meant(wrong: str, meant: str) -> None:
    (problem,) = problems_of(f"{wrong}=1")
    assert problem.code == "FT101"
    assert problem.what == f"there is no key {wrong}"
    assert problem.where == f"the override {wrong}=1"
    assert problem.fix == f"did you mean {meant}? It takes {keys()[meant].values}"


def test_a_key_that_resembles_none_lists_those_of_its_section() -> None:
    (problem,) = problems_of("backend.zzzzzz=1")
    assert problem.fix == "the keys of backend are name, actors, address"
    (problem,) = problems_of("zzzzzz=1")
    assert "docs/reference/configuration.md" in problem.fix


def test_a_wrong_key_inside_a_section_given_whole_is_found() -> None:
    first, second = problems_of("training={lr: 3, rank: 1}")
    assert "training.learning_rate" in first.fix
    assert "peft.rank" in second.fix


@pytest.mark.parametrize(
    ("override", "meant"),
    [("partition=dirichelt", "dirichlet"), ("experiment=dem", "demo"), ("backend=rey", "ray")],
)
def test_an_unknown_option_names_the_one_that_is_meant_and_all_there_are(override: str, meant: str) -> None:
    (problem,) = problems_of(override)
    group = override.partition("=")[0]
    assert problem.code == "FT102"
    assert f"did you mean {group}={meant}?" in problem.fix
    assert "The options are " in problem.fix


@pytest.mark.parametrize("override", ["training=null", "experiment=null"])
def test_a_group_cannot_be_null(override: str) -> None:
    (problem,) = problems_of(override)
    assert problem.code == "FT102"
    assert problem.fix.startswith("leave ")


def test_a_model_id_given_as_an_option_is_told_the_key_for_it() -> None:
    (problem,) = problems_of("model=HuggingFaceTB/SmolLM2-1.7B-Instruct")
    assert "model.name=" in problem.fix


@pytest.mark.parametrize(
    ("override", "shown", "values"),
    [
        ("training.learning_rate=-1", "-1", "a number above 0"),
        ("training.learning_rate=nan", "NaN", "a number above 0"),
        ("training.learning_rate=inf", "Infinity", "a number above 0"),
        ("training.learning_rate=fast", '"fast"', "a number above 0"),
        ("federation.rounds=0", "0", "an integer from 1"),
        ("federation.rounds=2.5", "2.5", "an integer from 1"),
        ("federation.rounds='2'", '"2"', "an integer from 1"),
        ("federation.rounds=true", "true", "an integer from 1"),
        ("peft.dropout=1", "1", "a number from 0 below 1"),
        ("model.quantization=nf8", '"nf8"', "one of nf4, int8, none"),
        ("data.files=a.jsonl", '"a.jsonl"', "a list of strings"),
        ("baselines=[global]", '"global"', "a list of local, centralized"),
        ("peft.target_modules=3", "3", "a string, or a list of strings"),
        ("name=../elsewhere", '"../elsewhere"', "a folder name"),
        ("name=.hidden", '".hidden"', "a folder name"),
        ("runs_dir=", '""', "a string that is not empty"),
        ("seed=-1", "-1", "an integer from 0"),
        ("seed=null", "null", "an integer from 0"),
    ],
)
def test_a_wrong_value_is_shown_with_the_values_that_the_key_takes(
    override: str, shown: str, values: str
) -> None:
    (problem,) = problems_of(override)
    assert problem.code == "FT103"
    assert shown in problem.what
    assert values in problem.what
    assert problem.where == f"the override {override}"


def test_a_string_where_a_list_is_wanted_shows_how_to_write_the_list() -> None:
    (problem,) = problems_of("data.files=a.jsonl", "data=files")
    assert problem.fix.endswith("data.files=[a.jsonl]")


def test_all_problems_are_reported_together() -> None:
    codes = [
        problem.code
        for problem in problems_of(
            "lr=1", "partition=irid", "federation.rounds=0", "peft.rank=x", "a b", "seed=0,1"
        )
    ]
    assert sorted(codes) == ["FT101", "FT102", "FT103", "FT103", "FT106", "FT106"]


def test_all_impossible_combinations_are_reported_together() -> None:
    found = problems_of("model.compute_dtype=float64", "data.max_tokens=1024", "partition.clients=3")
    assert {problem.code for problem in found} == {"FT105"}
    assert len(found) == 4  # two budgets of tokens are too small


def test_several_values_need_a_sweep() -> None:
    (problem,) = problems_of("seed=0,1")
    assert "-m" in problem.fix


@pytest.mark.parametrize("text", ["a b", "seed", "x=f=oo", "=", "seed=[1", ""])
def test_an_override_that_cannot_be_read_says_so(text: str) -> None:
    assert problems_of(text)[0].code in {"FT101", "FT106"}


@pytest.mark.parametrize(
    "override", ["seed=${nowhere}", "seed=???", "hydra.nowhere=1", "hydra/launcher=none"]
)
def test_what_hydra_refuses_is_one_problem_in_one_line(override: str) -> None:
    (problem,) = problems_of(override)
    assert problem.code == "FT108"
    assert override in problem.where


def test_deleting_a_section_is_a_missing_value() -> None:
    assert problems_of("~partition")[0].code == "FT104"
    assert problems_of("~seed")[0].what == "seed has no value"


def test_a_name_that_is_neither_built_in_nor_installed_is_refused() -> None:
    (problem,) = problems_of("aggregation.method=fedavgg")
    assert "did you mean fedavg?" in problem.fix


def test_resuming_needs_a_name() -> None:
    (problem,) = problems_of("resume=true")
    assert problem.where == "resume, name"
    assert compose(["resume=true", "name=20250131-093000-125"]).resume
    assert compose(["resume=true", "experiment=demo"]).name == "demo"


def test_keys_of_a_mapping_are_the_users_own() -> None:
    wanted = {"instruction": "question", "output": "answer"}
    assert compose(["data.columns={instruction: question, output: answer}"]).data.columns == wanted
    assert (
        compose(["data.columns.instruction=question", "+data.columns.output=answer"]).data.columns == wanted
    )


def test_overrides_may_refer_to_each_other() -> None:
    config = compose(["peft.rank=4", "peft.alpha=${peft.rank}"])
    assert config.peft.alpha == 4.0


def test_a_folder_of_ones_own_is_composed(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: x\nfoo: 1\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        compose([], config_dir=tmp_path)
    codes = {problem.code for problem in caught.value.problems}
    assert codes == {"FT101", "FT103", "FT104"}
    assert sum(problem.code == "FT104" for problem in caught.value.problems) >= 9


def test_composing_inside_a_hydra_program_leaves_it_as_it_was() -> None:
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from fedtune.config.location import config_dir

    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        around = GlobalHydra.instance().hydra
        assert compose(["seed=3"]).seed == 3
        with pytest.raises(ConfigError):
            compose(["seed=${nowhere}"])
        assert GlobalHydra.instance().hydra is around
    assert not GlobalHydra.instance().is_initialized()


def test_yaml_that_cannot_be_read_is_one_problem(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: [1\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="FT108"):
        compose([], config_dir=tmp_path)


@given(st.lists(st.text(max_size=30), max_size=3))
def test_no_text_gets_anything_but_a_configuration_or_its_problems(overrides: list[str]) -> None:
    checked = check_overrides(overrides, directories=())
    assert len(checked.accepted) + len(checked.problems) >= len(overrides)


@settings(max_examples=25, deadline=None)  # each composes the YAML anew
@given(st.sampled_from(sorted(keys())), st.text(max_size=20))
def test_no_value_gets_anything_but_a_configuration_or_its_problems(key: str, value: str) -> None:
    with suppress(ConfigError):
        compose([f"{key}={value}"])


def test_a_sweep_expands_to_the_grid_in_hydras_order() -> None:
    overrides = [
        "training.learning_rate=1e-3,2e-3",
        "seed=0,1",
        "aggregation=fedavg,ffa",
        "federation.rounds=2",
    ]
    checked = check_overrides(overrides, directories=(), sweep=True)
    assert [problem.code for problem in checked.problems] == ["FT102", "FT102"]  # no groups in no folders
    jobs = expand_sweep(["training.learning_rate=1e-3,2e-3", "seed=range(0,2)", "federation.rounds=2"])
    assert [job[:2] for job in jobs] == [
        ["training.learning_rate=0.001", "seed=0"],
        ["training.learning_rate=0.001", "seed=1"],
        ["training.learning_rate=0.002", "seed=0"],
        ["training.learning_rate=0.002", "seed=1"],
    ]
    assert all(job[2] == "federation.rounds=2" for job in jobs)
    assert expand_sweep(["training.learning_rate=interval(0,1)"]) == []


@given(st.text(st.sampled_from("\\\\'\"${}[],= \\né"), min_size=1, max_size=9))
@example("it's")
@example("C:\\rows\\")
@example("\\'")
@example("a\\\\'b\\")
@example("${seed}")
def test_a_quoted_value_arrives_as_it_is(value: str) -> None:
    override = OverridesParser.create().parse_override(f"data.files=[{quoted(value)}]")
    tree = OmegaConf.create({"files": override.value()})
    assert OmegaConf.to_container(tree, resolve=True) == {"files": [value]}


def test_a_quoted_file_is_composed_as_it_is() -> None:
    awkward = "it's [a] file, ${seed} or \\${seed}; 50 % = half\\"
    config = compose(["data=files", "partition=iid", f"data.files=[{quoted(awkward)}]"])
    assert config.data.files == (awkward,)
