"""``fedtune bench``: real processes are measured, and the JSON has the shape that others read."""

import json

import pytest

from fedtune import cli
from fedtune.commands import bench


@pytest.mark.real_model
def test_startup_is_measured_over_fresh_processes(capsys: pytest.CaptureFixture[str]) -> None:
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
