"""Impossible combinations: each is refused with its reason, and the fix that it names works."""

import re
from dataclasses import replace

import pytest

from fedtune.config.compose import compose
from fedtune.config.keys import keys
from fedtune.config.rules import BUILT_IN, COLUMN_ROLES, combination_problems
from fedtune.errors import ConfigError

# (overrides, words of the reason, overrides that the fix amounts to)
IMPOSSIBLE = [
    (["model.compute_dtype=float64"], "nf4 weights cannot be used in float64", ["model.quantization=none"]),
    (
        ["model.compute_dtype=float64", "model.quantization=int8"],
        "int8 weights cannot be used in float64",
        ["model.compute_dtype=float32"],
    ),
    (
        ["model.compute_dtype=float16", "model.device=cpu"],
        "float16 on a CPU overflows",
        ["model.compute_dtype=auto"],
    ),
    (
        ["model.compute_dtype=float64", "model.quantization=none", "training.optimizer=adamw8bit"],
        "8-bit AdamW keeps no states for float64",
        ["training.optimizer=adamw"],
    ),
    (["data=files", "partition=iid"], "data.files is empty", ["data.files=[rows.jsonl]"]),
    (["data.files=[rows.jsonl]"], "data.files would be ignored", ["data=files"]),
    (["data.columns={instructon: q}"], "'instructon'|\"instructon\"", ["~data.columns.instructon"]),
    (["data.held_out_fraction=1"], "hold out every row", ["data.held_out_fraction=0.05"]),
    (
        ["data.held_out_fraction=0.5", "data.validation_max_rows=4"],
        "together they would be every row",
        ["data.held_out_fraction=0.49", "data.validation_max_rows=4"],
    ),
    (
        ["evaluation.rows=validation"],
        "nothing would be tested",
        ["evaluation.rows=validation", "data.validation_max_rows=4"],
    ),
    (
        ["baseline_learning_rates={local: 1e-3}"],
        "baselines does not name local",
        ["baseline_learning_rates={local: 1e-3}", "baselines=[local]"],
    ),
    (
        ["data.max_tokens=600"],
        "data.max_tokens=600 does not fit into training.microbatch_tokens=512",
        ["training.microbatch_tokens=600", "evaluation.microbatch_tokens=600"],
    ),
    (
        ["evaluation.microbatch_tokens=100"],
        "does not fit into evaluation.microbatch_tokens=100",
        ["data.max_tokens=100"],
    ),
    (["partition=natural"], "does not say which column names the site", ["partition.column=site"]),
    (["partition.clients=4"], "natural makes one client for each value", ["partition.clients=null"]),
    (["partition.values=[a,b,a]"], "names a site twice", ["partition.values=[a,b]"]),
    (["partition=iid", "partition.clients=null"], "how many clients", ["partition.clients=6"]),
    (["partition=dirichlet", "partition.clients=null"], "how many clients", ["partition.clients=6"]),
    (["partition=quantity", "partition.clients=null"], "how many clients", ["partition.clients=6"]),
    (["partition=shards", "partition.clients=null"], "how many clients", ["partition.clients=6"]),
    (["partition=iid", "partition.values=[a]"], "would be ignored", ["partition.values=[]"]),
    (["partition=dirichlet", "partition.column=null"], "holds the label", ["partition.column=site"]),
    (["partition=shards", "partition.column=null"], "holds the label", ["partition=iid"]),
    (["peft.target_modules=[]"], "no layer would get an adapter", ["peft.target_modules=all-linear"]),
    (["peft.target_modules=q_proj"], "read as a pattern", ["peft.target_modules=[q_proj]"]),
    (
        ["federation.clients_per_round=7"],
        "there are only 6 clients",
        ["federation.clients_per_round=null"],
    ),
    (["federation.min_replies=7"], "only 6 clients take part", ["federation.min_replies=6"]),
    (
        ["federation.clients_per_round=3", "federation.min_replies=4"],
        "only 3 clients take part",
        ["federation.min_replies=3"],
    ),
    (["backend.actors=2"], "trains one client at a time", ["backend=ray"]),
    (
        ["secagg=on", "aggregation.error_meter=true"],
        "the error meter needs each site's own update",
        ["secagg=on", "aggregation.error_meter=false"],
    ),
    (
        ["secagg=on", "aggregation.weighting=tokens"],
        "weights by tokens would tell",
        ["secagg=on", "aggregation.weighting=examples"],
    ),
    (
        ["secagg=on", "federation.min_replies=3"],
        "a quorum of federation.min_replies=3 is smaller than the cohort that sites demand, secagg.k_min=5: "
        "such a round would never be opened",
        ["secagg=on", "federation.min_replies=5"],
    ),
    (
        ["secagg=on", "federation.clients_per_round=4"],
        "a round has 4 clients, but sites demand a cohort of secagg.k_min=5",
        ["secagg=on", "federation.clients_per_round=4", "secagg.k_min=4"],
    ),
    (
        ["secagg=on", "updates=int8"],
        "updates.quantization=int8 gives each site scales of its own",
        ["updates=exact", "secagg.ring_bits=16"],
    ),
    (
        ["secagg=on", "updates=int4"],
        "masked updates can only be summed on one grid that all share",
        ["secagg=off"],
    ),
    (
        ["updates.error_feedback=true"],
        "updates.error_feedback has nothing to feed back",
        ["updates=int8"],
    ),
    (
        ["updates=int4", "model.compute_dtype=float64", "model.quantization=none"],
        "updates.quantization=int4 takes updates of 32 bits",
        ["updates=exact"],
    ),
    (
        ["federation.metrics=[held_out_loss]"],
        "federation.metrics does not let sites say it",
        ["federation.metrics=[held_out_loss]", "aggregation.weighting=uniform"],
    ),
    (["baselines=[local,local]"], "the same baseline twice", ["baselines=[local,centralized]"]),
]


