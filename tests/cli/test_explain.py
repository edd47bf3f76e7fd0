"""``fedtune explain``: the reasons in words and as one object."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedtune import cli
from fedtune.config.compose import compose
from fedtune.config.methods import METHODS
from fedtune.errors import ConfigError
from fedtune.models.estimate import estimate


def settings(model: Path) -> list[str]:
    return [f"model.name={model}", "model.quantization=none", "peft.rank=4"]


def test_a_possible_combination_is_explained_and_priced(
    tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*settings(tiny_model_dir), "aggregation=alternating"]
    assert cli.main(["explain", *given, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["method"], found["possible"], found["problems"]) == ("alternating", True, [])
    expected = estimate(compose(given))
    assert found["costs"]["uplink_bytes"] == expected.uplink_bytes
    assert found["costs"]["downlink_bytes"] == expected.downlink_bytes
    assert found["costs"]["streams"]
    assert {each["method"] for each in found["methods"]} == set(METHODS)
    assert all(each["costs"] for each in found["methods"])


def test_an_impossible_one_is_explained_with_what_would_do_and_ends_with_2(
    tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*settings(tiny_model_dir), "aggregation=svd", "secagg=on"]
    assert cli.main(["explain", *given]) == ConfigError.exit_code
    out, err = capsys.readouterr()
    assert out == ""
    assert "NO updates         each update" in err
    assert "alternating   yes: exact" in err
    assert 'FT105: aggregation.method="svd" looks at single updates' in err
    assert cli.main(["explain", *given, "--json"]) == ConfigError.exit_code
    found = json.loads(capsys.readouterr().out)
    assert (found["possible"], found["costs"]) == (False, None)
    assert found["problems"][0]["code"] == "FT105"
    assert {each["about"]: each["met"] for each in found["requirements"]}["updates"] is False


@pytest.mark.parametrize(
    ("method", "suited", "why"),
    [
        ("ffa", True, "one factor: noise enters the products once"),
        ("alternating", False, "both factors, in turn or together: noise is multiplied"),
        ("svd", False, "each update by itself: noise in a sum would not cover it"),
    ],
)
def test_what_noise_would_need_is_told_and_that_no_run_adds_any(
    tiny_model_dir: Path, capsys: pytest.CaptureFixture[str], method: str, suited: bool, why: str
) -> None:
    given = [*settings(tiny_model_dir), f"aggregation={method}"]
    assert cli.main(["explain", *given, "dp=on", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["requirements"][-1]
    assert (found["about"], found["met"], found["has"]) == ("noise", suited, why)
    assert cli.main(["explain", *given, "dp=on"]) == 0
    assert "no run adds noise yet. Sums of one factor: ffa, core, fedsa" in capsys.readouterr().err
    assert cli.main(["explain", *given, "dp=off", "--json"]) == 0
    about = [each["about"] for each in json.loads(capsys.readouterr().out)["requirements"]]
    assert "noise" not in about


def test_what_is_no_configuration_is_an_error_as_everywhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", "aggregation=svdd"]) == ConfigError.exit_code
    assert "did you mean aggregation=svd" in capsys.readouterr().err
