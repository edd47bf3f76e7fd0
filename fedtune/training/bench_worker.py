"""A process that trains the demo's model step by step, as it is told; one for each side of a comparison.

It prints one JSON object a line: first ``{"base_mib": …}``, then one for each line that it reads, which is
the number of a step. Run as ``python -m fedtune.training.bench_worker SIDE ROWS [OVERRIDE …]``.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence

import psutil
import torch

from fedtune.config.compose import compose
from fedtune.config.schema import Config
from fedtune.data.load import load_examples
from fedtune.data.tokenize import TokenizedExample, tokenize_all
from fedtune.models.adapted import load_adapted_model, load_tokenizer
from fedtune.models.adapter import FACTORS, initial_adapter
from fedtune.models.hardware import set_threads
from fedtune.observability.memory import peak_memory_mib
from fedtune.training.bench_plain import PlainLoop, load_plain_base
from fedtune.training.modes import training_mode
from fedtune.training.step import Optimization
from fedtune.training.walk import examples_for_round

__all__ = ["SETTINGS", "STEPS", "rows_of_steps"]

SETTINGS = ("experiment=demo", "training.gradient_checkpointing=true")
"""Of both sides: the demo, with checkpointing."""

STEPS = 32
"""Steps for which rows are drawn; a later one begins again at the first."""

Step = Callable[[Sequence[TokenizedExample]], float]


def rows_of_steps(config: Config, rows: int) -> list[list[TokenizedExample]]:
    """Draw the rows of each step from the demo's data, the same for everyone."""
    examples = load_examples(config.data).examples
    walk = examples_for_round(
        len(examples), start=0, count_per_step=rows, steps=STEPS, seed=config.seed, site="bench"
    )
    tokenizer = load_tokenizer(config.model)
    return [tokenize_all([examples[row] for row in step], tokenizer, config.data) for step in walk.steps]


def _local(config: Config) -> Step:
    adapted = load_adapted_model(
        config.model, config.peft, gradient_checkpointing=config.training.gradient_checkpointing
    )
    adapted.load_adapter(initial_adapter(adapted.spec, config.seed))
    _say(base_mib=_held_mib())
    optimization = Optimization(adapted.model, adapted.parameters(FACTORS), config.training)

    def step(rows: Sequence[TokenizedExample]) -> float:
        with training_mode(adapted.model):
            loss, _ = optimization.step(rows, config.training.learning_rate, "a step of the benchmark")
        return float(loss)

    return step


def _plain(config: Config) -> Step:
    loop = PlainLoop(load_plain_base(config), config)
    _say(base_mib=_held_mib())
    return loop.step


def _held_mib() -> float:
    return float(psutil.Process().memory_info().rss / 2**20)


def _say(**values: float) -> None:
    print(json.dumps(values), flush=True)


def main(side: str, rows: int, overrides: Sequence[str]) -> None:
    """Train until there is nothing more to read."""
    config = compose([*SETTINGS, *overrides])
    torch.manual_seed(0)
    set_threads(config.training.threads)
    drawn = rows_of_steps(config, rows)
    step = {"local": _local, "plain": _plain}[side](config)
    for line in sys.stdin:
        chosen = drawn[int(line) % len(drawn)]
        started = time.perf_counter()
        loss = step(chosen)
        seconds = time.perf_counter() - started
        _say(
            seconds=seconds,
            tokens=sum(len(row.token_ids) for row in chosen),
            loss=loss,
            peak_mib=peak_memory_mib(),
        )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