@pytest.mark.parametrize(
    ("overrides", "reason", "fix"), IMPOSSIBLE, ids=[" ".join(row[0]) for row in IMPOSSIBLE]
)
def test_an_impossible_combination_is_refused_with_its_reason(
    overrides: list[str], reason: str, fix: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    problems = caught.value.problems
    assert {problem.code for problem in problems} == {"FT105"}
    assert any(re.search(reason, problem.what) for problem in problems)
    for problem in problems:
        assert all(name in keys() or name == "partition" for name in problem.where.split(", "))


@pytest.mark.parametrize(
    ("overrides", "reason", "fix"), IMPOSSIBLE, ids=[" ".join(row[0]) for row in IMPOSSIBLE]
)
def test_the_nearest_possible_combination_is_possible(
    overrides: list[str], reason: str, fix: list[str]
) -> None:
    compose([*overrides, *fix])


@pytest.mark.parametrize(
    "overrides",
    [
        ["federation.clients_per_round=6", "federation.min_replies=6"],
        ["data.held_out_fraction=0"],
        ["data.max_tokens=512"],
        ["partition.values=[]", "federation.min_replies=40"],  # how many sites there are is not known yet
        ["model.compute_dtype=float64", "model.quantization=none"],
        ["model.compute_dtype=float16"],
        ["resume=true", "name=demo", "baselines=[local]"],
        ["peft.target_modules=[q_proj]"],
        ["updates=int4", "updates.block_size=1024", "updates.error_feedback=false"],
    ],
    ids=" ".join,
)
def test_what_is_possible_is_not_refused(overrides: list[str]) -> None:
    compose(overrides)


def test_the_rules_know_the_choices_that_the_schema_documents() -> None:
    for key, (group, names) in BUILT_IN.items():
        assert all(f"``{name}``" in keys()[key].description for name in names)
        assert f"``{group}``" in keys()[key].description
    assert all(f"``{role}``" in keys()["data.columns"].description for role in COLUMN_ROLES)


def test_a_method_that_looks_at_single_updates_is_refused_under_secure_aggregation() -> None:
    config = compose(["secagg=on"])
    median = replace(config, aggregation=replace(config.aggregation, method="median"))
    (problem,) = combination_problems(median)
    assert "looks at single updates" in problem.what
