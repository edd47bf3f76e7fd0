from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import get_peft_model_state_dict
from support.model_settings import model_config, peft_config
from support.model_state import frozen_state, gradients, next_token_loss
from support.tiny_model import make_tiny_model
from transformers import GPT2Config, GPT2LMHeadModel

from fedtune.errors import ModelError
from fedtune.models import adapted
from fedtune.models.adapted import (
    AdaptedModel,
    adapter_spec,
    load_adapted_model,
    load_tokenizer,
    shared_adapted_model,
)
from fedtune.models.adapter import Adapter, initial_adapter

QUANTIZATIONS = ["nf4", "int8", "none"]
TOKENS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, size=(2, 30)))


def load(folder: Path, *, gradient_checkpointing: bool = False, **settings: object) -> AdaptedModel:
    """A model with an adapter that does something, so that gradients reach both factors."""
    loaded = load_adapted_model(
        model_config(folder, **settings), peft_config(), gradient_checkpointing=gradient_checkpointing
    )
    loaded.load_adapter(random_adapter(loaded))
    return loaded


def random_adapter(model: AdaptedModel, seed: int = 0) -> Adapter:
    stream = np.random.default_rng(seed)
    return {
        name: stream.normal(scale=0.05, size=shape).astype(model.spec.dtype)
        for name, shape in model.spec.shapes.items()
    }


@pytest.fixture(scope="module")
def models(tiny_model_dir: Path) -> dict[str, AdaptedModel]:
    """One model for each quantization, shared by tests that leave it as it was."""
    return {quantization: load(tiny_model_dir, quantization=quantization) for quantization in QUANTIZATIONS}


@pytest.fixture(params=QUANTIZATIONS)
def model(models: dict[str, AdaptedModel], request: pytest.FixtureRequest) -> AdaptedModel:
    loaded = models[request.param]
    loaded.load_adapter(random_adapter(loaded))
    loaded.set_trainable(("A", "B"))
    return loaded


def test_a_loaded_adapter_reads_back_bit_for_bit(model: AdaptedModel) -> None:
    adapter = random_adapter(model, seed=5)
    adapter[next(iter(adapter))][0, :4] = [-0.0, np.float32(1e-45), np.inf, np.nan]
    model.load_adapter(adapter)
    read = model.read_adapter()
    assert list(read) == list(model.spec.shapes)
    for name, value in read.items():
        assert value.dtype == adapter[name].dtype
        assert value.tobytes() == adapter[name].tobytes(), name


def test_what_was_read_is_a_copy(model: AdaptedModel) -> None:
    before = model.read_adapter()
    for value in model.read_adapter().values():
        value[:] = 7
    given = random_adapter(model, seed=6)
    model.load_adapter(given)
    for value in given.values():
        value[:] = 8
    model.load_adapter(before)
    assert all(np.array_equal(value, before[name]) for name, value in model.read_adapter().items())


def test_one_factor_can_be_read_alone(model: AdaptedModel) -> None:
    assert tuple(model.read_adapter(("A",))) == model.spec.names(("A",))
    assert tuple(model.read_adapter(("B",))) == model.spec.names(("B",))


def test_names_and_values_are_those_of_pefts_state_dict(model: AdaptedModel) -> None:
    theirs = get_peft_model_state_dict(model.model)
    ours = model.read_adapter()
    assert sorted(theirs) == list(ours)
    assert all(np.array_equal(theirs[name].numpy(), value) for name, value in ours.items())


@pytest.mark.parametrize("factors", [("A",), ("B",), ("A", "B"), ()])
def test_gradients_reach_the_trainable_factors_and_nothing_else(
    model: AdaptedModel, factors: tuple[str, ...]
) -> None:
    model.set_trainable(factors)  # type: ignore[arg-type]
    wanted = {id(parameter) for parameter in model.parameters(factors).values()}  # type: ignore[arg-type]
    assert {id(p) for p in model.model.parameters() if p.requires_grad} == wanted
    if factors:
        found = gradients(model.model, TOKENS)
        assert len(found) == len(wanted)
        assert all(gradient.abs().sum() > 0 for gradient in found.values())


def test_the_adapter_adds_the_scaled_product(models: dict[str, AdaptedModel]) -> None:
    model = models["none"]
    adapter = random_adapter(model, seed=3)
    model.load_adapter(adapter)
    layer = model.model.get_submodule("base_model.model.model.layers.1.mlp.up_proj")
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        added = (layer(x) - layer.base_layer(x)).numpy()
    name = "base_model.model.model.layers.1.mlp.up_proj"
    product = adapter[f"{name}.lora_B.weight"] @ adapter[f"{name}.lora_A.weight"]
    assert np.allclose(added, model.spec.scaling * x.numpy() @ product.T, atol=1e-6)


