"""What a user would write instead of fedtune: Flower's own LLM example, for measurements beside it.

The shape is that of Flower's ``examples/flowertune-llm``: a ClientApp whose train function loads the
quantized base by `from_pretrained`, puts a LoRA adapter on it, loads the arrays of the message, trains, and
returns the whole adapter; Flower's FedAvg over Flower's simulation engine on Ray, without evaluation. The
trainer is a plain loop, padded batches and torch's AdamW, which costs less than the example's ``SFTTrainer``.
With ``cached`` an actor keeps its model between calls, which the example does not.

``python -m fedtune.simulation.flower_example SETTINGS.json`` prints the seconds that its rounds took.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

__all__ = ["ExampleSettings"]


@dataclass(frozen=True, kw_only=True)
class ExampleSettings:
    """What both sides of a measurement have in common.

    Attributes:
        model: Folder of the base model's weights.
        rows: A file of each client's rows: a list of [token ids, loss mask].
        clients: Virtual clients.
        cohort: Clients of a round.
        rounds: Rounds.
        steps: Optimizer steps of a client in a round.
        examples_per_step: Rows of a step.
        learning_rate: Of AdamW.
        rank: Of the adapter, as are the next two.
        alpha: Its scale.
        dropout: Its dropout.
        compute_dtype: Of the base's arithmetic.
        threads: CPU threads, and cores, of a client.
        cached: Whether an actor keeps its model.
    """

    model: str
    rows: tuple[str, ...]
    clients: int
    cohort: int
    rounds: int
    steps: int
    examples_per_step: int
    learning_rate: float
    rank: int
    alpha: float
    dropout: float
    compute_dtype: str
    threads: int
    cached: bool


def client_app(settings: ExampleSettings) -> ClientApp:
    """Return the example's ClientApp."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        torch.set_num_threads(settings.threads)
        rows = _rows(settings.rows[int(context.node_config["partition-id"])])
        model = _kept_model(settings) if settings.cached else _model(settings)
        set_peft_model_state_dict(model, message.content.array_records["arrays"].to_torch_state_dict())
        server_round: Any = message.content.config_records["config"]["server-round"]
        loss = _trained(model, rows, settings, server_round)
        metrics = MetricRecord({"train_loss": loss, "num-examples": len(rows)})
        arrays = ArrayRecord(get_peft_model_state_dict(model))
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    return app


def server_app(settings: ExampleSettings, seconds: list[float]) -> ServerApp:
    """Return the example's ServerApp, which notes when its rounds begin and end."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, _: Context) -> None:
        start = ArrayRecord(get_peft_model_state_dict(_model(settings)))
        strategy = FedAvg(
            fraction_train=settings.cohort / settings.clients,
            fraction_evaluate=0.0,
            min_train_nodes=settings.cohort,
            min_available_nodes=settings.clients,
        )
        while len(list(grid.get_node_ids())) < settings.clients:
            time.sleep(0.1)
        seconds.append(time.time())
        strategy.start(grid=grid, initial_arrays=start, num_rounds=settings.rounds, timeout=3600)
        seconds.append(time.time())

    return app


def _model(settings: ExampleSettings) -> Any:
    dtype = getattr(torch, settings.compute_dtype)
    base = AutoModelForCausalLM.from_pretrained(
        settings.model,
        dtype=dtype,
        device_map={"": "cpu"},
        quantization_config=BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        ),
    )
    base.requires_grad_(False)
    lora = LoraConfig(
        r=settings.rank,
        lora_alpha=int(settings.alpha),
        lora_dropout=settings.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base, lora)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


@lru_cache(maxsize=1)
def _kept_model(settings: ExampleSettings) -> Any:
    return _model(settings)


def _rows(path: str) -> list[tuple[list[int], list[bool]]]:
    return [(ids, mask) for ids, mask in json.loads(Path(path).read_text(encoding="utf-8"))]


def _trained(
    model: Any, rows: list[tuple[list[int], list[bool]]], settings: ExampleSettings, round_number: int
) -> float:
    model.train()
    model.config.use_cache = False
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.0)
    loss, at = 0.0, (round_number - 1) * settings.steps * settings.examples_per_step
    for _ in range(settings.steps):
        batch = [rows[(at + row) % len(rows)] for row in range(settings.examples_per_step)]
        at += settings.examples_per_step
        width = max(len(ids) for ids, _ in batch)
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        present = torch.zeros(len(batch), width, dtype=torch.long)
        labels = torch.full((len(batch), width), -100)
        for line, (tokens, mask) in enumerate(batch):
            ids[line, : len(tokens)] = torch.tensor(tokens)
            present[line, : len(tokens)] = 1
            chosen = torch.tensor(mask)
            labels[line, : len(tokens)][chosen] = ids[line, : len(tokens)][chosen]
        optimizer.zero_grad()
        step_loss = model(input_ids=ids, attention_mask=present, labels=labels).loss
        step_loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        loss = float(step_loss)
    return loss


def _run(settings: ExampleSettings) -> float:
    from flwr.simulation import run_simulation  # noqa: PLC0415  # brings Ray

    seconds: list[float] = []
    run_simulation(
        server_app=server_app(settings, seconds),
        client_app=client_app(settings),
        num_supernodes=settings.clients,
        backend_config={"client_resources": {"num_cpus": settings.threads, "num_gpus": 0.0}},
    )
    return seconds[1] - seconds[0]


if __name__ == "__main__":
    values = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print(json.dumps({"seconds": _run(ExampleSettings(**values | {"rows": tuple(values["rows"])}))}))
