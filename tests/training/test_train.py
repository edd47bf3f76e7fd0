"""Local training against plain loops written by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.tiny_model import make_tiny_model
from support.training import random_rows, start_of, tiny_adapted, training_config

from fedtune.errors import TrainingError
from fedtune.evaluation.loss import held_out_loss
from fedtune.training.schedule import learning_rate
from fedtune.training.train import train

PREFIX = (3, 1, 4, 1, 5)
BOTH = ("A", "B")


def make_steps(count=4, rows=4, seed=0):
    stream = np.random.default_rng(seed)
    return [
        random_rows(
            seed * 100 + step,
            [(int(stream.integers(1, 12)), int(stream.integers(1, 12))) for _ in range(rows)],
            PREFIX,
        )
        for step in range(count)
    ]


@pytest.fixture(scope="module")
def tiny(tiny_model_dir):
    return tiny_adapted(tiny_model_dir)


def run(
    model, steps, *, factors=BOTH, start=0, seed=0, first_step=0, total_steps=None, on_step=None, **config
):
    model.load_adapter(start_of(model, start))
    return train(
        model,
        steps,
        config=training_config(**config),
        factors=factors,
        first_step=first_step,
        total_steps=total_steps or len(steps),
        seed=seed,
        on_step=on_step,
    )


def by_hand(model, steps, *, config, factors=BOTH, start=0, first_step=0, total_steps=None):
    """The plain loop: padded to the longest row, labels of -100, all logits, torch's AdamW and clipping."""
    model.load_adapter(start_of(model, start))
    parameters = model.parameters(factors)
    model.set_trainable(factors)
    received = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=0.0, weight_decay=config.weight_decay, foreach=False, fused=False
    )
    model.model.train()
    losses = []
    for index, rows in enumerate(steps):
        width = max(len(row.token_ids) for row in rows)
        ids = torch.full((len(rows), width), 259)
        labels = torch.full((len(rows), width), -100)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for line, row in enumerate(rows):
            length = len(row.token_ids)
            ids[line, :length] = torch.from_numpy(row.token_ids)
            mask[line, :length] = 1
            labels[line, :length] = torch.where(torch.from_numpy(row.loss_mask), ids[line, :length], -100)
        logits = model.model(input_ids=ids, attention_mask=mask).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        losses.append(float(loss.detach()))
        for name, parameter in parameters.items():
            loss = loss + config.proximal_mu / 2 * (parameter - received[name]).square().sum()
        optimizer.zero_grad()
        loss.backward()
        if config.max_gradient_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters.values(), config.max_gradient_norm)
        optimizer.param_groups[0]["lr"] = learning_rate(first_step + index, total_steps or len(steps), config)
        optimizer.step()
    return {
        name: (parameter.detach() - received[name]).numpy() for name, parameter in parameters.items()
    }, losses


def assert_close(found, wanted, tolerance=1e-9):
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param({}, id="plain"),
        pytest.param({"packing": False}, id="padded"),
        pytest.param({"microbatch_tokens": 25}, id="accumulated"),
        pytest.param({"packing": False, "microbatch_tokens": 8}, id="row by row"),
        pytest.param({"weight_decay": 0.2}, id="weight decay"),
        pytest.param({"max_gradient_norm": 0.3}, id="clipped"),
        pytest.param({"proximal_mu": 5.0}, id="FedProx"),
        pytest.param({"proximal_mu": 5.0, "max_gradient_norm": 0.3, "weight_decay": 0.1}, id="all of them"),
        pytest.param({"warmup_fraction": 0.5, "decay": "linear"}, id="schedule"),
    ],
)
@pytest.mark.parametrize("factors", [("A", "B"), ("B",), ("A",)], ids=["AB", "B", "A"])
def test_it_is_the_plain_padded_loop(tiny, config, factors):
    steps = make_steps()
    result = run(tiny, steps, factors=factors, **config)
    wanted, losses = by_hand(tiny, steps, config=training_config(**config), factors=factors)
    assert_close(result.delta.tensors, wanted)
    assert result.loss_before == pytest.approx(losses[0], rel=1e-9)


def test_a_round_continues_the_schedule_of_the_federation(tiny):
    steps = make_steps(2)
    schedule = {"decay": "cosine", "warmup_fraction": 0.1}
    result = run(tiny, steps, first_step=6, total_steps=10, **schedule)
    wanted, _ = by_hand(tiny, steps, config=training_config(**schedule), first_step=6, total_steps=10)
    assert_close(result.delta.tensors, wanted)