def test_the_start_computes_what_the_base_computes(model: AdaptedModel) -> None:
    model.load_adapter(initial_adapter(model.spec, 1))
    with torch.no_grad():
        adapted_logits = model.model(TOKENS).logits
        with model.model.disable_adapter():
            assert torch.equal(model.model(TOKENS).logits, adapted_logits)


def test_an_adapter_that_does_not_fit_is_refused_with_all_that_is_wrong(model: AdaptedModel) -> None:
    before = model.read_adapter()
    bad = random_adapter(model, seed=9)
    names = list(bad)
    del bad[names[0]]
    bad[names[1]] = bad[names[1]][:-1]
    bad[names[2]] = bad[names[2]].astype(np.float64)
    bad["another.lora_A.weight"] = np.zeros((4, 4), np.float32)
    with pytest.raises(ModelError) as caught:
        model.load_adapter(bad)
    assert [problem.code for problem in caught.value.problems] == ["FT308"] * 4
    said = str(caught.value)
    for part in (
        "another.lora_A.weight is no tensor of this adapter",
        f"{names[0]} is missing",
        f"{names[1]} has the shape",
        f"{names[2]} is float64, not float32",
    ):
        assert part in said
    assert all(np.array_equal(value, before[name]) for name, value in model.read_adapter().items())


@pytest.mark.parametrize("how", ["eval", "by hand"])
def test_gradients_are_the_same_before_and_after_an_evaluation(model: AdaptedModel, how: str) -> None:
    before = gradients(model.model, TOKENS)
    if how == "eval":
        model.model.eval()
    else:
        for module in model.model.modules():
            module.training = False
    with torch.no_grad():
        model.model(TOKENS)
    model.model.train()
    after = gradients(model.model, TOKENS)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_evaluation_computes_the_function_that_is_trained(model: AdaptedModel) -> None:
    with torch.no_grad():
        training = model.model.train()(TOKENS).logits
        evaluation = model.model.eval()(TOKENS).logits
    model.model.train()
    assert torch.equal(training, evaluation)


