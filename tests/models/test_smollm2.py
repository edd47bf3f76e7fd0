"""The real model, end to end: converted right, loaded fast, sized right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors import safe_open
from support.model_settings import SMOLLM2, model_config, peft_config
from support.tiny_gguf import gguf_name, interleaved

from fedtune.models.adapted import adapter_spec, load_adapted_model
from fedtune.models.gguf import converted
from fedtune.models.resolve import resolve

pytestmark = pytest.mark.real_model


def test_converted_weights_are_what_the_reference_library_reads(smollm2_cache: Path) -> None:
    file = resolve(model_config(SMOLLM2)).path
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    with safe_open(converted(file, smollm2_cache) / "model.safetensors", "np") as weights:
        for name, heads in (
            ("model.embed_tokens.weight", None),
            ("model.layers.7.mlp.up_proj.weight", None),
            ("model.layers.7.self_attn.q_proj.weight", 9),
            ("model.layers.7.self_attn.k_proj.weight", 3),
        ):
            tensor = stored[gguf_name(name)]
            expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            ours = weights.get_tensor(name)
            assert np.array_equal(ours if heads is None else interleaved(ours, heads), expected), name


def test_the_quantized_model_answers_and_its_spec_needs_no_weights(smollm2_cache: Path) -> None:
    peft = peft_config(rank=16, alpha=32.0)
    model = load_adapted_model(model_config(SMOLLM2), peft, gradient_checkpointing=False)
    assert model.spec == adapter_spec(model_config(SMOLLM2), peft)
    assert len(model.spec.pairs) == 30 * 7
    assert model.info.adapter_parameters == 4_884_480
    assert model.info.parameters == 134_515_008
    turns = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = model.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    ids = torch.tensor([model.tokenizer(prompt).input_ids])
    model.model.eval()
    answer = model.model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False, use_cache=True
    )
    assert "Paris" in model.tokenizer.decode(answer[0, ids.shape[1] :])


MEASURING = """
import json, sys, time
import torch
from fedtune.config.compose import compose
from fedtune.data.tokenize import TokenizedExample
from fedtune.models.adapted import load_adapted_model
from fedtune.models.adapter import initial_adapter
from fedtune.models.estimate import estimate
from fedtune.training.memory import peak_memory_mib
from fedtune.training.train import train
import numpy as np

torch.set_num_threads(1)
config = compose(["model=smollm2", *sys.argv[1:]])
estimated = estimate(config).total_mib
began = time.process_time()
model = load_adapted_model(
    config.model, config.peft, gradient_checkpointing=config.training.gradient_checkpointing
)
load = time.process_time() - began
loaded_mib = peak_memory_mib()
model.load_adapter(initial_adapter(model.spec, 0))
stream = np.random.default_rng(0)
def row(i, length=80):
    mask = np.arange(length) >= 30
    return TokenizedExample(id=str(i), token_ids=stream.integers(0, 49000, length).astype(np.int32),
                            loss_mask=mask)
rows = [row(i) for i in range(config.training.microbatch_tokens // 80)]
train(model, [rows, rows], config=config.training, factors=("A", "B"), first_step=0, total_steps=2, seed=0)
print(json.dumps({"estimated": estimated, "measured": peak_memory_mib(), "load": load,
                  "loaded_mib": loaded_mib}))
"""


@pytest.mark.parametrize(
    "overrides",
    [
        ["training=default", "training.microbatch_tokens=256", "data.max_tokens=256"],
        ["training=low_memory", "training.packing=true"],
    ],
    ids=["default", "low_memory"],
)
def test_estimated_memory_is_within_a_fifth_of_the_measured_peak(
    smollm2_cache: Path, overrides: list[str]
) -> None:
    load_adapted_model(
        model_config(SMOLLM2, compute_dtype="auto"), peft_config(), gradient_checkpointing=False
    )
    done = subprocess.run(
        [sys.executable, "-c", MEASURING, *overrides],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["estimated"] == pytest.approx(figures["measured"], rel=0.2), figures
    # Processor time, which other programs on the machine do not lengthen as they do the wall clock's.
    assert figures["load"] < 4, figures
    assert figures["loaded_mib"] < 700, figures
