"""The page of measurements says what the files of results say."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def performance() -> ModuleType:
    spec = importlib.util.spec_from_file_location("performance", ROOT / "simulations" / "performance.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["performance"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def result(**figures: object) -> dict[str, object]:
    return {
        "bench": "local",
        "figures": figures,
        "machine": {"cpu": "A processor", "threads": 2, "gpu": None},
    }


def test_the_page_is_what_the_script_writes(performance: ModuleType) -> None:
    assert performance.PAGE.read_text(encoding="utf-8") == performance.page(performance.read_results())


def test_every_result_has_rows_and_every_row_of_a_result_a_figure(performance: ModuleType) -> None:
    for bench, printed in performance.read_results().items():
        assert [row.key for row in performance.ROWS[bench] if row.key not in printed["figures"]] == []


def test_a_wish_that_is_missed_is_said_to_be(performance: ModuleType) -> None:
    page = performance.page({"local": result(speedup_over_plain=1.5, memory_over_plain=0.4)})
    assert "| `local.speedup_over_plain` | 1.5 |  | ≥ 1.6, missed |" in page
    assert "| `local.memory_over_plain` | 0.4 |  | ≤ 0.5 |" in page
    assert "cpu A processor, threads 2." in page


def test_a_median_has_its_range(performance: ModuleType) -> None:
    page = performance.page({"local": result(speedup_over_plain=2.0, speedup_over_plain_spread=[1.9, 2.1])})
    assert "| 2 | 1.9 to 2.1 | ≥ 1.6 |" in page
