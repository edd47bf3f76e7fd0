"""Clients that do not train: all else is as it is, and its cost does not grow with those who are away."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedtune.config.compose import compose
from fedtune.federation.checkpoint import load_checkpoint
from fedtune.models.adapted import adapter_spec
from fedtune.models.adapter import initial_adapter
from fedtune.observability.events import ClientEvaluated, ClientTrained, RoundStarted, Sites, read_events
from fedtune.observability.run_directory import RunDirectory
from fedtune.simulation import bench_scale, sites
from fedtune.simulation.bench_scale import Scale, measure
from fedtune.simulation.grid import InProcessGrid


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> tuple[Scale, Path]:
    """30 clients, 4 a round, 3 evaluated, two rounds."""
    folder = tmp_path_factory.mktemp("scale")
    tiny = [f"model.name={tiny_model_dir}", "model.quantization=none", "peft.rank=2"]
    drawn = ["federation.clients_per_round=4", "evaluation.clients=3"]
    return measure(30, 2, folder, [*tiny, *drawn]), folder / "runs" / "scale"


def test_all_are_greeted_and_only_who_is_drawn_is_asked_or_written(run: tuple[Scale, Path]) -> None:
    measured, path = run
    events = read_events(path / "rounds.jsonl")
    assert [len(event.sites) for event in events if isinstance(event, Sites)] == [30]
    drawn = [set(event.clients) for event in events if isinstance(event, RoundStarted)]
    assert [len(cohort) for cohort in drawn] == [4, 4]
    trained = {event.client for event in events if isinstance(event, ClientTrained)}
    assert trained == set.union(*drawn)
    evaluated = [(event.round, event.client) for event in events if isinstance(event, ClientEvaluated)]
    assert not evaluated, "no rows are held out here"
    assert {file.stem for file in (path / "sites").glob("*.json")} == trained
    assert measured.clients == 30
    assert len(measured.round_seconds) == 2


def test_the_rounds_add_the_updates_that_were_sent(run: tuple[Scale, Path]) -> None:
    _, path = run
    values = json.loads(next(iter((path / "rounds.jsonl").read_text().splitlines())))["config"]
    config = compose([f"model.name={values['model']['name']}", "model.quantization=none", "peft.rank=2"])
    spec = adapter_spec(config.model, config.peft)
    with RunDirectory.create(path, resume=True) as directory:
        after = load_checkpoint(directory, 2, spec).adapter
    start = initial_adapter(spec, config.seed)
    moved = np.concatenate([(after[name] - start[name]).ravel() for name in spec.shapes])
    assert 0 < float(np.abs(moved).mean()) < 0.01


def test_the_figures_have_the_keys_that_others_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def canned(clients: int, rounds: int) -> Scale:
        return Scale(
            clients=clients,
            adapter_mib=9.3,
            startup_seconds=1.0 + clients / 1000,
            round_seconds=(1.0,) * rounds,
            peak_memory_mib=500.0,
            log_mib=1.0,
            report_mib=1.0,
            report_seconds=1.0,
        )

    monkeypatch.setattr(bench_scale, "_in_a_process", canned)
    figures = bench_scale.bench_scale(on_part=lambda _: None)
    assert figures["memory_ratio_10000_over_100"] == 1.0
    assert figures["startup_ms_per_client"] == pytest.approx(1.0)
    assert {"seconds_per_round", "peak_memory_mib", "seconds_per_round_spread", "report_mib"} <= set(figures)


def test_a_site_is_greeted_without_tokenizing_a_row(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model_dir: Path
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(
        sites, "tokenize_all", lambda rows, *_: asked.append(len(rows)) or list(range(len(rows)))
    )
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "response": "b"}\n' * 600)
    config = compose(
        [
            "data=files",
            f"data.files=[{tmp_path / 'rows.jsonl'}]",
            "data.held_out_fraction=0.5",
            "partition=iid",
            "partition.clients=300",
            f"model.name={tiny_model_dir}",
        ]
    )
    virtual = sites.load_sites(config)
    everyone = [virtual.site(index) for index in range(300)]
    assert [len(site.train) for site in everyone] == [1] * 300
    assert not asked
    assert list(everyone[0].train) == [0]
    assert everyone[0].train[-1:] == [0]
    assert asked == [1]
    assert len(virtual._tokenized) == sites.KEPT_SITES


def test_a_grid_holds_nothing_for_nodes_that_keep_nothing() -> None:
    app = ClientApp()

    @app.query()
    def answer(message: Message, context: Context) -> Message:
        if context.node_id == 7:
            context.state["count"] = context.state.get("count", RecordDict())
        return Message(RecordDict(), reply_to=message)

    grid = InProcessGrid(app, 10**9)
    tracemalloc.start()
    try:
        nodes = grid.get_node_ids()
        messages = [Message(RecordDict(), node, "query") for node in (2, 7, 10**9 + 1)]
        assert len(list(grid.send_and_receive(messages))) == 3
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert (min(nodes), max(nodes)) == (2, 10**9 + 1)
