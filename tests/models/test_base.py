from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from support.model_settings import model_config
from support.model_state import frozen_state
from support.tiny_gguf import make_tiny_gguf
from support.tiny_model import make_tiny_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from fedtune.errors import ModelError
from fedtune.models.base import load_base, read_tokenizer
from fedtune.models.base_hash import base_hash
from fedtune.models.gguf import converted

# Dettmers et al., "QLoRA", 2023, appendix E: the NF4 data type.
NF4 = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ]
)


@pytest.fixture
def model_copy(tmp_path: Path, tiny_model_dir: Path) -> Path:
    """A model directory to damage."""
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))


def edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def refusal(folder: Path, **settings: Any) -> ModelError:
    with pytest.raises(ModelError) as caught:
        load_base(model_config(folder, **settings))
    return caught.value


def linear_weights(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """What each linear layer multiplies by: its output for the unit vectors."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            with torch.no_grad():
                found[name] = module(torch.eye(module.in_features)).T.float().numpy()
    return found


def test_nf4_is_the_published_code_with_two_levels_of_scales(tiny_model_dir: Path) -> None:
    original = load_file(tiny_model_dir / "model.safetensors")
    loaded = linear_weights(load_base(model_config(tiny_model_dir, quantization="nf4")).model)
    assert len(loaded) == 14
    for name, weight in loaded.items():
        blocks = original[f"{name}.weight"].reshape(-1, 64)
        scales = np.abs(blocks).max(axis=1, keepdims=True)
        nearest = np.abs((blocks / scales)[:, :, None] - NF4).argmin(axis=2)
        expected = (NF4[nearest] * scales).reshape(weight.shape)
        # The scales themselves are kept in 8 bits, less their mean, in blocks of 256. Halfway between two
        # codes either is right, so errors are compared, not codes.
        exact = original[f"{name}.weight"]
        assert np.all(np.abs(weight - exact) <= np.abs(expected - exact) + 0.01 * scales.max()), name
        codes = weight.reshape(-1, 64) / scales
        assert np.abs(codes[:, :, None] - NF4).min(axis=2).max() <= 0.05, name


def test_int8_is_rows_of_integers_with_a_scale_each(tiny_model_dir: Path) -> None:
    original = load_file(tiny_model_dir / "model.safetensors")
    loaded = linear_weights(load_base(model_config(tiny_model_dir, quantization="int8")).model)
    assert len(loaded) == 14
    for name, weight in loaded.items():
        exact = original[f"{name}.weight"]
        step = np.abs(exact).max(axis=1, keepdims=True) / 127
        assert np.all(np.abs(weight - exact) <= 0.55 * step), name
        assert np.abs(weight / step - np.round(weight / step)).max() <= 0.1, name


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_unquantized_base_is_exact(tiny_model_dir: Path, dtype: str) -> None:
    base = load_base(model_config(tiny_model_dir, quantization="none", compute_dtype=dtype))
    assert base.compute_dtype == getattr(torch, dtype)
    original = load_file(tiny_model_dir / "model.safetensors")
    for name, parameter in base.model.named_parameters():
        assert parameter.dtype == getattr(torch, dtype)
        assert np.array_equal(parameter.detach().numpy(), original[name]), name


@pytest.mark.parametrize("quantization", ["nf4", "int8", "none"])
def test_nothing_of_the_base_requires_a_gradient(tiny_model_dir: Path, quantization: str) -> None:
    base = load_base(model_config(tiny_model_dir, quantization=quantization)).model
    assert not [name for name, parameter in base.named_parameters() if parameter.requires_grad]
    assert base.config.use_cache is False


@pytest.mark.parametrize("quantization", ["nf4", "int8", "none"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_cached_copy_holds_the_bytes_of_a_fresh_quantization(
    tmp_path: Path, quantization: str, dtype: str
) -> None:
    make_tiny_gguf(tmp_path / "tiny.gguf")
    settings = model_config(
        tmp_path / "tiny.gguf", quantization=quantization, compute_dtype=dtype, cache_dir=str(tmp_path)
    )
    first, second = load_base(settings), load_base(settings)
    how = {
        "nf4": lambda: BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, dtype),
        ),
        "int8": lambda: BitsAndBytesConfig(load_in_8bit=True),
        "none": lambda: None,
    }[quantization]()
    fresh = AutoModelForCausalLM.from_pretrained(
        converted(tmp_path / "tiny.gguf", tmp_path),
        dtype=getattr(torch, dtype),
        quantization_config=how,
        device_map={"": "cpu"},
    )
    assert frozen_state(second.model) == frozen_state(first.model) == frozen_state(fresh)
    token_ids = torch.arange(40)[None]
    with torch.no_grad():
        cached_logits, fresh_logits = second.model(token_ids).logits, fresh.train()(token_ids).logits
    assert cached_logits.dtype == getattr(torch, dtype)
    assert torch.equal(cached_logits, fresh_logits)


def test_the_hash_is_of_content_and_not_of_place_or_settings(tiny_model_dir: Path, tmp_path: Path) -> None:
    here = base_hash(model_config(tiny_model_dir, cache_dir=str(tmp_path)))
    copied = shutil.copytree(tiny_model_dir, tmp_path / "copy")
    edit_config(copied, transformers_version="9.9", dtype="bfloat16", _name_or_path="elsewhere")
    settings = model_config(copied, quantization="none", compute_dtype="float64", cache_dir=str(tmp_path))
    assert base_hash(settings) == here == load_base(settings).hash
    edit_config(copied, rms_norm_eps=1e-3)
    assert base_hash(settings) != here


def test_the_hash_sees_a_single_changed_bit(tiny_model_dir: Path, model_copy: Path, tmp_path: Path) -> None:
    file = model_copy / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    one = base_hash(model_config(tiny_model_dir, cache_dir=str(tmp_path)))
    assert base_hash(model_config(model_copy, cache_dir=str(tmp_path))) != one


def test_two_gguf_files_have_two_hashes(tmp_path: Path) -> None:
    make_tiny_gguf(tmp_path / "a.gguf", seed=0)
    make_tiny_gguf(tmp_path / "b.gguf", seed=1)
    shutil.copy(tmp_path / "a.gguf", tmp_path / "c.gguf")
    a, b, c = (base_hash(model_config(tmp_path / f"{x}.gguf", cache_dir=str(tmp_path))) for x in "abc")
    assert a == c != b


def test_weights_that_are_missing_are_not_made_up(model_copy: Path) -> None:
    weights = load_file(model_copy / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, model_copy / "model.safetensors", metadata={"format": "pt"})
    for quantization in ("nf4", "none"):
        said = str(refusal(model_copy, quantization=quantization))
        assert "FT303: its weights lack 1 tensors, such as model.layers.1.mlp.up_proj.weight" in said


def test_weights_of_another_shape_are_refused(model_copy: Path) -> None:
    edit_config(model_copy, intermediate_size=192)
    said = str(refusal(model_copy, quantization="none"))
    assert "FT303: 6 tensors have another shape than config.json says" in said


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff" * 100])
def test_damaged_weights_are_refused(model_copy: Path, content: bytes) -> None:
    (model_copy / "model.safetensors").write_bytes(content)
    assert "FT303: its weights cannot be loaded" in str(refusal(model_copy))


def test_weights_cut_short_are_refused(model_copy: Path) -> None:
    file = model_copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "FT303: its weights cannot be loaded" in str(refusal(model_copy))


def test_weights_that_are_not_used_are_mentioned(model_copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = load_file(model_copy / "model.safetensors")
    weights["vision.weight"] = np.zeros(3, np.float32)
    save_file(weights, model_copy / "model.safetensors", metadata={"format": "pt"})
    with caplog.at_level(logging.WARNING, logger="fedtune"):
        load_base(model_config(model_copy))
    assert "1 tensors have no place in it and are unused, such as vision.weight" in caplog.text


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model_type": 3}'])
def test_a_damaged_description_is_refused(model_copy: Path, content: str) -> None:
    (model_copy / "config.json").write_text(content)
    assert str(refusal(model_copy)).startswith(("FT303: its config.json is damaged", "FT307"))


def test_an_unknown_architecture_is_refused(model_copy: Path) -> None:
    edit_config(model_copy, model_type="llama-of-tomorrow")
    assert "FT307: its architecture is none that the installed transformers knows" in str(refusal(model_copy))


def test_code_that_comes_with_a_model_is_never_run(model_copy: Path) -> None:
    ran = model_copy / "ran"
    (model_copy / "modeling_theirs.py").write_text(
        f"from pathlib import Path\nPath({str(ran)!r}).touch()\nclass C: pass\n"
    )
    theirs = {"AutoConfig": "modeling_theirs.C", "AutoModelForCausalLM": "modeling_theirs.C"}
    edit_config(model_copy, model_type="theirs", auto_map=theirs)
    assert "FT307" in str(refusal(model_copy))
    assert not ran.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["LlamaForSequenceClassification"]}, "is no causal language model"),
        ({"model_type": "t5", "architectures": None}, "has no causal language model for 't5'"),
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            r"its weights are quantized already \(gptq\)",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_before_its_weights_are_read(
    model_copy: Path, changes: dict[str, Any], message: str
) -> None:
    edit_config(model_copy, **changes)
    (model_copy / "model.safetensors").write_bytes(b"never read")
    with pytest.raises(ModelError, match=f"FT307: .*{message}"):
        load_base(model_config(model_copy))


def test_a_tokenizer_that_is_missing_is_said(model_copy: Path) -> None:
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (model_copy / file).unlink()
    with pytest.raises(ModelError, match="FT310: this model's tokenizer cannot be loaded"):
        read_tokenizer(model_config(model_copy))


def test_a_tokenizer_without_padding_pads_with_its_end(model_copy: Path) -> None:
    file = model_copy / "tokenizer_config.json"
    fields = json.loads(file.read_text())
    del fields["pad_token"]
    file.write_text(json.dumps(fields))
    tokenizer = read_tokenizer(model_config(model_copy))
    assert tokenizer.pad_token == tokenizer.eos_token == "<|im_end|>"


def test_an_untied_head_is_loaded_too(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "untied", tie_word_embeddings=False)
    base = load_base(model_config(folder)).model
    assert base.lm_head.weight is not base.model.embed_tokens.weight
    original = load_file(folder / "model.safetensors")["lm_head.weight"]
    assert np.array_equal(base.lm_head.weight.detach().numpy(), original)