def test_the_proximal_term_holds_the_adapter_back(tiny):
    steps = make_steps(8)
    norms = [run(tiny, steps, proximal_mu=mu).delta.norm for mu in (0.0, 1.0, 100.0)]
    assert norms[0] > norms[1] > norms[2]


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_two_runs_are_equal_bit_for_bit(tmp_path, quantization, checkpointing):
    folder = make_tiny_model(tmp_path / "wide", hidden_size=64, intermediate_size=128)
    model = tiny_adapted(
        folder,
        compute_dtype="float32",
        quantization=quantization,
        dropout=0.2,
        gradient_checkpointing=checkpointing,
    )
    first, second = (run(model, make_steps(), seed=5, max_gradient_norm=1.0) for _ in range(2))
    for name, values in first.delta.tensors.items():
        np.testing.assert_array_equal(values, second.delta.tensors[name])
    assert (first.loss_before, first.loss_after) == (second.loss_before, second.loss_after)
    assert any(values.any() for values in first.delta.tensors.values())


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_training_after_an_evaluation_equals_training_without_one(tmp_path, quantization, compute_dtype):
    folder = make_tiny_model(tmp_path / "wide", hidden_size=64, intermediate_size=128)

    def fresh():
        return tiny_adapted(folder, compute_dtype=compute_dtype, quantization=quantization)

    rows = make_steps(1)[0]
    wanted = run(fresh(), make_steps())
    model = fresh()
    held_out = held_out_loss(model, rows, microbatch_tokens=64).loss
    model.model.eval()
    with torch.no_grad():
        model.model(input_ids=torch.tensor([[1, 2, 3]]))
    found = run(model, make_steps())
    for name, values in wanted.delta.tensors.items():
        np.testing.assert_array_equal(found.delta.tensors[name], values)
    model.load_adapter(start_of(model))
    assert held_out_loss(model, rows, microbatch_tokens=64).loss == held_out


@pytest.mark.parametrize("factors", [("A",), ("B",)])
def test_only_the_given_factors_change_and_are_in_the_delta(tiny, factors):
    result = run(tiny, make_steps(), factors=factors)
    start, end = start_of(tiny), tiny.read_adapter()
    assert tuple(result.delta.tensors) == tiny.spec.names(factors)
    for name in tiny.spec.shapes:
        if name in result.delta.tensors:
            np.testing.assert_array_equal(end[name] - start[name], result.delta.tensors[name])
            assert result.delta.tensors[name].any()
        else:
            np.testing.assert_array_equal(end[name], start[name])
    others = [parameter for name, parameter in tiny.parameters().items() if name not in result.delta.tensors]
    assert not any(parameter.requires_grad for parameter in others)


def test_the_result_counts_rows_and_tokens_and_measures_before_and_after(tiny):
    steps = make_steps(3)
    reports = []
    result = run(tiny, steps, on_step=reports.append, packing=True)
    rows = [row for step in steps for row in step]
    assert (result.steps, result.examples) == (3, 12)
    assert result.tokens == sum(len(row.token_ids) for row in rows)
    assert result.response_tokens == sum(int(row.loss_mask.sum()) for row in rows)
    assert result.loss_after < result.loss_before
    assert result.loss_after == pytest.approx(
        held_out_loss(tiny, steps[0], microbatch_tokens=999).loss, rel=1e-12
    )
    assert 0 < result.seconds < 600
    assert 50 < result.peak_memory_mib < 100_000
    assert [(report.step, report.steps) for report in reports] == [(1, 3), (2, 3), (3, 3)]
    assert reports[0].loss == result.loss_before
    assert all(report.tokens_per_second > 0 and report.gradient_norm > 0 for report in reports)


def test_dropout_is_seeded_and_does_not_disturb_torchs_random_state(tiny_model_dir):
    model = tiny_adapted(tiny_model_dir, dropout=0.4)
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = run(model, make_steps(), seed=7)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    again, other = run(model, make_steps(), seed=7), run(model, make_steps(), seed=8)
    name = model.spec.names(("B",))[0]
    np.testing.assert_array_equal(first.delta.tensors[name], again.delta.tensors[name])
    assert (first.delta.tensors[name] != other.delta.tensors[name]).any()
    # Both losses are without dropout, so they do not depend on its seed.
    assert first.loss_before == other.loss_before
    model.load_adapter(start_of(model))
    assert first.loss_before == pytest.approx(
        held_out_loss(model, make_steps()[0], microbatch_tokens=2048).loss, rel=1e-12
    )


