"""The solver and the rules say the same, for every method and every setting that they look at."""

from __future__ import annotations

import itertools

import pytest

from fedtune.config.compose import judged
from fedtune.config.methods import METHODS
from fedtune.config.rules import BUILT_IN
from fedtune.config.solver import alternatives, requirements

SETTINGS = (
    ["secagg=off"],
    ["secagg=on"],
    ["aggregation.site_ranks={cardiology: 4}"],
    ["secagg=on", "aggregation.site_ranks={cardiology: 4}"],
    ["defence=median"],
    ["defence=median", "secagg=on"],
    ["server_optimizer=fedadam"],
    ["server_optimizer=fedadam", "secagg=on"],
    ["defence=median", "aggregation.site_ranks={cardiology: 4}"],
    ["updates=int8"],
    ["updates=int8", "updates.error_feedback=false"],
    ["updates=int4", "secagg=on"],
    ["asynchronous=fedbuff", "speed=lognormal"],
    ["asynchronous=fedbuff"],
    ["asynchronous=fedbuff", "speed=equal", "secagg=on"],
    ["asynchronous=fedbuff", "speed=equal", "updates=int8"],
    ["asynchronous=fedbuff", "backend=deployment", "secagg=off"],
    ["backend=deployment", "secagg=off"],
    ["backend=deployment", "secagg=on"],
    ["personal=clusters"],
    ["personal=clusters", "secagg=on"],
    ["personal=clusters", "defence=median"],
    ["personal=clusters", "server_optimizer=fedavgm", "updates=int8", "updates.error_feedback=false"],
    ["personal=clusters", "backend=deployment", "secagg=off"],
    ["personal=ditto"],
    ["personal=fine_tuning", "secagg=on"],
    ["secagg=on", "federation.rounds=5"],
    ["secagg=on", "gate=sites"],
    ["secagg=on", "secagg.groups=3", "secagg.k_min=3", "partition=iid", "partition.clients=9"],
)


NO_FEEDBACK = ("updates=int8", "updates.error_feedback=false")


@pytest.mark.parametrize(("method", "settings"), list(itertools.product(METHODS, SETTINGS)), ids=str)
def test_a_combination_is_possible_where_every_requirement_is_met(method: str, settings: list[str]) -> None:
    config, problems = judged([f"aggregation={method}", *settings])
    unmet = [each.about for each in requirements(config) if not each.met]
    assert bool(unmet) == bool(problems), (unmet, problems)
    assert all(problem.code == "FT105" and problem.fix for problem in problems)


@pytest.mark.parametrize("peft", ["lora", "core"])
@pytest.mark.parametrize("method", METHODS)
def test_a_method_takes_its_own_kind_of_adapter_alone(method: str, peft: str) -> None:
    config, problems = judged([f"aggregation={method}", f"peft.method={peft}"])
    met = {each.about: each.met for each in requirements(config)}["adapter"]
    assert met == (METHODS[method].peft_method == peft) == (not problems)


def test_the_nearest_that_can_work_is_possible() -> None:
    _, problems = judged(["aggregation=svd", "secagg=on"])
    (problem,) = problems
    named = problem.fix.removeprefix("choose one of ").removesuffix(", or secagg=off").split(", ")
    assert named == [name for name, known in METHODS.items() if known.secure]
    for name in named:
        assert judged([f"aggregation={name}", "secagg=on"])[1] == ()


def test_alternatives_are_all_methods_possible_ones_first() -> None:
    found = alternatives(["secagg=on", "aggregation=svd", "peft.method=lora", "federation.rounds=8"])
    assert sorted(each.method for each in found) == sorted(METHODS)
    possible = [each.method for each in found if not each.problems]
    assert [each.method for each in found][: len(possible)] == possible
    assert set(possible) == {name for name, known in METHODS.items() if known.secure}
    assert all(each.config.federation.rounds == 8 for each in found if each.config)


def test_an_override_that_fits_no_method_is_told_for_each() -> None:
    found = alternatives(["aggregation.side_car_rank=0"])
    assert {each.problems[0].code for each in found} == {"FT103"}
    assert {each.config for each in found} == {None}


