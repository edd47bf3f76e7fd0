"""From a name in the configuration to a method, built in or really installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fedtune.aggregation.linear import ALTERNATING, FEDAVG, FFA
from fedtune.aggregation.registry import aggregator, method_names
from fedtune.config.schema import AggregationConfig
from fedtune.errors import ConfigError, Problem

PLUGIN = """
from fedtune.aggregation.linear import LinearAggregator

def median():
    return LinearAggregator(name="median", exact=False, label="ours", schedule=(("A",),))

def broken():
    raise RuntimeError("needs a licence")

class NotOne:
    name = "not_one"
"""


def config(method: str) -> AggregationConfig:
    return AggregationConfig(method=method, weighting="examples", error_meter=True)


def problem(method: str) -> Problem:
    with pytest.raises(ConfigError) as caught:
        aggregator(config(method))
    [only] = caught.value.problems
    return only


def install(folder: Path, package: str, entry_points: str) -> None:
    """Lay out what pip leaves of an installed distribution."""
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[fedtune.aggregators]\n{entry_points}\n")


@pytest.fixture
def site_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "our_methods.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "our_methods", raising=False)
    return tmp_path


def test_built_in_names() -> None:
    assert aggregator(config("fedavg")) is FEDAVG
    assert aggregator(config("ffa")) is FFA
    assert aggregator(config("alternating")) is ALTERNATING
    assert method_names()[:3] == ("fedavg", "ffa", "alternating")


def test_an_unknown_name_says_what_there_is() -> None:
    found = problem("fedavgg")
    assert found.code == "FT191"
    assert found.where == "aggregation.method"
    assert found.what == "there is no aggregation method 'fedavgg'"
    assert found.fix.startswith("did you mean 'fedavg'? choose one of fedavg, ffa, alternating")


def test_an_installed_method_is_found_by_its_name(site_packages: Path) -> None:
    install(site_packages, "ours", "median = our_methods:median")
    method = aggregator(config("median"))
    assert (method.name, method.factors(1)) == ("median", ("A",))
    assert "median" in method_names()


def test_an_installed_method_cannot_take_a_built_in_name(site_packages: Path) -> None:
    install(site_packages, "ours", "fedavg = our_methods:median")
    assert aggregator(config("fedavg")) is FEDAVG
    assert method_names().count("fedavg") == 1


@pytest.mark.parametrize(
    ("entry_point", "said"),
    [
        (
            "our_methods:broken",
            "(our_methods:broken of ours) cannot be loaded: RuntimeError: needs a licence",
        ),
        ("our_methods:gone", "(our_methods:gone of ours) cannot be loaded: AttributeError"),
        ("no_such_module:x", "(no_such_module:x of ours) cannot be loaded: ModuleNotFoundError"),
        ("our_methods:NotOne", "(our_methods:NotOne of ours) gives NotOne, which is no Aggregator"),
    ],
)
def test_an_installed_method_that_does_not_work_names_its_package(
    site_packages: Path, entry_point: str, said: str
) -> None:
    install(site_packages, "ours", f"median = {entry_point}")
    found = problem("median")
    assert found.code == "FT192"
    assert found.what.startswith(f"the aggregation method 'median' {said}")


def test_a_name_that_two_packages_install_is_refused(site_packages: Path) -> None:
    install(site_packages, "ours", "median = our_methods:median")
    install(site_packages, "theirs", "median = our_methods:median")
    assert problem("median").what == "the aggregation method 'median' is installed by ours and by theirs"
