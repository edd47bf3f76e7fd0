"""Small datasets, their configuration, and a tokenizer with merges, for the tests of data and its users."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from functools import cache
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from fedtune.config.schema import DataConfig, PartitionConfig
from fedtune.data.examples import Example, Turn

_DATA = DataConfig(
    source="files",
    files=(),
    format="auto",
    columns={},
    template="tokenizer",
    system_prompt=None,
    max_tokens=256,
    on_bad_row="refuse",
    held_out_fraction=0.05,
    held_out_max_rows=16,
    validation_max_rows=0,
    held_out_seed=None,
)
_PARTITION = PartitionConfig(
    method="iid",
    clients=3,
    column="site",
    values=(),
    alpha=0.5,
    exponent=1.0,
    shards_per_client=2,
    min_examples=0,
)


def data_config(*files: object, **changes: Any) -> DataConfig:
    """A data configuration that reads ``files``, with some keys changed."""
    return dataclasses.replace(_DATA, files=tuple(str(file) for file in files), **changes)


def partition_config(method: str, **changes: Any) -> PartitionConfig:
    """A partition configuration of three clients, with some keys changed."""
    return dataclasses.replace(_PARTITION, method=method, **changes)


def question(
    prompt: str, response: str, *, system: str | None = None, id: str = "row", **columns: str
) -> Example:
    """A conversation of one question and its answer."""
    turns = [Turn(role="user", content=prompt), Turn(role="assistant", content=response)]
    if system is not None:
        turns.insert(0, Turn(role="system", content=system))
    return Example(id=id, turns=tuple(turns), columns=columns)


def labelled(labels: Iterable[str]) -> list[Example]:
    """One example for each label, in the column ``site``."""
    return [question("q", "a", id=str(row), site=label) for row, label in enumerate(labels)]


@cache
def merging_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE whose merges run over line breaks and words alike: nothing splits the text before.

    So tokens span the border of prompt and response, and a token-by-token cut would be wrong.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<|im_start|>", "<|im_end|>", "</s>"],
        show_progress=False,
    )
    corpus = [
        "assistant\nthe answer is ",
        "### Response:\nthe answer\n\nthe ",
        "user\nwhat is the answer?",
    ] * 9
    tokenizer.train_from_iterator(corpus, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
    fast.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return fast
