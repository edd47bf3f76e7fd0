"""Answers to prompts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.datasets import data_config, question
from support.training import start_of, tiny_adapted, training_config

from fedtune.data.tokenize import stop_token_ids, tokenize, tokenize_prompt
from fedtune.evaluation.generate import generate
from fedtune.training.train import train

PROMPTS = [question("What is red?", "-"), question("And blue, and all the others?", "-"), question("?", "-")]


@pytest.fixture(scope="module")
def tiny(tiny_model_dir):
    return tiny_adapted(tiny_model_dir, compute_dtype="float32")


def greedy(model, prompt, data, count):
    """One token at a time, without a cache."""
    ids = tokenize_prompt(prompt, model.tokenizer, data).astype(np.int64).tolist()
    begin = len(ids)
    stops = stop_token_ids(model.tokenizer, data)
    while len(ids) < begin + count:
        with torch.no_grad():
            logits = model.model(input_ids=torch.tensor([ids]), use_cache=False).logits
        token = int(logits[0, -1].argmax())
        if token in stops:
            break
        ids.append(token)
    return model.tokenizer.decode(ids[begin:], skip_special_tokens=True).strip()


@pytest.mark.parametrize("template", ["tokenizer", "alpaca"])
def test_answers_are_the_likeliest_tokens_for_each_prompt_alone(tiny, template):
    data = data_config(template=template)
    found = generate(tiny, PROMPTS, data=data, max_new_tokens=12)
    assert found == [greedy(tiny, prompt, data, 12) for prompt in PROMPTS]


def test_an_answer_that_was_learnt_ends_at_its_end_mark(tiny_model_dir):
    model = tiny_adapted(tiny_model_dir, compute_dtype="float32")
    data = data_config()
    rows = [tokenize(question("red", "yes"), model.tokenizer, data)]
    config = training_config(learning_rate=3e-2)
    train(model, [rows] * 40, config=config, factors=("A", "B"), first_step=0, total_steps=40, seed=0)
    assert generate(model, [question("red", "-")], data=data, max_new_tokens=50) == ["yes"]


def test_nothing_of_the_model_is_changed(tiny_model_dir):
    model = tiny_adapted(tiny_model_dir, compute_dtype="float32", dropout=0.5)
    model.load_adapter(start_of(model, 1))
    modes = [module.training for module in model.model.modules()]
    state = torch.random.get_rng_state()
    cache = model.model.config.use_cache
    first = generate(model, PROMPTS, data=data_config(), max_new_tokens=4)
    assert first == generate(model, PROMPTS, data=data_config(), max_new_tokens=4)
    assert [module.training for module in model.model.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.model.config.use_cache is cache


def test_more_prompts_than_one_batch_keep_their_order(tiny):
    prompts = [question(f"Number {number}?", "-") for number in range(19)]
    found = generate(tiny, prompts, data=data_config(), max_new_tokens=3)
    assert found[17:] == generate(tiny, prompts[17:], data=data_config(), max_new_tokens=3)
    assert generate(tiny, [], data=data_config(), max_new_tokens=3) == []
