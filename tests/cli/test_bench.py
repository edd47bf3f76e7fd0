"""``fedtune bench``: real processes are measured, and the JSON has the shape that others read."""

import builtins
import functools
import json
from typing import Any

import pytest

from fedtune import cli
from fedtune.commands import bench
from fedtune.secagg import bench as secagg_bench

Captured = pytest.CaptureFixture[str]


@pytest.mark.real_model
def test_startup_is_measured_over_fresh_processes(capsys: Captured) -> None:
    assert cli.main(["bench", "startup", "--repeats", "1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result) == {"bench", "figures", "machine"}
    assert result["bench"] == "startup"
    figures = result["figures"]
    for key in ("help_seconds", "import_seconds", "model_load_seconds"):
        assert 0 < figures[f"{key}_min"] <= figures[key] <= figures[f"{key}_max"]
        assert figures[f"{key}_repeats"] == 1
    assert result["machine"]["cpus"] >= 1


def test_a_process_that_fails_is_no_measurement() -> None:
    with pytest.raises(Exception, match="returned non-zero exit status 3"):
        bench._wall([bench.sys.executable, "-c", "raise SystemExit(3)"])


@pytest.fixture
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every part of the benchmark as it is, on vectors and cohorts that take no time."""
    unmasking = secagg_bench._unmasking
    monkeypatch.setattr(secagg_bench, "PARAMETERS", 10_000)
    monkeypatch.setattr(secagg_bench, "CLIENTS", 20)
    monkeypatch.setattr(
        secagg_bench, "_errors", functools.partial(_with, secagg_bench._errors, parameters=1000)
    )
    monkeypatch.setattr(secagg_bench, "_scale", functools.partial(_with, secagg_bench._scale, parameters=50))
    monkeypatch.setattr(
        secagg_bench,
        "_unmasking",
        lambda *, members, parameters, repeats: {
            key.replace("_10", f"_{members}"): value
            for key, value in unmasking(members=10, parameters=parameters, repeats=repeats).items()
        },
    )


def _with(measure: Any, *, parameters: int, **sizes: int) -> Any:
    return measure(parameters=parameters, **sizes)


@pytest.mark.usefixtures("small_sizes")
def test_secagg_prints_numbers_facts_and_spreads_in_the_shape_of_every_bench(capsys: Captured) -> None:
    assert cli.main(["bench", "secagg", "--scale", "--json"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert set(result) == {"bench", "figures", "machine"}
    assert result["bench"] == "secagg"
    figures = result["figures"]
    assert figures["scale_sum_exact"] is True
    assert figures["scale_clients"] == 20
    for key in ("mask_seconds", "flower_seconds", "unmask_seconds_10", "unmask_seconds_100"):
        least, most = figures[f"{key}_spread"]
        assert 0 < least <= figures[key] <= most
    assert figures["wire_bytes_over_flower_32"] < 1
    assert all(isinstance(value, int | float | bool | list) for value in figures.values())
    assert "scale_sum_exact           yes" in err
    assert " to " in next(line for line in err.splitlines() if line.startswith("mask_seconds_spread"))


@pytest.mark.usefixtures("small_sizes")
def test_secagg_names_each_part_before_it_is_measured_and_scales_only_when_asked(capsys: Captured) -> None:
    assert cli.main(["bench", "secagg"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    parts = [line for line in err.splitlines() if line.startswith("measuring ")]
    assert len(parts) == 5
    assert "scale_" not in err


@pytest.mark.usefixtures("small_sizes")
def test_a_flower_without_its_secagg_is_named_and_no_crash(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def gone(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("flwr.common.secure_aggregation"):
            raise ImportError(f"No module named {name!r}")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", gone)
    assert cli.main(["bench", "secagg", "--json"]) == 9
    (problem,) = json.loads(capsys.readouterr().out)["error"]["problems"]
    assert problem["code"] == "FT804"
    assert "flwr.common.secure_aggregation" in problem["what"]


def test_aggregation_is_measured(capsys: Captured) -> None:
    assert cli.main(["bench", "aggregation", "--size", "384", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    figures = result["figures"]
    assert result["bench"] == "aggregation"
    assert figures["svd_error_difference"] <= 1e-6
    assert figures["exact_error_max"] <= 1e-6
    assert figures["memory_ratio_200_over_10"] <= 1.05
    assert figures["uplink_ratio"] == 0.5
