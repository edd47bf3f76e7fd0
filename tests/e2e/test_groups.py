"""Nine sites in three groups under secure aggregation, as real processes: the median of three secure sums."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.cli_federation import CliFederation, cli_federation, tiny_run
from support.outcomes import last_adapter, simulated

from fedtune.cli import main
from fedtune.config.compose import compose
from fedtune.federation.secure import round_encoding
from fedtune.models.adapted import adapter_spec
from fedtune.observability.events import ClientFailed, GroupDropped, RoundAggregated, SecureSum
from fedtune.secagg.files import read_roster

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

GROUPS = {
    "north": ("ear", "eye", "heart"),
    "south": ("kidney", "liver", "lung"),
    "west": ("skin", "spine", "teeth"),
}
GROUP_OF = {site: group for group, members in GROUPS.items() for site in members}
SIZES = {site: 16 + 2 * place for place, site in enumerate(GROUP_OF)}
SECURE = ("secagg.groups=3", "federation.min_replies=6", "aggregation.weighting=uniform")


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[CliFederation]:
    path = tmp_path_factory.mktemp("groups") / "federation"
    with cli_federation(path, tiny_model_dir, SIZES, GROUP_OF) as federation:
        yield federation


def test_the_adapter_is_the_median_of_the_groups_means_within_the_encoders_bound(
    grouped: CliFederation, tiny_model_dir: Path, tmp_path: Path
) -> None:
    one = tiny_run(federation__rounds=1, federation__round_timeout_seconds=120)
    summary = grouped.run("name=grouped", *one, *SECURE, seconds=500)
    assert summary["status"] == "completed"
    opened = [event for event in grouped.events("grouped") if isinstance(event, SecureSum)]
    assert all(event.opened for event in opened)
    assert sorted(client for event in opened for client in event.clients) == sorted(GROUP_OF)
    made = last_adapter(grouped.coordinator.runs / "grouped", 1, tiny_model_dir)
    means = [
        simulated(
            grouped,
            tmp_path / name,
            tiny_model_dir,
            *("federation.rounds=1", "aggregation.weighting=uniform"),
            sites=members,
        )
        for name, members in GROUPS.items()
    ]
    config = compose([*tiny_run(model__name=tiny_model_dir), "name=x", "secagg=on", "backend=deployment"])
    encoding = round_encoding(
        config,
        adapter_spec(config.model, config.peft),
        ("A", "B"),
        read_roster(grouped.coordinator.roster),
    )
    for tensor in encoding.tensors:
        expected = np.median(np.stack([mean[tensor.name] for mean in means]), axis=0)
        bound = encoding.error_bound(tensor, count=3, total_weight=3)
        rounding = np.finfo(np.float32).eps * float(np.abs(expected).max())
        assert float(np.abs(made[tensor.name] - expected).max()) <= bound + rounding


def test_a_group_with_a_site_missing_is_named_and_left_out(grouped: CliFederation) -> None:
    spine = str(grouped.sites["spine"].path)
    assert main(["client", "pause", spine, "--reason", "maintenance"]) == 0
    try:
        settings = tiny_run(
            seed=1,
            federation__rounds=1,
            federation__join_timeout_seconds=10,
            federation__round_timeout_seconds=120,
        )
        summary = grouped.run("name=two_groups", *settings, *SECURE, seconds=500)
    finally:
        assert main(["client", "resume", spine]) == 0
    assert summary["status"] == "completed"
    events = grouped.events("two_groups")
    (dropped,) = (event for event in events if isinstance(event, GroupDropped))
    assert (dropped.group, dropped.clients) == ("west", GROUPS["west"])
    assert {event.client for event in events if isinstance(event, ClientFailed)} == {"spine"}
    (aggregated,) = (event for event in events if isinstance(event, RoundAggregated))
    assert set(aggregated.clients) == {*GROUPS["north"], *GROUPS["south"]}