def test_training_evaluation_and_generation_leave_the_base_as_it_was(model: AdaptedModel) -> None:
    before = frozen_state(model.model)
    optimizer = torch.optim.AdamW(model.parameters().values(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        next_token_loss(model.model, TOKENS).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.model.eval()
    with torch.no_grad():
        model.model(TOKENS)
        model.model.generate(input_ids=TOKENS[:1, :5], max_new_tokens=3, do_sample=False, use_cache=True)
    model.model.train()
    assert frozen_state(model.model) == before
    assert not [
        name
        for name, parameter in model.model.named_parameters()
        if parameter.grad is not None and "lora_" not in name
    ]


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_checkpointing_changes_no_gradient(
    models: dict[str, AdaptedModel], tiny_model_dir: Path, quantization: str
) -> None:
    recomputing = load(tiny_model_dir, quantization=quantization, gradient_checkpointing=True)
    plain = models[quantization]
    plain.load_adapter(random_adapter(plain))
    plain.set_trainable(("A", "B"))
    calls = []
    layer = recomputing.model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    layer.register_forward_hook(lambda *_: calls.append(1))
    ours, theirs = gradients(plain.model, TOKENS), gradients(recomputing.model, TOKENS)
    assert len(calls) == 2  # once forward, once again for the backward pass
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    recomputing.set_trainable(("B",))
    assert len(gradients(recomputing.model, TOKENS)) == len(recomputing.spec.names(("B",)))


def test_a_bfloat16_base_trains_a_float32_adapter(tiny_model_dir: Path) -> None:
    for quantization in QUANTIZATIONS:
        model = load(tiny_model_dir, quantization=quantization, compute_dtype="bfloat16")
        assert model.info.compute_dtype == "bfloat16"
        assert model.spec.dtype == "float32"
        assert {p.dtype for p in model.parameters().values()} == {torch.float32}
        assert {g.dtype for g in gradients(model.model, TOKENS).values()} == {torch.float32}
        assert model.model(TOKENS).logits.dtype == torch.bfloat16


def test_a_float64_base_trains_a_float64_adapter_with_the_right_gradient(tiny_model_dir: Path) -> None:
    model = load(tiny_model_dir, quantization="none", compute_dtype="float64")
    assert model.spec.dtype == "float64"
    found = gradients(model.model, TOKENS)
    name, parameter = next(iter(model.parameters().items()))
    gradient = next(value for key, value in found.items() if key.replace(".default", "") == name)

    def loss() -> float:
        with torch.no_grad():
            return float(next_token_loss(model.model, TOKENS))

    step = 1e-6
    for place in ((0, 0), (1, 7), (3, 63)):
        with torch.no_grad():
            parameter[place] += step
            above = loss()
            parameter[place] -= 2 * step
            below = loss()
            parameter[place] += step
        assert float(gradient[place]) == pytest.approx((above - below) / (2 * step), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize(
    "targets", ["all-linear", ("q_proj", "v_proj"), "down_proj", ("layers.1.mlp.up_proj",)]
)
def test_the_spec_from_the_description_is_the_loaded_models(
    tiny_model_dir: Path, tmp_path: Path, quantization: str, targets: str | tuple[str, ...]
) -> None:
    peft = peft_config(target_modules=targets, rank=3, alpha=4.5)
    loaded = load_adapted_model(
        model_config(tiny_model_dir, quantization=quantization), peft, gradient_checkpointing=True
    )
    shutil.copy(tiny_model_dir / "config.json", tmp_path)  # and nothing else: no weights are read
    described = adapter_spec(model_config(tmp_path, quantization=quantization), peft)
    assert described == loaded.spec
    assert described.scaling == 1.5
    assert loaded.info.adapter_parameters == described.parameters()


def test_the_spec_of_an_architecture_with_transposed_layers_is_the_loaded_models(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=260, n_embd=64, n_layer=2, n_head=2, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    for file in make_tiny_model(tmp_path / "tokenizer").glob("*token*"):
        shutil.copy(file, tmp_path)
    for quantization in QUANTIZATIONS:
        settings = model_config(tmp_path, quantization=quantization)
        loaded = load_adapted_model(settings, peft_config(), gradient_checkpointing=True)
        assert adapter_spec(settings, peft_config()) == loaded.spec
        loaded.load_adapter(random_adapter(loaded))
        assert len(gradients(loaded.model, TOKENS)) == len(loaded.spec.shapes)


def test_loading_leaves_torchs_random_state_alone(tiny_model_dir: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = load_adapted_model(model_config(tiny_model_dir), peft_config(), gradient_checkpointing=False)
    adapter_spec(model_config(tiny_model_dir), peft_config())
    assert torch.equal(torch.rand(3), expected)
    second = load_adapted_model(model_config(tiny_model_dir), peft_config(), gradient_checkpointing=False)
    other = second.read_adapter()
    assert all(np.array_equal(value, other[name]) for name, value in first.read_adapter().items())


def test_the_facts_about_the_base_are_right(tiny_model_dir: Path) -> None:
    from transformers import AutoModelForCausalLM

    parameters = AutoModelForCausalLM.from_pretrained(tiny_model_dir).num_parameters()
    for quantization in QUANTIZATIONS:
        info = load(tiny_model_dir, quantization=quantization).info
        assert info.parameters == parameters
        assert (info.name, info.quantization) == (str(tiny_model_dir), quantization)
        assert (info.device, info.compute_dtype) == ("cpu", "float32")
        assert len(info.hash) == 64
        assert 0 < info.load_seconds < 60


def test_nf4_that_bitsandbytes_would_read_wrongly_is_refused(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "odd", intermediate_size=96)
    with pytest.raises(ModelError, match=r"FT311: .* 2 of this model .*down_proj with 96"):
        load(folder, quantization="nf4")
    for quantization in ("int8", "none"):
        gradients(load(folder, quantization=quantization).model, TOKENS)


def test_the_shared_model_is_loaded_once_and_replaced_by_another(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapted, "_shared", {})
    settings = model_config(tiny_model_dir)
    one = shared_adapted_model(settings, peft_config(), gradient_checkpointing=True)
    assert shared_adapted_model(settings, peft_config(), gradient_checkpointing=True) is one
    other = shared_adapted_model(settings, peft_config(rank=2), gradient_checkpointing=True)
    assert other is not one
    assert list(adapted._shared.values()) == [other]


def test_the_tokenizer_is_the_models_and_loaded_once(tiny_model_dir: Path) -> None:
    settings = model_config(tiny_model_dir)
    assert load_tokenizer(settings) is load_tokenizer(model_config(tiny_model_dir))
    assert load(tiny_model_dir).tokenizer is load_tokenizer(settings)


USING = """
import sys
from fedtune.config.schema import ModelConfig, PeftConfig
from fedtune.models.adapted import load_adapted_model
import torch
peft = PeftConfig(method="lora", rank=4, alpha=8.0, dropout=0.1, target_modules="all-linear")
for quantization in ("nf4", "int8", "none"):
    model = ModelConfig(name=sys.argv[1], quantization=quantization, compute_dtype="auto", device="cpu",
                        cache_dir=sys.argv[2])
    loaded = load_adapted_model(model, peft, gradient_checkpointing=True)
    tokens = torch.arange(20)[None]
    loaded.model(input_ids=tokens, labels=tokens).loss.backward()
    with torch.no_grad():
        loaded.model.eval()(input_ids=tokens)
    loaded.model.generate(input_ids=tokens, max_new_tokens=2, do_sample=False, use_cache=True)
"""


def test_loading_and_using_a_model_prints_nothing_and_warns_of_nothing(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", USING, str(tiny_model_dir), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
