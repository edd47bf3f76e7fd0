"""The saved adapter against peft itself, which loads it without fedtune."""

from __future__ import annotations

import filecmp
import json
import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import load_file
from support.adapters import random_adapter, small_spec
from transformers import AutoModelForCausalLM

from fedtune.config.schema import ModelConfig, PeftConfig
from fedtune.errors import ModelError, RunError
from fedtune.export.adapter import save_adapter
from fedtune.export.merge import merge_adapter
from fedtune.models.adapted import AdaptedModel, load_adapted_model
from fedtune.models.messages import without_peft_warnings

PEFT = PeftConfig(method="lora", rank=4, alpha=12.0, dropout=0.05, target_modules="all-linear")
TOKENS = torch.tensor([[5, 17, 42, 101, 3, 77, 9, 200]])


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def adapted_model(folder: Path, peft: PeftConfig = PEFT) -> AdaptedModel:
    model = ModelConfig(
        name=str(folder), quantization="none", compute_dtype="float32", device="cpu", cache_dir=None
    )
    adapted = load_adapted_model(model, peft, gradient_checkpointing=False)
    adapted.load_adapter(random_adapter(adapted.spec, 3, scale=0.1))
    adapted.model.eval()
    return adapted


def logits(model: torch.nn.Module) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(input_ids=TOKENS).logits  # type: ignore[no-any-return]


def base(folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)  # type: ignore[no-any-return]


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "v_proj"), ("self_attn.o_proj", "mlp.up_proj")])
def test_peft_loads_the_files_and_computes_the_same_logits(
    tiny_model_dir: Path, tmp_path: Path, targets: str | tuple[str, ...]
) -> None:
    peft = replace(PEFT, target_modules=targets)
    adapted = adapted_model(tiny_model_dir, peft)
    save_adapter(adapted.read_adapter(), adapted.spec, peft, str(tiny_model_dir), tmp_path / "adapter")
    with without_peft_warnings():
        loaded = PeftModel.from_pretrained(base(tiny_model_dir), tmp_path / "adapter")
    expected = logits(adapted.model)
    assert torch.equal(logits(loaded), expected)
    assert not torch.allclose(logits(base(tiny_model_dir)), expected, atol=1e-3)


def test_the_files_say_what_the_adapter_is(tiny_model_dir: Path, tmp_path: Path) -> None:
    adapted = adapted_model(tiny_model_dir)
    adapter = adapted.read_adapter()
    save_adapter(adapter, adapted.spec, PEFT, "package:some-model/model.gguf", tmp_path / "adapter")
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == "package:some-model/model.gguf"
    assert (written["r"], written["lora_alpha"], written["lora_dropout"]) == (4, 12, 0.05)
    assert isinstance(written["lora_alpha"], int)
    assert written["task_type"] == "CAUSAL_LM"
    assert written["target_modules"] == sorted(
        ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    )
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert tensors.keys() == adapted.spec.shapes.keys()
    assert all(tensors[name].tobytes() == adapter[name].tobytes() for name in adapter)


