"""Answers to prompts, for a person to read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from fedtune.config.schema import DataConfig
from fedtune.data.examples import Example
from fedtune.data.tokenize import stop_token_ids, tokenize_prompt
from fedtune.models.adapted import AdaptedModel
from fedtune.training.modes import evaluation_mode

__all__ = ["generate"]

_BATCH = 16
"""Prompts answered side by side. A quantized layer is dequantized once for all of them at each token, which
on a CPU is most of the time."""


def generate(
    model: AdaptedModel, prompts: Sequence[Example], *, data: DataConfig, max_new_tokens: int
) -> list[str]:
    """Answer each prompt with the likeliest token at each place, with the loaded adapter.

    Guarantees:
        * An answer ends at the template's end-of-turn mark or the end-of-text token, which is left out, or
          after ``max_new_tokens``.
        * Nothing is drawn at random; modes and settings of the model are left as they were found.

    Args:
        model: Base and adapter.
        prompts: Conversations; their last turn, the response, is not shown to the model.
        data: ``template`` and ``system_prompt``, as in training.
        max_new_tokens: Longest answer, in tokens.

    Returns:
        One answer for each prompt, without special tokens and surrounding white space.

    Raises:
        DataError: FT224, FT225 or FT226, the tokenizer and the template do not go together.
    """
    encoded = [tokenize_prompt(prompt, model.tokenizer, data) for prompt in prompts]
    stops = stop_token_ids(model.tokenizer, data)
    answers: list[str] = []
    with evaluation_mode(model.model):
        for begin in range(0, len(encoded), _BATCH):
            answers += _answer(model, encoded[begin : begin + _BATCH], stops, max_new_tokens)
    return answers


def _answer(
    model: AdaptedModel, prompts: Sequence[Any], stops: tuple[int, ...], max_new_tokens: int
) -> list[str]:
    width = max(len(prompt) for prompt in prompts)
    filler = stops[0]
    # Padded on the left: every answer then begins at the same place.
    token_ids = torch.full((len(prompts), width), filler, dtype=torch.long)
    attention_mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for line, prompt in enumerate(prompts):
        token_ids[line, width - len(prompt) :] = torch.from_numpy(prompt)
        attention_mask[line, width - len(prompt) :] = 1
    base: Any = model.model.get_base_model()
    written = base.generate(
        input_ids=token_ids.to(model.device),
        attention_mask=attention_mask.to(model.device),
        generation_config=GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=list(stops),
            pad_token_id=filler,
            use_cache=True,
        ),
    )
    return [_text(model.tokenizer, line[width:].tolist(), stops) for line in written]


def _text(tokenizer: Any, token_ids: list[int], stops: tuple[int, ...]) -> str:
    end = next((place for place, token in enumerate(token_ids) if token in stops), len(token_ids))
    text: str = tokenizer.decode(token_ids[:end], skip_special_tokens=True)
    return text.strip()
