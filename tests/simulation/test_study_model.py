"""The study's short cuts: a smaller vocabulary cuts text alike, and remembered layers compute alike."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from support.model_settings import model_config, peft_config
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from fedtune.data.tokenize import TokenizedExample
from fedtune.models.adapted import AdaptedModel, load_adapted_model
from fedtune.training.batches import lay_out
from fedtune.training.loss import ResponseLoss

SIMULATIONS = Path(__file__).parents[2] / "simulations"
TEXTS = ("a murmur of the heart", "the heart murmurs", "<|im_start|>user\nheart<|im_end|>")
OTHERS = ("an abnormality of the kidney", "kidney stones and the heart", "unhurried hearing")


@pytest.fixture(scope="module")
def study_model() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SIMULATIONS))
        yield importlib.import_module("study_model")


@pytest.fixture(scope="module")
def full_model(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a tokenizer that has learnt merges, and an embedding for each token."""
    folder = tmp_path_factory.mktemp("full")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(
        TEXTS + OTHERS,
        trainers.BpeTrainer(
            vocab_size=330,
            min_frequency=1,
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
    )
    fast.chat_template = "{{ messages }}"
    fast.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    model.resize_token_embeddings(len(fast))
    model.tie_weights()
    model.config.tie_word_embeddings = True
    model.save_pretrained(folder)
    return folder


def test_a_smaller_vocabulary_cuts_the_texts_alike_and_has_the_same_logits(
    study_model: ModuleType, full_model: Path, tmp_path: Path
) -> None:
    folder = study_model.make_model(tmp_path / "made", full_model, TEXTS)
    full, small = (AutoTokenizer.from_pretrained(path) for path in (full_model, folder))
    whole, cut = (AutoModelForCausalLM.from_pretrained(path).eval() for path in (full_model, folder))
    assert len(small) < len(full)
    names = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    kept = torch.tensor([full.convert_tokens_to_ids(name) for name in sorted(names, key=names.__getitem__)])
    for text in TEXTS:
        ids, others = full(text, return_tensors="pt"), small(text, return_tensors="pt")
        assert full.convert_ids_to_tokens(ids["input_ids"][0]) == small.convert_ids_to_tokens(
            others["input_ids"][0]
        )
        with torch.no_grad():
            expected, found = whole(**ids).logits, cut(**others).logits
        torch.testing.assert_close(found[..., : len(kept)], expected[..., kept])


def adapted(tiny_model_dir: Path) -> AdaptedModel:
    peft = peft_config(rank=2, target_modules=("layers.1.self_attn.q_proj", "layers.1.mlp.up_proj"))
    model = model_config(str(tiny_model_dir), quantization="none", compute_dtype="float32")
    found = load_adapted_model(model, peft, gradient_checkpointing=False)
    for name, parameter in found.parameters().items():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    return found


@pytest.mark.parametrize("packing", [False, True])
def test_what_is_remembered_is_what_would_be_computed(
    study_model: ModuleType, tiny_model_dir: Path, packing: bool
) -> None:
    plain, remembering = adapted(tiny_model_dir), adapted(tiny_model_dir)
    memory: dict[bytes, Any] = {}
    study_model.remember(remembering.model.get_base_model().model, memory, torch.float32)
    rows = [tokenized((5, 6, 7, 8, 9)), tokenized((5, 6, 12)), tokenized((5, 6, 15, 16, 17, 18))]
    for chosen in ((0, 1), (1, 2), (2, 0), (1,), (0, 1, 2)):  # the third and later find all that they need
        before = set(memory)
        found = [
            loss_and_gradients(model, [rows[row] for row in chosen], packing)
            for model in (plain, remembering)
        ]
        torch.testing.assert_close(found[1], found[0])
        assert before <= set(memory)
    assert sorted(len(states) for states in memory.values()) == [2, 4, 5], "the last token is a target alone"


def tokenized(token_ids: tuple[int, ...]) -> TokenizedExample:
    mask = np.array([False, *(True for _ in token_ids[1:])])
    return TokenizedExample(id=str(token_ids), token_ids=np.array(token_ids), loss_mask=mask)


def loss_and_gradients(
    model: AdaptedModel, rows: list[TokenizedExample], packing: bool
) -> tuple[float, list[torch.Tensor | None]]:
    model.set_trainable(("A", "B"))
    loss, total = ResponseLoss(model.model), 0.0
    for batch in lay_out(rows, microbatch_tokens=64, packing=packing, share_prefix=packing):
        nats = loss(batch)
        nats.backward()
        total += float(nats.detach())
    return total, [parameter.grad for parameter in model.parameters().values()]
