from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.model_settings import model_config, peft_config
from support.tiny_model import make_tiny_model

from fedtune.aggregation.registry import aggregator
from fedtune.config.compose import compose
from fedtune.config.schema import Config
from fedtune.errors import ModelError
from fedtune.models.adapted import adapter_spec, load_adapted_model
from fedtune.models.estimate import SCHEDULES, Estimate, estimate
from fedtune.training.delta import Delta
from fedtune.updates.encode import encode
from fedtune.updates.protect import protect


def config(folder: Path, *, training: dict[str, Any] | None = None, **changes: Any) -> Config:
    base = compose([])
    return replace(
        base,
        model=model_config(folder, **changes.pop("model", {})),
        peft=peft_config(**changes.pop("peft", {})),
        aggregation=replace(base.aggregation, **changes.pop("aggregation", {})),
        secagg=replace(base.secagg, **changes.pop("secagg", {})),
        updates=replace(base.updates, **changes.pop("updates", {})),
        training=replace(base.training, **(training or {})),
    )


def of(folder: Path, **changes: Any) -> Estimate:
    return estimate(config(folder, **changes))


def test_the_total_is_the_libraries_and_the_larger_of_loading_and_the_four_parts(
    tiny_model_dir: Path,
) -> None:
    found = of(tiny_model_dir)
    four = found.parameters_mib + found.gradients_mib + found.optimizer_states_mib + found.activations_mib
    assert found.training_mib == pytest.approx(four)
    assert found.total_mib == pytest.approx(found.libraries_mib + max(found.loading_mib, four))


@pytest.mark.parametrize("quantization", ["nf4", "int8", "none"])
def test_the_base_is_sized_as_it_is_held(tiny_model_dir: Path, quantization: str) -> None:
    settings = {"quantization": quantization}
    loaded = load_adapted_model(
        model_config(tiny_model_dir, **settings), peft_config(), gradient_checkpointing=False
    )
    held = sum(
        value.nbytes
        for name, value in loaded.model.state_dict().items()
        if hasattr(value, "nbytes")
        and "lora_" not in name
        and "lm_head" not in name  # tied: the embedding again
        and not name.endswith(
            ("quant_map", "weight_format", "__nf4")
        )  # of a fixed size, whatever the layer's
    )
    found = of(tiny_model_dir, model=settings)
    adapter = 4 * loaded.spec.nbytes()
    assert found.parameters_mib * 2**20 - adapter == pytest.approx(held, rel=0.05)
    assert found.base_parameters == loaded.info.parameters
    assert found.adapter_parameters == loaded.info.adapter_parameters


@pytest.mark.parametrize("method", ["fedavg", "ffa", "alternating"])
def test_the_schedules_are_those_of_the_aggregators(method: str) -> None:
    built = aggregator(replace(compose([]).aggregation, method=method))
    schedule = SCHEDULES[method]
    for round_number in range(1, 7):
        assert built.factors(round_number) == schedule[(round_number - 1) % len(schedule)]


def test_traffic_is_the_trained_factors_up_and_the_adapter_down(tiny_model_dir: Path) -> None:
    spec = adapter_spec(model_config(tiny_model_dir), peft_config())
    both = of(tiny_model_dir, aggregation={"method": "fedavg"})
    assert (both.uplink_bytes, both.downlink_bytes) == (spec.nbytes(), spec.nbytes())
    assert of(tiny_model_dir, aggregation={"method": "ffa"}).uplink_bytes == spec.nbytes(("B",))
    alternating = of(tiny_model_dir, aggregation={"method": "alternating"})
    assert alternating.uplink_bytes == spec.nbytes() // 2
    masked = of(tiny_model_dir, secagg={"enabled": True, "ring_bits": 16})
    assert masked.uplink_bytes == spec.parameters() * 2
    assert alternating.downlink_bytes == spec.nbytes()


@pytest.mark.parametrize(("kind", "bits"), [("int8", 8), ("int4", 4)])
@pytest.mark.parametrize("method", ["fedavg", "ffa", "alternating"])
def test_traffic_of_quantized_updates_is_what_the_encoder_makes(
    tiny_model_dir: Path, kind: str, bits: int, method: str
) -> None:
    updates = {"quantization": kind, "block_size": 64}
    settings = config(tiny_model_dir, aggregation={"method": method}, updates=updates)
    spec = adapter_spec(settings.model, settings.peft)
    rounds = []
    for round_number in (1, 2):
        factors = aggregator(settings.aggregation).factors(round_number)
        delta = Delta(tensors={name: np.ones(spec.shapes[name], "float32") for name in spec.names(factors)})
        encoded, _ = encode(protect(delta), settings.updates)
        rounds.append(sum(array.nbytes for array in encoded.tensors.values()))
    found = of(tiny_model_dir, aggregation={"method": method}, updates=updates)
    assert found.uplink_bytes == sum(rounds) // 2
    trained = of(tiny_model_dir, aggregation={"method": method}).uplink_bytes // 4
    # Tensors of 64 values and more: a scale for each 64, and little beside it.
    assert found.uplink_bytes == pytest.approx(trained * (bits / 8 + 4 / 64), rel=0.05)
    assert found.downlink_bytes == spec.nbytes()


def test_each_setting_moves_its_own_part(tiny_model_dir: Path) -> None:
    plain = of(tiny_model_dir, training={"optimizer": "adamw"})
    small = of(tiny_model_dir, training={"optimizer": "adamw8bit"})
    assert small.optimizer_states_mib == pytest.approx(plain.optimizer_states_mib / 4)
    assert small.activations_mib == plain.activations_mib
    one_factor = of(tiny_model_dir, aggregation={"method": "ffa"})
    assert one_factor.gradients_mib < plain.gradients_mib
    assert one_factor.parameters_mib == plain.parameters_mib
    long = of(tiny_model_dir, training={"microbatch_tokens": 4096})
    assert long.activations_mib > 2 * plain.activations_mib - 40
    assert long.gradients_mib == plain.gradients_mib
    recomputed = of(tiny_model_dir, training={"microbatch_tokens": 4096, "gradient_checkpointing": True})
    assert recomputed.activations_mib < long.activations_mib
    dropped = of(tiny_model_dir, peft={"dropout": 0.1}, training={"microbatch_tokens": 4096})
    assert dropped.activations_mib > long.activations_mib


def test_what_does_not_fit_is_refused_before_weights_are_read(tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="FT305: no module of this model is called 'q_prj'"):
        of(tiny_model_dir, peft={"target_modules": ("q_prj",)})
    odd = make_tiny_model(tmp_path / "odd", intermediate_size=96)
    (odd / "model.safetensors").write_bytes(b"never read")
    with pytest.raises(ModelError, match="FT311"):
        of(odd)
    assert of(odd, model={"quantization": "int8"}).total_mib > 0
