"""What ``fedtune bench local`` compares is the same task, and its formula is a count."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.model_settings import peft_config
from support.training import random_rows, tiny_adapted, training_config
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from transformers import AutoModelForCausalLM

from fedtune.config.compose import compose
from fedtune.training.bench import Side, prefixed
from fedtune.training.bench_plain import PlainLoop
from fedtune.training.bench_rate import step_operations
from fedtune.training.step import Optimization


def test_both_sides_have_the_same_loss_on_the_same_rows_step_after_step(tiny_model_dir: Path) -> None:
    adapted = tiny_adapted(tiny_model_dir, compute_dtype="float32")
    rows = random_rows(0, [(9, 6), (3, 2), (12, 1)])
    training = training_config(max_gradient_norm=1.0, gradient_checkpointing=True)
    config = replace(compose([]), peft=peft_config(rank=4, alpha=8.0), training=training)
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    plain = PlainLoop(base, config)
    theirs = dict(plain.model.named_parameters())
    for name, parameter in adapted.parameters().items():
        stem = name.removesuffix(".weight")
        theirs[f"{stem}.default.weight"].data.copy_(parameter.data)
    local = Optimization(adapted.model, adapted.parameters(), training)
    for _ in range(3):
        loss, _ = local.step(rows, training.learning_rate, "a step")
        assert plain.step(rows) == pytest.approx(loss, rel=1e-4)


def test_the_formula_counts_what_torch_counts(tiny_model_dir: Path) -> None:
    adapted = tiny_adapted(tiny_model_dir, compute_dtype="float32")
    adapted.model.config._attn_implementation = "eager"
    (row,) = random_rows(0, [(40, 25)])
    optimization = Optimization(adapted.model, adapted.parameters(), training_config())
    with _Counting() as counter:
        optimization.step([row], 1e-3, "a step")
    expected = step_operations(adapted, tokens=64, targets=25)
    hidden, layers, rank, (query, key) = 64, 2, 4, (64, 32)
    # Plain products compute all pairs, visible or not; the lowest layer's inputs need no gradient.
    hidden_pairs = 6 * 64 * 63 * hidden * layers
    lowest = 2 * 64 * hidden * (query + 2 * key) + 3 * 2 * 64 * rank * hidden
    assert counter.operations == expected + hidden_pairs - lowest


class _Counting(TorchDispatchMode):
    """Adds up what torch's own formulas say of each product."""

    operations = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        formula = flop_registry.get(function.overloadpacket)
        self.operations += formula(*args, **(kwargs or {}), out_val=out) if formula else 0
        return out


def test_figures_stand_under_both_names() -> None:
    assert prefixed({"a": 1.0}, "local.") == {"a": 1.0, "local.a": 1.0}


def test_a_measured_process_that_ends_is_no_figure() -> None:
    with pytest.raises(RuntimeError, match="ended with 0"):
        Side("fedtune.errors")
