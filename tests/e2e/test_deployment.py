"""The same federation over Flower's real processes: SuperLink, SuperNodes and executors, with TLS."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.deployment import Deployment, deployed
from support.tiny_federation import tiny_overrides

import fedtune
from fedtune.config.compose import compose
from fedtune.config.schema import Config
from fedtune.errors import RunError
from fedtune.federation.checkpoint import load_checkpoint
from fedtune.models.adapted import adapter_spec
from fedtune.models.adapter import Adapter
from fedtune.observability.events import ClientFailed, Event, RoundAggregated, RoundFinished, read_events
from fedtune.observability.run_directory import RunDirectory, events_path

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> list[str]:
    folder = tmp_path_factory.mktemp("federation")
    return tiny_overrides(
        folder, tiny_model_dir, evaluation__every_rounds=0, federation__round_timeout_seconds=60
    )


@pytest.fixture(scope="module")
def deployment(overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Three sites that wait for runs; the tests of this file use them one after another."""
    with deployed(compose(overrides), tmp_path_factory.mktemp("deployment") / "federation") as deployment:
        yield deployment


def final_adapter(config: Config) -> Adapter:
    path = Path(config.runs_dir) / config.name
    with RunDirectory.create(path, resume=True) as run:
        return load_checkpoint(run, config.federation.rounds, adapter_spec(config.model, config.peft)).adapter


def events(config: Config) -> list[Event]:
    try:
        return read_events(events_path(Path(config.runs_dir) / config.name))
    except RunError:  # its server has not begun
        return []


def finished_rounds(config: Config) -> list[int]:
    return [event.round for event in events(config) if isinstance(event, RoundFinished)]


def test_real_processes_give_the_adapter_of_the_simulation_bit_for_bit(
    deployment: Deployment, overrides: list[str]
) -> None:
    here = fedtune.simulate([*overrides, "name=here", "evaluation.generations=0"]).config
    there = replace(here, name="there")
    deployment.run(there, seconds=90)
    simulated, real = final_adapter(here), final_adapter(there)
    assert simulated.keys() == real.keys()
    for tensor in simulated:
        np.testing.assert_array_equal(simulated[tensor], real[tensor], strict=True)

    for site in deployment.sites.values():
        handled = site.records("message")
        # A greeting, an evaluation before and after, two rounds: all by one process with one base model.
        assert len(handled) == 5
        assert {record["pid"] for record in handled} == {site.executor.pid}
        assert len({record["model"] for record in handled}) == 1
        assert len({record["sha256"] for record in site.records("bundle")}) == 1
    assert not deployment.imported.exists()
    assert [path for site in deployment.sites.values() for path in (site.folder / "home").rglob("*.py")] == []


def test_the_run_goes_on_without_a_site_that_was_killed_and_names_it(
    deployment: Deployment, overrides: list[str]
) -> None:
    """The last test of its deployment: it leaves a site dead."""
    config = compose(
        [
            *overrides,
            "name=killed",
            "federation.min_replies=2",
            "federation.rounds=1",
            # Both ends ask every 3 s: a reply takes 6 s, on a busy machine 8.
            "federation.round_timeout_seconds=13",
        ]
    )
    submitted = deployment.submit(config)
    deployment.wait("round 0", lambda: finished_rounds(config) == [0], seconds=60)
    deployment.sites["heart"].executor.kill()
    deployment.wait("the end", lambda: submitted.poll() is not None, seconds=60)

    assert finished_rounds(config) == [0, 1]
    (aggregated,) = (event for event in events(config) if isinstance(event, RoundAggregated))
    assert aggregated.clients == ("ear", "eye")
    failed = [event for event in events(config) if isinstance(event, ClientFailed)]
    assert [(event.stage, event.client, event.code) for event in failed] == [
        ("train", "heart", "FT606"),
        ("evaluate", "heart", "FT606"),
    ]
    assert not deployment.imported.exists()
