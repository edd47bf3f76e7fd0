"""How much of the processor's best matrix product a training step reaches.

The step is one of the demo's model, unquantized, in float32, without checkpointing, on 1,024 tokens in one
sequence, the last third of them response. Its arithmetic is that of its matrix products alone, two operations
a multiply and add, with T tokens, P targets, N values in the base's linear layers, L layers of width H
(heads times their size), V tokens in the vocabulary and D hidden values, rank r:

* base: forward 2 T N; backward the same again, for the gradient of the layers' inputs;
* adapter: forward 2 T r (in + out) over the layers, backward twice that, for inputs and factors;
* attention: forward 2 products of T (T + 1) / 2 visible pairs, backward twice that: 6 T (T + 1) H L;
* head: forward 2 P V D, backward the same.

Whatever else is computed (norms, rotations, softmax, a recomputed product) takes time and does not count.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from fedtune.config.compose import compose
from fedtune.config.schema import Config
from fedtune.data.tokenize import TokenizedExample
from fedtune.models.adapted import AdaptedModel, load_adapted_model
from fedtune.models.adapter import FACTORS, initial_adapter
from fedtune.models.hardware import set_threads
from fedtune.training.modes import training_mode
from fedtune.training.step import Optimization

__all__ = ["fraction_of_matmul_rate", "step_operations"]

TOKENS = 1024
SIZES = (512, 768, 1024, 1536, 2048, 3072)
"""Rows and columns of the square products that are tried."""


def fraction_of_matmul_rate(repeats: int) -> dict[str, float | list[float]]:
    """Measure both in this process, in turn; keys as of the bench."""
    config = compose(
        [
            "experiment=demo",
            "model.quantization=none",
            "model.compute_dtype=float32",
            f"training.microbatch_tokens={TOKENS}",
            f"data.max_tokens={TOKENS}",
        ]
    )
    set_threads(config.training.threads)
    adapted = load_adapted_model(config.model, config.peft, gradient_checkpointing=False)
    step = _step(adapted, config)
    step()
    products = {size: _product(size) for size in SIZES}
    best = max(SIZES, key=lambda size: max(products[size]() for _ in range(3)))
    peaks, steps = [], []
    operations = step_operations(adapted, tokens=TOKENS, targets=TOKENS // 3)
    for _ in range(max(3, repeats)):
        peaks += [products[best]() for _ in range(3)]
        started = time.perf_counter()
        step()
        steps.append(operations / (time.perf_counter() - started))
    peak = max(peaks)
    return {
        "fraction_of_matmul_rate": statistics.median(steps) / peak,
        "fraction_of_matmul_rate_spread": [min(steps) / peak, max(steps) / peak],
        "step_gflops": statistics.median(steps) / 1e9,
        "matmul_gflops": peak / 1e9,
        "matmul_size": float(best),
    }


def step_operations(adapted: AdaptedModel, *, tokens: int, targets: int) -> float:
    """Return the floating-point operations of a step's matrix products, by the formula above."""
    text = adapted.model.config.get_text_config()
    shapes = adapted.spec.shapes
    base = adapter = 0
    for name_A, name_B in adapted.spec.pairs:
        (rank, inputs), (outputs, _) = shapes[name_A], shapes[name_B]
        base += inputs * outputs
        adapter += rank * (inputs + outputs)
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    width = text.num_attention_heads * size
    attention = 6 * tokens * (tokens + 1) * width * text.num_hidden_layers
    head = 4 * targets * text.vocab_size * text.hidden_size
    return float(4 * tokens * base + 6 * tokens * adapter + attention + head)


def _step(adapted: AdaptedModel, config: Config) -> Callable[[], None]:
    stream = np.random.default_rng(0)
    text: Any = adapted.model.config.get_text_config()
    # The last token is no input: one more makes the sequence whole.
    ids = stream.integers(0, text.vocab_size, TOKENS + 1).astype(np.int32)
    row = TokenizedExample(id="drawn", token_ids=ids, loss_mask=np.arange(TOKENS + 1) > TOKENS - TOKENS // 3)
    adapted.load_adapter(initial_adapter(adapted.spec, 0))
    training = replace(config.training, microbatch_tokens=TOKENS + 1)
    optimization = Optimization(adapted.model, adapted.parameters(FACTORS), training)

    def step() -> None:
        with training_mode(adapted.model):
            optimization.step([row], training.learning_rate, "a step of the benchmark")

    return step


def _product(size: int) -> Callable[[], float]:
    """Return what measures the operations a second of a product of two square matrices."""
    one, other, out = torch.randn(size, size), torch.randn(size, size), torch.empty(size, size)

    def rate() -> float:
        started = time.perf_counter()
        torch.mm(one, other, out=out)
        return float(2 * size**3 / (time.perf_counter() - started))

    return rate