def test_modes_are_left_as_they_were(tiny):
    tiny.model.eval()
    run(tiny, make_steps(1))
    assert not any(module.training for module in tiny.model.modules())
    tiny.model.train()


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_8_bit_adamw_brings_the_loss_down(tmp_path, quantization):
    folder = make_tiny_model(tmp_path / "wide", hidden_size=64, intermediate_size=1024)
    model = tiny_adapted(folder, compute_dtype="float32", quantization=quantization)
    steps = make_steps(1) * 12
    plain, quantized = (
        run(model, steps, optimizer=optimizer, learning_rate=2e-3) for optimizer in ("adamw", "adamw8bit")
    )
    assert quantized.loss_after < quantized.loss_before - 0.1
    assert quantized.loss_after == pytest.approx(plain.loss_after, abs=0.1)


def test_a_loss_that_is_no_number_names_step_and_rows_and_keeps_the_adapter(tmp_path):
    model = tiny_adapted(make_tiny_model(tmp_path / "untied", tie_word_embeddings=False))
    steps = make_steps(3)
    seen = []
    broken = model.model.get_base_model().get_input_embeddings().weight
    others = {
        int(token)
        for step in (steps[0], steps[1][:2], steps[1][3:])
        for row in step
        for token in row.token_ids
    }
    poisoned = next(int(token) for token in steps[1][2].token_ids[:-1] if int(token) not in others)

    def poison(report):
        seen.append(model.read_adapter())
        with torch.no_grad():
            broken[poisoned] = float("nan")

    with pytest.raises(TrainingError, match=r"FT402: the loss is nan in step 2 of 3") as caught:
        run(model, steps, on_step=poison, packing=False, microbatch_tokens=8)
    assert caught.value.problems[0].where == "rows row-2"
    for name, values in model.read_adapter().items():
        np.testing.assert_array_equal(values, seen[0][name])
    assert all(parameter.grad is None for parameter in model.parameters().values())


def test_a_gradient_that_overflows_is_an_error(tiny_model_dir):
    model = tiny_adapted(tiny_model_dir, compute_dtype="float32")
    name, parameter = next(iter(model.parameters(("B",)).items()))
    hook = parameter.register_hook(lambda gradient: gradient * 1e38)
    with pytest.raises(TrainingError, match=r"FT403: the gradient norm is inf in step 1 of 4") as caught:
        run(model, make_steps())
    hook.remove()
    assert "row-0, row-1" in caught.value.problems[0].where
    np.testing.assert_array_equal(model.read_adapter()[name], start_of(model)[name])


def test_a_long_list_of_rows_is_cut(tiny_model_dir):
    model = tiny_adapted(tiny_model_dir)
    with torch.no_grad():
        model.model.get_base_model().get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"row-0, row-1, .* and 4 more"):
        run(model, [random_rows(0, [(3, 3)] * 12)], packing=False)


def test_no_steps_and_steps_without_targets_are_refused(tiny):
    with pytest.raises(ValueError, match="at least one step, got none"):
        run(tiny, [], total_steps=1)
    rows = random_rows(0, [(3, 3)])
    rows[0].loss_mask[:] = False
    with pytest.raises(ValueError, match="got 1 rows without one"):
        run(tiny, [rows])


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit"])
def test_two_rounds_with_kept_moments_are_one_long_round_bit_for_bit(tiny_model_dir, optimizer):
    model = tiny_adapted(tiny_model_dir, compute_dtype="float32")
    steps = make_steps(6)
    config = training_config(optimizer=optimizer, keep_optimizer_state=True, max_gradient_norm=1.0)

    def go_on(part, first_step, moments):
        return train(
            model, part, config=config, factors=BOTH, first_step=first_step, total_steps=6, seed=0,
            moments=moments,
        )  # fmt: skip

    model.load_adapter(start_of(model))
    go_on(steps, 0, None)
    whole = model.read_adapter()
    model.load_adapter(start_of(model))
    first = go_on(steps[:2], 0, None)
    go_on(steps[2:], 2, first.moments)
    for name, value in model.read_adapter().items():
        np.testing.assert_array_equal(value, whole[name], strict=True)


def test_moments_of_a_factor_that_is_not_trained_are_handed_on(tiny_model_dir):
    model = tiny_adapted(tiny_model_dir)
    config = training_config(keep_optimizer_state=True)

    def train_factor(factor, moments):
        return train(
            model, make_steps(1), config=config, factors=(factor,), first_step=0, total_steps=2, seed=0,
            moments=moments,
        ).moments  # fmt: skip

    of_b = train_factor("B", None)
    both = train_factor("A", of_b)
    assert of_b.keys() < both.keys()
    assert all(torch.equal(both[key], value) for key, value in of_b.items())


def test_without_kept_moments_none_are_given(tiny):
    assert run(tiny, make_steps(1)).moments is None
