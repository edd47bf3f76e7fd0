"""What a site makes of the arrays that a server sends: an adapter, and perhaps a frozen one beside it."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from hypothesis import given
from hypothesis import strategies as st
from support.adapters import random_adapter, small_spec

from fedtune.aggregation.carrying import as_carried
from fedtune.aggregation.clusters import Cluster, clusters_as_carried, clusters_of
from fedtune.errors import UpdateError
from fedtune.federation.downlink import (
    downlink,
    downlink_to_test,
    downlink_to_train,
    received,
    with_own_apart,
)
from fedtune.updates.codec import to_arrays

SPEC = small_spec(((5, 7), (3, 4)), rank=2)
FIRST = f"side_car/{SPEC.names(('A',))[0]}"


def codes(record: ArrayRecord, *, has_side_car: bool = True) -> set[str]:
    with pytest.raises(UpdateError) as caught:
        received(record, SPEC, has_side_car=has_side_car, where="test")
    return {problem.code for problem in caught.value.problems}


@given(st.integers(0, 2**32), st.integers(0, 7))
def test_what_is_sent_is_what_is_received(seed: int, rank: int) -> None:
    adapter = random_adapter(SPEC, seed)
    side_car = random_adapter(SPEC.with_rank(rank), seed + 1) if rank else {}
    state = as_carried(side_car) | {"momentum/x": np.ones(3)}
    got, beside = received(downlink(adapter, state), SPEC, has_side_car=True, where="test")
    assert got.keys() == adapter.keys()
    assert beside.keys() == side_car.keys()
    for name, tensor in (adapter | as_carried(side_car)).items():
        np.testing.assert_array_equal((got | as_carried(beside))[name], tensor)


def test_a_method_without_a_side_car_refuses_one() -> None:
    record = downlink(random_adapter(SPEC, 0), as_carried(random_adapter(SPEC.with_rank(3), 1)))
    assert codes(record, has_side_car=False) == {"FT501"}


@pytest.mark.parametrize("shape", [(8, 7), (0, 7), (-1, 7), (3,), (3, 7, 1)])
def test_a_rank_that_no_side_car_can_have_is_refused_before_anything_is_read(shape: tuple[int, ...]) -> None:
    record = downlink(random_adapter(SPEC, 0), as_carried(random_adapter(SPEC.with_rank(3), 1)))
    record[FIRST] = Array(dtype="float32", shape=shape, stype="numpy.ndarray", data=b"")
    assert codes(record) == {"FT502"}


def test_a_side_car_with_gaps_and_one_of_mixed_ranks_are_refused() -> None:
    adapter, side_car = random_adapter(SPEC, 0), random_adapter(SPEC.with_rank(3), 1)
    record = downlink(adapter, as_carried(side_car))
    del record[FIRST]
    assert codes(record) == {"FT501"}
    other = random_adapter(SPEC.with_rank(2), 1)
    name = SPEC.names(("B",))[1]
    assert codes(downlink(adapter, as_carried(side_car | {name: other[name]}))) == {"FT502"}


strange_arrays = st.builds(
    lambda dtype, shape, stype, data: Array(dtype=dtype, shape=shape, stype=stype, data=data),
    st.sampled_from(["float32", "float64", "object", "uint8"]),
    st.lists(st.integers(-2, 9), max_size=3).map(tuple),
    st.sampled_from(["numpy.ndarray", "pickle"]),
    st.one_of(st.binary(max_size=64), st.just(to_arrays(random_adapter(SPEC, 0))[SPEC.names()[0]].data)),
)
strange_names = st.sampled_from(
    [*SPEC.shapes, *as_carried(dict.fromkeys(SPEC.shapes, np.ones(1))), "side_car/", "x"]
)


@given(st.dictionaries(strange_names, strange_arrays, max_size=6), st.booleans(), st.booleans())
def test_whatever_arrives_is_an_adapter_or_an_update_error(
    strange: dict[str, Array], over_good: bool, has_side_car: bool
) -> None:
    record = downlink(random_adapter(SPEC, 0), {}) if over_good else ArrayRecord()
    for name, array in strange.items():
        record[name] = array
    refused: set[str] = set()
    adapter, side_car = random_adapter(SPEC, 0), dict[str, np.ndarray]()
    try:
        adapter, side_car = received(record, SPEC, has_side_car=has_side_car, where="fuzz")
    except UpdateError as error:
        refused = {problem.code for problem in error.problems}
    assert refused <= {f"FT50{digit}" for digit in range(1, 6)}
    assert {name: value.shape for name, value in adapter.items()} == dict(SPEC.shapes)
    assert not side_car or side_car.keys() == SPEC.shapes.keys()
    assert all(np.isfinite(value).all() for value in (*adapter.values(), *side_car.values()))


def two_clusters() -> tuple[Cluster, Cluster]:
    return tuple(
        Cluster(adapter=random_adapter(SPEC, seed), state={"momentum/x/y": np.ones(2)}, members=members)
        for seed, members in ((1, {"a/b": 4.0, "ear": 0.0}), (2, {"heart": 2.5}))
    )  # type: ignore[return-value]


def test_clusters_are_remembered_as_they_were() -> None:
    clusters = two_clusters()
    found = clusters_of({"momentum/z": np.ones(1), **clusters_as_carried(clusters)})
    for each, was in zip(found, clusters, strict=True):
        assert each.members == was.members
        assert each.state.keys() == was.state.keys()
        assert list(each.adapter) == list(was.adapter)
        for name, tensor in was.adapter.items():
            np.testing.assert_array_equal(each.adapter[name], tensor)
    assert clusters_of({}) == ()


@pytest.mark.parametrize(("site", "cluster"), [("a/b", 0), ("heart", 1), ("eye", None)])
def test_a_site_gets_its_clusters_adapter_to_train_and_both_to_test(site: str, cluster: int | None) -> None:
    whole, clusters = random_adapter(SPEC, 0), two_clusters()
    carried = clusters_as_carried(clusters)
    own = None if cluster is None else clusters[cluster].adapter
    trains, _ = received(downlink_to_train(whole, carried)(site), SPEC, has_side_car=False, where="test")
    rest, tested = with_own_apart(downlink_to_test(whole, carried)(site), SPEC, where="test")
    tests, _ = received(rest, SPEC, has_side_car=False, where="test")
    for found, wanted in ((trains, own or whole), (tests, whole), (tested, own or {})):
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            np.testing.assert_array_equal(found[name], tensor)


own_names = st.sampled_from([*SPEC.shapes, *(f"own/{name}" for name in SPEC.shapes), "own/", "own/x", "x"])


@given(st.dictionaries(own_names, strange_arrays, max_size=6), st.booleans())
def test_whatever_arrives_beside_the_global_adapter_is_one_more_or_an_update_error(
    strange: dict[str, Array], over_good: bool
) -> None:
    to = downlink_to_test(random_adapter(SPEC, 0), clusters_as_carried(two_clusters()))
    record = to("heart") if over_good else ArrayRecord()
    for name, array in strange.items():
        record[name] = array
    refused: set[str] = set()
    own = dict[str, np.ndarray]()
    try:
        rest, own = with_own_apart(record, SPEC, where="fuzz")
        assert not any(name.startswith("own/") for name in rest)
    except UpdateError as error:
        refused = {problem.code for problem in error.problems}
    assert refused <= {f"FT50{digit}" for digit in range(1, 6)}
    assert not own or {name: value.shape for name, value in own.items()} == dict(SPEC.shapes)
    assert all(np.isfinite(value).all() for value in own.values())


def test_a_run_without_clusters_refuses_an_adapter_of_one() -> None:
    record = downlink_to_test(random_adapter(SPEC, 0), clusters_as_carried(two_clusters()))("heart")
    assert codes(record) == {"FT501"}
