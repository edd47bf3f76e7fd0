"""A frozen adapter beside the trained one, against one adapter that holds the rows of both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.adapters import random_adapter
from support.model_settings import model_config, peft_config

from fedtune.aggregation.carrying import with_side_car
from fedtune.models.adapted import AdaptedModel, load_adapted_model
from fedtune.models.adapter import Adapter


@pytest.fixture(params=["none", "nf4", "int8"])
def model(request: pytest.FixtureRequest, tiny_model_dir: Path) -> AdaptedModel:
    settings = model_config(tiny_model_dir, quantization=request.param)
    return load_adapted_model(settings, peft_config(rank=2), gradient_checkpointing=False)


def logits(model: AdaptedModel) -> torch.Tensor:
    result: torch.Tensor = model.model(input_ids=torch.arange(3, 30)[None]).logits
    return result


def halves(model: AdaptedModel, rank: int) -> tuple[Adapter, Adapter]:
    return random_adapter(model.spec, 1, scale=0.1), random_adapter(model.spec.with_rank(rank), 2, scale=0.1)


def test_both_together_are_one_adapter_of_the_sum_of_their_ranks(model: AdaptedModel) -> None:
    adapter, side_car = halves(model, 3)
    model.load_adapter(adapter)
    alone = logits(model)
    model.set_side_car(side_car)
    both = logits(model)
    model.set_side_car({})
    torch.testing.assert_close(logits(model), alone)
    model.set_rank(5)
    model.load_adapter(with_side_car(adapter, side_car))
    torch.testing.assert_close(both, logits(model), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(both, alone, atol=1e-3)


def test_gradients_reach_the_adapter_alone_and_are_those_of_the_whole(model: AdaptedModel) -> None:
    adapter, side_car = halves(model, 3)
    model.load_adapter(adapter)
    model.set_side_car(side_car)
    model.set_trainable(("A", "B"))
    logits(model).square().sum().backward()  # type: ignore[no-untyped-call]
    beside = {name: parameter.grad for name, parameter in model.parameters().items()}
    model.set_side_car({})
    model.set_rank(5)
    model.load_adapter(with_side_car(adapter, side_car))
    model.set_trainable(("A", "B"))
    logits(model).square().sum().backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.parameters().items():
        rows = parameter.grad[:2] if ".lora_A." in name else parameter.grad[:, :2]  # type: ignore[index]
        scale = float(rows.abs().max())
        np.testing.assert_allclose(beside[name], rows, atol=1e-3 * scale)  # type: ignore[arg-type]


def test_another_rank_is_another_spec_and_back_again(model: AdaptedModel) -> None:
    before = model.spec
    model.set_rank(4)
    assert model.spec == before.with_rank(4)
    assert all(tuple(value.shape) == model.spec.shapes[name] for name, value in model.parameters().items())
    model.set_rank(2)
    assert model.spec == before
    adapter, _ = halves(model, 1)
    model.load_adapter(adapter)
    assert all(np.array_equal(model.read_adapter()[name], adapter[name]) for name in adapter)
