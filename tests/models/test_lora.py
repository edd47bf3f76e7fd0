from __future__ import annotations

from pathlib import Path

import pytest
from support.model_settings import model_config, peft_config
from support.tiny_model import make_tiny_model

from fedtune.errors import ModelError, Problem
from fedtune.models.adapted import adapter_spec


def problems(folder: Path, targets: str | tuple[str, ...]) -> tuple[Problem, ...]:
    with pytest.raises(ModelError) as caught:
        adapter_spec(model_config(folder), peft_config(target_modules=targets))
    return caught.value.problems


def adapted_modules(folder: Path, targets: str | tuple[str, ...]) -> set[str]:
    spec = adapter_spec(model_config(folder), peft_config(target_modules=targets))
    prefix, suffix = "base_model.model.", ".lora_A.weight"
    return {name.removeprefix(prefix).removesuffix(suffix) for name, _ in spec.pairs}


def test_all_linear_is_every_linear_layer_but_the_head(tiny_model_dir: Path, tmp_path: Path) -> None:
    layers = {
        f"model.layers.{layer}.{name}"
        for layer in range(2)
        for name in (
            *(f"self_attn.{letter}_proj" for letter in "qkvo"),
            *(f"mlp.{kind}_proj" for kind in ("gate", "up", "down")),
        )
    }
    assert adapted_modules(tiny_model_dir, "all-linear") == layers
    untied = make_tiny_model(tmp_path / "untied", tie_word_embeddings=False)
    assert adapted_modules(untied, "all-linear") == layers


def test_a_target_is_the_end_of_a_name(tiny_model_dir: Path) -> None:
    both = {"model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"}
    assert adapted_modules(tiny_model_dir, "q_proj") == both
    assert adapted_modules(tiny_model_dir, ("self_attn.q_proj",)) == both
    one = "model.layers.1.self_attn.q_proj"
    assert adapted_modules(tiny_model_dir, (one,)) == {one}


def test_every_target_that_matches_nothing_is_listed_with_what_was_meant(tiny_model_dir: Path) -> None:
    first, second = problems(tiny_model_dir, ("q_prj", "v_proj", "transformer.h"))
    assert first.code == second.code == "FT305"
    assert first.what == "no module of this model is called 'q_prj'"
    assert first.where == "peft.target_modules=q_prj"
    assert first.fix.startswith("did you mean q_proj")
    assert second.fix.startswith("It has down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj;")


@pytest.mark.parametrize("target", ["proj", "q_proj.weight", "", ".q_proj", "Q_PROJ", "q_.*"])
def test_part_of_a_name_or_a_pattern_matches_nothing(tiny_model_dir: Path, target: str) -> None:
    (problem,) = problems(tiny_model_dir, (target,))
    assert problem.code == "FT305"


@pytest.mark.parametrize(
    ("target", "kind"),
    [("self_attn", "LlamaAttention"), ("input_layernorm", "LlamaRMSNorm"), ("layers.0", "LlamaDecoderLayer")],
)
def test_what_is_not_linear_is_refused_once(tiny_model_dir: Path, target: str, kind: str) -> None:
    (problem,) = problems(tiny_model_dir, (target,))
    assert problem.code == "FT306"
    assert f"is a {kind}, not a linear layer" in problem.what


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_tensors_indexed_by_tokens_are_refused(tmp_path: Path, tied: bool, target: str) -> None:
    folder = make_tiny_model(tmp_path / "model", tie_word_embeddings=tied)
    (problem,) = problems(folder, ("q_proj", target))
    assert problem.code == "FT306"
    assert "is indexed by tokens: an update of it would show which words the data holds" in problem.what