def test_the_table_is_complete() -> None:
    assert BUILT_IN["aggregation.method"][1] == tuple(METHODS)
    for known in METHODS.values():
        assert known.source
        assert known.travels
        assert known.needs


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["aggregation=sketch", "aggregation.sketch_width=4"], "a sketch must be at least as wide"),
        (
            ["aggregation=sketch", "secagg=on", "aggregation.sketch_width=24"],
            "under secure aggregation a sketch must be at least twice",
        ),
        (["aggregation=sketch", "secagg=on", "secagg.groups=3"], "that of sketches is no sketch"),
        (["aggregation=sketch", "aggregation.error_meter=true"], "the server receives sketches"),
        (["aggregation=fedsa", "aggregation.error_meter=true"], "each site has its own"),
        (["aggregation=ffa", "aggregation.site_ranks={a: 99}"], "has 16"),
        (["defence=krum", "defence.byzantine=2"], "needs 7 in a round, which has 6"),
        (["gate=server"], "names no rows to judge by"),
        (["gate=sites", "gate.files=[x]"], "would be ignored"),
        (["gate.norm_bound=1"], "would be ignored"),
        (["gate=sites", "federation.metrics=[examples]"], "say their held-out loss"),
        (["gate=sites", "asynchronous=fedbuff", "speed=lognormal"], "train on from it already"),
        (["gate=sites", "training=scaffold", "aggregation.weighting=uniform"], "keep the control variates"),
        (["gate=sites", "aggregation=fedsa"], "each site has its own"),
        (["gate=sites", "gate.norm_bound=1", "aggregation=svd"], "takes none"),
        (["aggregation=projection", "secagg=on", "federation.rounds=5"], "ends in the middle of one"),
        (["aggregation=projection", "secagg=on", "gate=sites"], "2 rounds of projection belong together"),
        (["secagg.groups=3"], "would be ignored"),
        (["secagg=on", "secagg.groups=2"], "median of two means is their mean"),
        (["secagg=on", "secagg.groups=3", "federation.clients_per_round=4"], "draws some sites"),
        (
            ["secagg=on", "secagg.groups=3", "secagg.k_min=4", "partition=iid", "partition.clients=11"],
            "3 in the smallest",
        ),
        (["attack=zero", "attack.sites=[a]", "updates=int8"], "holds integers and scales"),
        (["attack=zero", "attack.sites=[a]", "backend=deployment"], "sites of a deployment do not"),
        (["asynchronous=fedbuff", "aggregation=svd"], "more of the updates than a mean of deltas"),
        (["asynchronous=fedbuff", "aggregation=alternating"], "updates of both would meet in one buffer"),
        (["asynchronous=fedbuff", "aggregation=zero_padding"], "drops rows of the adapter"),
        (["asynchronous=fedbuff", "aggregation=fedsa"], "no round in common"),
        (["asynchronous=fedbuff", "secagg=on"], "weighs each update by when it came"),
        (["asynchronous=fedbuff", "defence=median"], "those of a buffer began at several"),
        (["asynchronous=fedbuff", "updates=int8"], "may count less, or be refused as too old"),
        (["asynchronous=fedbuff", "aggregation.error_meter=true"], "updates of a buffer began"),
        (["asynchronous=fedbuff", "federation.clients_per_round=2"], "as soon as it is free"),
        (["asynchronous=fedbuff"], "has to know when each site is done"),
        (["asynchronous=fedbuff", "backend=ray"], "one after another"),
        (["speed=equal", "backend=deployment"], "sites of a deployment have their own"),
        (["speed.sites={ear: 2.0}"], "speed.sites would be ignored"),
        (["aggregation=core", "updates=int8"], "a rank x rank matrix, which is small as it is"),
        (["aggregation=sketch", "updates=int4"], "a site sends sketches"),
        (["aggregation=svd", "updates=int8"], "into other coordinates every round"),
        (["aggregation=flora", "backend=deployment"], "does not count a side-car"),
        (["personal=clusters", "personal.clusters=null"], "does not say how many"),
        (["personal=clusters", "personal.clusters=7"], "6 clients, and 7 clusters need as many"),
        (["personal=clusters", "personal.warm_up_rounds=4"], "made in round 5, and there are 4"),
        (["personal.clusters=2"], "would be ignored: personal is none"),
        (["personal=clusters", "aggregation=fedsa"], "models of their own already"),
        (["personal=clusters", "aggregation=svd"], "there is no mean of deltas"),
        (["personal=clusters", "secagg=on"], "secure aggregation shows their sum alone"),
        (["personal=clusters", "defence=krum", "defence.byzantine=1"], "chooses by its update which cluster"),
        (["personal=clusters", "gate=sites"], "and each cluster has its own"),
        (
            ["personal=clusters", "training=scaffold", "aggregation.weighting=uniform"],
            "mean over the sites of one",
        ),
        (["personal=clusters", "aggregation.error_meter=true"], "error meter compares with the one"),
        (["personal=clusters", "asynchronous=fedbuff", "speed=equal"], "sites have none in common"),
        (["personal=clusters", "aggregation.site_ranks={a: 2}"], "site_ranks gives some a part of it"),
    ],
)
def test_other_combinations_that_cannot_be_are_refused_with_a_fix_that_can(
    overrides: list[str], said: str
) -> None:
    _, problems = judged(overrides)
    assert any(said in problem.what for problem in problems)


def test_own_pace_is_possible_for_means_of_one_kind_of_delta_and_the_refusal_names_them() -> None:
    pace = ["asynchronous=fedbuff", "speed=equal"]
    possible = [name for name in METHODS if not judged([f"aggregation={name}", *pace])[1]]
    assert possible == [name for name, known in METHODS.items() if known.why_not_asynchronous is None]
    assert possible == ["fedavg", "ffa", "core"]
    _, (problem,) = judged(["aggregation=svd", *pace])
    assert problem.fix == "choose one of fedavg, ffa, core, or asynchronous=none"


def test_a_defence_that_cannot_be_is_answered_with_the_most_that_it_bears() -> None:
    _, (problem,) = judged(["defence=krum", "defence.byzantine=2"])
    assert problem.fix == "set defence.byzantine=1, or defence=median"
    assert judged(["defence=krum", "defence.byzantine=1"])[1] == ()


def test_the_table_says_which_methods_may_travel_in_few_bits_and_be_deployed() -> None:
    few_bits = {name for name in METHODS if not judged([f"aggregation={name}", *NO_FEEDBACK])[1]}
    assert few_bits == {name for name, known in METHODS.items() if known.why_not_quantized is None}
    assert set(METHODS) - few_bits == {"core", "sketch"}
    deployed = {name for name in METHODS if not judged([f"aggregation={name}", "backend=deployment"])[1]}
    assert deployed == {name for name, known in METHODS.items() if known.why_not_deployed is None}
    assert set(METHODS) - deployed == {"fedex", "flora"}