def test_equal_adapters_are_equal_files_in_every_process(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from support.adapters import random_adapter, small_spec
from fedtune.config.schema import PeftConfig
from fedtune.export.adapter import save_adapter
peft = PeftConfig(method="lora", rank=2, alpha=4.0, dropout=0.0, target_modules=("a", "b", "q_proj", "e"))
spec = small_spec()
save_adapter(random_adapter(spec, 0), spec, peft, "base", Path(sys.argv[1]))
"""
    path = f"{Path(__file__).parents[1]}:{Path(__file__).parents[2]}"
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "there")], env=environment, check=True)
    spec = small_spec()
    peft = replace(PEFT, rank=2, alpha=4.0, dropout=0.0, target_modules=("e", "a", "q_proj", "b"))
    save_adapter(random_adapter(spec, 0), spec, peft, "base", tmp_path / "here")
    names = sorted(file.name for file in (tmp_path / "here").iterdir())
    assert names == ["adapter_config.json", "adapter_model.safetensors"]
    assert filecmp.cmpfiles(tmp_path / "here", tmp_path / "there", names, shallow=False)[0] == names


def test_an_older_adapter_is_replaced_whole(tiny_model_dir: Path, tmp_path: Path) -> None:
    adapted = adapted_model(tiny_model_dir)
    target = tmp_path / "adapter"
    for seed in (1, 2):
        target.mkdir(exist_ok=True)
        (target / f"left_{seed}").touch()
        save_adapter(random_adapter(adapted.spec, seed), adapted.spec, PEFT, "base", target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]
    assert sorted(path.name for path in target.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    expected = random_adapter(adapted.spec, 2)
    assert all(
        np.array_equal(tensor, expected[name])
        for name, tensor in load_file(target / "adapter_model.safetensors").items()
    )


def test_an_adapter_that_does_not_fit_is_refused_with_every_problem(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    spec = adapted_model(tiny_model_dir).spec
    adapter = random_adapter(spec, 0)
    first, second, *_ = spec.shapes
    adapter[first] = adapter[first].T
    del adapter[second]
    adapter["other"] = np.zeros((1, 1))
    with pytest.raises(ModelError) as caught:
        save_adapter(adapter, spec, replace(PEFT, alpha=8.0), "base", tmp_path / "adapter")
    text = str(caught.value)
    assert [problem.code for problem in caught.value.problems] == ["FT390"] * 4
    assert all(word in text for word in (first, second, "other", "2.0, the adapter's is 3.0"))
    assert not (tmp_path / "adapter").exists()


def test_the_merged_model_needs_no_adapter_and_computes_the_same_logits(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    adapted = adapted_model(tiny_model_dir)
    save_adapter(adapted.read_adapter(), adapted.spec, PEFT, str(tiny_model_dir), tmp_path / "adapter")
    merge_adapter(tiny_model_dir, tmp_path / "adapter", tmp_path / "new" / "merged")
    merged = base(tmp_path / "new" / "merged")
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.float32}
    torch.testing.assert_close(logits(merged), logits(adapted.model), rtol=1e-5, atol=1e-5)
    names = {path.name for path in (tmp_path / "new" / "merged").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["merged"]


def test_merged_weights_are_base_plus_scaled_product(tiny_model_dir: Path, tmp_path: Path) -> None:
    adapted = adapted_model(tiny_model_dir)
    adapter = adapted.read_adapter()
    save_adapter(adapter, adapted.spec, PEFT, str(tiny_model_dir), tmp_path / "adapter")
    merge_adapter(tiny_model_dir, tmp_path / "adapter", tmp_path / "merged")
    before = load_file(tiny_model_dir / "model.safetensors")
    after = load_file(tmp_path / "merged" / "model.safetensors")
    assert before.keys() == after.keys()
    products = {
        name_A.removeprefix("base_model.model.").replace("lora_A.", ""): 3.0
        * adapter[name_B].astype("float64")
        @ adapter[name_A].astype("float64")
        for name_A, name_B in adapted.spec.pairs
    }
    assert products.keys() < before.keys()
    for name, weight in before.items():
        expected = weight.astype("float64") + products.get(name, 0.0)
        np.testing.assert_allclose(after[name], expected, rtol=1e-6, atol=1e-7)


def test_a_merged_model_is_not_written_over_other_files(tiny_model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RunError, match="FT740: the folder for the merged model holds something already"):
        merge_adapter(tiny_model_dir, tmp_path / "adapter", tmp_path)


def test_a_merge_that_cannot_be_written_leaves_nothing(tiny_model_dir: Path, tmp_path: Path) -> None:
    adapted = adapted_model(tiny_model_dir)
    save_adapter(adapted.read_adapter(), adapted.spec, PEFT, str(tiny_model_dir), tmp_path / "adapter")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # the weights have 100 KB
    try:
        with pytest.raises(RunError) as caught:
            merge_adapter(tiny_model_dir, tmp_path / "adapter", tmp_path / "merged")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    [problem] = caught.value.problems
    assert (problem.code, problem.where) == ("FT705", str(tmp_path / "merged"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]
