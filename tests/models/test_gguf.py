from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.tiny_gguf import make_tiny_gguf
from support.tiny_model import CHATML, make_tokenizer
from transformers import AutoTokenizer

from fedtune.errors import ModelError
from fedtune.models.gguf import converted, gguf_config


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray], Path]:
    """A GGUF file, the weights in it by the reference library, and a cache it was converted into."""
    folder = tmp_path_factory.mktemp("gguf")
    expected = make_tiny_gguf(folder / "tiny.gguf")
    cache = folder / "cache"
    converted(folder / "tiny.gguf", cache)
    return folder / "tiny.gguf", expected, cache


def test_every_weight_is_what_the_reference_library_reads(
    tiny: tuple[Path, dict[str, np.ndarray], Path],
) -> None:
    file, expected, cache = tiny
    weights = load_file(converted(file, cache) / "model.safetensors")
    assert sorted(weights) == sorted(expected)
    for name, value in expected.items():
        assert weights[name].dtype == np.float32
        assert np.array_equal(weights[name], value), name


def test_the_tokenizer_comes_along_with_its_chat_template(
    tiny: tuple[Path, dict[str, np.ndarray], Path],
) -> None:
    file, _, cache = tiny
    tokenizer = AutoTokenizer.from_pretrained(converted(file, cache))
    original = make_tokenizer()
    text = "<|im_start|>user\nÄ  b\n<|im_end|>"
    assert tokenizer(text).input_ids == original(text).input_ids
    assert tokenizer.chat_template == CHATML
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|pad|>")


def test_the_key_is_the_content_and_it_is_converted_once(
    tiny: tuple[Path, dict[str, np.ndarray], Path], tmp_path: Path
) -> None:
    file, _, cache = tiny
    first = converted(file, cache)
    written = (first / "model.safetensors").stat().st_mtime_ns
    shutil.copy(file, tmp_path / "renamed.gguf")
    assert converted(tmp_path / "renamed.gguf", cache) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == written
    make_tiny_gguf(tmp_path / "other.gguf", seed=1)
    assert converted(tmp_path / "other.gguf", cache) != first


def test_the_architecture_is_read_without_converting(
    tiny: tuple[Path, dict[str, np.ndarray], Path], tmp_path: Path
) -> None:
    file, _, cache = tiny
    unconverted = gguf_config(file, tmp_path)
    assert not (tmp_path / "converted").exists()
    from_cache = gguf_config(file, cache)
    for field in ("hidden_size", "num_hidden_layers", "num_key_value_heads", "vocab_size", "head_dim"):
        assert getattr(unconverted, field) == getattr(from_cache, field)


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "text"])
def test_a_damaged_file_is_refused_and_leaves_no_entry(
    tiny: tuple[Path, dict[str, np.ndarray], Path], tmp_path: Path, damage: str
) -> None:
    whole = tiny[0].read_bytes()
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(
        {
            "truncated": whole[: len(whole) // 2],
            "garbage": b"GGUF" + np.random.default_rng(0).bytes(1000),
            "empty": b"",
            "text": b"not a model",
        }[damage]
    )
    with pytest.raises(ModelError, match="FT304: this GGUF file cannot be read") as caught:
        converted(bad, tmp_path / "cache")
    assert caught.value.problems[0].where == str(bad)
    assert not [path for path in (tmp_path / "cache" / "converted").iterdir() if path.suffix != ".lock"]
