"""SCAFFOLD against the paper's Algorithm 1, written out with numpy on quadratics of a known optimum."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtune.aggregation.control import ControlledAggregator, apart, as_controls, controls_of
from fedtune.aggregation.linear import ALTERNATING, FEDAVG
from fedtune.aggregation.steered import SteeredAggregator, configured_aggregator
from fedtune.config.compose import compose
from fedtune.models.adapter import Adapter
from fedtune.training.delta import Delta

NAMES = ("q.lora_A.weight", "q.lora_B.weight")
SHAPES = {NAMES[0]: (2, 3), NAMES[1]: (4, 2)}
RATE, STEPS = 0.1, 5


class Quadratics:
    """Sites with f_i(w) = sum h_i (w - m_i)^2 / 2, whose mean has its minimum at sum h_i m_i / sum h_i."""

    def __init__(self, sites: int, seed: int) -> None:
        stream = np.random.default_rng(seed)
        self.sites = sites
        self.h = [{n: stream.uniform(0.2, 3.0, s) for n, s in SHAPES.items()} for _ in range(sites)]
        self.m = [{n: stream.normal(size=s) for n, s in SHAPES.items()} for _ in range(sites)]

    def gradient(self, site: int, w: Adapter, name: str) -> np.ndarray:
        return self.h[site][name] * (w[name] - self.m[site][name])

    def minimum(self) -> Adapter:
        return {
            n: sum(h[n] * m[n] for h, m in zip(self.h, self.m, strict=True)) / sum(h[n] for h in self.h)
            for n in NAMES
        }

    def local(self, site: int, x: Adapter, correction: Adapter) -> tuple[Adapter, Adapter]:
        """K steps of corrected gradient descent: what was trained, and the mean of the plain gradients."""
        y = {name: value.copy() for name, value in x.items()}
        total = {name: np.zeros_like(value) for name, value in x.items()}
        for _ in range(STEPS):
            gradients = {name: self.gradient(site, y, name) for name in correction}
            for name, gradient in gradients.items():
                total[name] += gradient
                y[name] = y[name] - RATE * (gradient + correction[name])
        return y, {name: total[name] / STEPS for name in correction}


def start() -> Adapter:
    return {name: np.zeros(shape) for name, shape in SHAPES.items()}


def rounds(problem: Quadratics, cohorts: list[tuple[int, ...]], method=FEDAVG) -> tuple[Adapter, Adapter]:
    """Run fedtune's server over sites of our own; return adapter and the federation's variates."""
    aggregator = ControlledAggregator(method=method, sites=problem.sites)
    x, carried = start(), {}
    own = [start() for _ in range(problem.sites)]
    for number, cohort in enumerate(cohorts, 1):
        names = [name for name in NAMES if any(f".lora_{f}." in name for f in method.factors(number))]
        c = controls_of(carried, x)
        accumulator = aggregator.start_from(x, carried)
        for site in cohort:
            y, mean = problem.local(site, x, {name: c[name] - own[site][name] for name in names})
            change = {name: mean[name] - own[site][name] for name in names}
            delta = {name: y[name] - x[name] for name in names}
            accumulator.add(Delta(tensors=delta | as_controls(change)), 1.0)
            own[site] |= mean
        x, carried = accumulator.result(), accumulator.carried()
    return x, controls_of(carried, x)


def by_the_paper(problem: Quadratics, cohorts: list[tuple[int, ...]]) -> tuple[Adapter, Adapter]:
    """Algorithm 1 with option II, line by line."""
    x, c = start(), start()
    own = [start() for _ in range(problem.sites)]
    for cohort in cohorts:
        moved, changed = start(), start()
        for site in cohort:
            y = x
            for _ in range(STEPS):
                y = {n: y[n] - RATE * (problem.gradient(site, y, n) - own[site][n] + c[n]) for n in NAMES}
            plus = {n: own[site][n] - c[n] + (x[n] - y[n]) / (STEPS * RATE) for n in NAMES}
            for n in NAMES:
                moved[n] += (y[n] - x[n]) / len(cohort)
                changed[n] += (plus[n] - own[site][n]) / problem.sites
            own[site] = plus
        x = {n: x[n] + moved[n] for n in NAMES}
        c = {n: c[n] + changed[n] for n in NAMES}
    return x, c


@given(seed=st.integers(0, 2**32), data=st.data())
def test_rounds_are_those_of_the_paper_whoever_is_drawn(seed: int, data: st.DataObject) -> None:
    problem = Quadratics(4, seed)
    cohorts = data.draw(
        st.lists(st.sets(st.integers(0, 3), min_size=1).map(sorted).map(tuple), min_size=1, max_size=4)
    )
    for found, wanted in zip(rounds(problem, cohorts), by_the_paper(problem, cohorts), strict=True):
        for name in NAMES:
            np.testing.assert_allclose(found[name], wanted[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", [FEDAVG, ALTERNATING])
def test_it_reaches_the_minimum_of_the_mean_where_plain_averaging_stays_beside_it(method) -> None:
    problem = Quadratics(5, 3)
    everyone = [tuple(range(5))] * 400
    x, c = rounds(problem, everyone, method)
    for name in NAMES:
        np.testing.assert_allclose(x[name], problem.minimum()[name], atol=1e-8)
        np.testing.assert_allclose(c[name], 0, atol=1e-8)
    plain = start()
    for _ in everyone:
        trained = [problem.local(site, plain, start())[0] for site in range(5)]
        plain = {name: np.mean([y[name] for y in trained], axis=0) for name in NAMES}
    assert max(np.abs(plain[name] - problem.minimum()[name]).max() for name in NAMES) > 0.02


def test_a_factor_that_a_round_does_not_train_keeps_its_variates() -> None:
    aggregator = ControlledAggregator(method=ALTERNATING, sites=2)
    x = start()
    (b,) = (name for name in NAMES if "lora_B" in name)
    accumulator = aggregator.start(x)
    accumulator.add(Delta(tensors={b: x[b] + 1} | as_controls({b: x[b] + 3})), 1.0)
    accumulator.result()
    carried = accumulator.carried()
    (a,) = (name for name in NAMES if "lora_A" in name)
    later = aggregator.start_from(x, carried)
    later.add(Delta(tensors={a: x[a] + 1} | as_controls({a: x[a] + 4})), 1.0)
    later.result()
    after = controls_of(later.carried(), x)
    assert (after[b] == 1.5).all()
    assert (after[a] == 2).all()


def test_variates_stand_beside_what_a_server_optimizer_remembers() -> None:
    config = compose(["training=scaffold", "aggregation.weighting=uniform", "server_optimizer=fedavgm"])
    aggregator = configured_aggregator(config, sites=4)
    assert isinstance(aggregator, ControlledAggregator)
    assert isinstance(aggregator.method, SteeredAggregator)
    assert (aggregator.name, aggregator.exact, aggregator.factors(1)) == ("fedavg", False, ("A", "B"))
    assert "the step by fedavgm" in aggregator.label
    assert "gradients corrected by control variates" in aggregator.label
    x = start()
    delta = Delta(tensors={name: x[name] + 1 for name in NAMES} | as_controls({n: x[n] + 2 for n in NAMES}))
    carried: dict = {}
    seen = []
    for _ in range(2):
        accumulator = aggregator.start_from(x, carried)
        accumulator.add(delta, 1.0)
        accumulator.result()
        carried = accumulator.carried()
        seen.append(carried)
    assert sorted({name.partition("/")[0] for name in carried}) == ["control", "momentum"]
    for before, after in pairwise(seen):
        assert (after[f"control/{NAMES[0]}"] == 2 * before[f"control/{NAMES[0]}"]).all()


def test_a_delta_and_its_variates_come_apart_again() -> None:
    delta = Delta(tensors={NAMES[0]: np.ones(2)})
    both = Delta(tensors=dict(delta.tensors) | as_controls({NAMES[0]: np.zeros(2)}))
    plain, controls = apart(both)
    assert dict(plain.tensors).keys() == controls.keys() == {NAMES[0]}
    assert not controls[NAMES[0]].any()
