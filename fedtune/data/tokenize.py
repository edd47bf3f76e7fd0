"""From examples to token ids and the mask that says which of them the loss sees.

The mask is found by characters, not by tokens: the row is tokenized once, as a whole, and a token is the
loss's when it ends after the prompt does. Tokenizing the prompt alone and counting would be wrong wherever a
token spans the border, as many vocabularies have it for white space.

A row of more than ``data.max_tokens`` tokens is cut, in this order:

1. its prompt, in the middle, so that its beginning (system message, start of the question) and its end stay;
   the generation header (the mark that opens the response) is the last to go;
2. when the response leaves no room for one token of prompt, its end: its beginning stays, behind at most
   ``data.max_tokens`` / 4 tokens of prompt. Such a row has no end-of-turn mark, so that nothing teaches the
   model to stop there.

Plain text gets what the tokenizer puts around every text and an end-of-text token, and is cut at its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedtune.config.schema import DataConfig
from fedtune.data.examples import Example, Turn
from fedtune.data.templates import (
    Rendered,
    Tokenizer,
    check_template,
    generation_header,
    render,
    render_prompt,
)
from fedtune.errors import DataError, Problem

__all__ = ["TokenizedExample", "stop_token_ids", "tokenize", "tokenize_all", "tokenize_prompt"]

_BATCH_ROWS = 512  # bounds the offsets held at a time, which take far more memory than the ids


@dataclass(frozen=True, kw_only=True)
class TokenizedExample:
    """A row as the model sees it.

    Attributes:
        id: The example's.
        token_ids: int32 (length,), at most ``data.max_tokens`` of them.
        loss_mask: bool (length,), True where the token is a target of the loss. The first is False, as
            nothing predicts it; at least one is True.
        cut_tokens: How many tokens of the row did not fit.
    """

    id: str
    token_ids: np.ndarray
    loss_mask: np.ndarray
    cut_tokens: int = 0


def tokenize(example: Example, tokenizer: Tokenizer, data: DataConfig) -> TokenizedExample:
    """Tokenize one example; for many, :func:`tokenize_all` is much faster.

    Args:
        example: The row.
        tokenizer: A fast tokenizer of the base model.
        data: ``template``, ``system_prompt`` and ``max_tokens``.

    Raises:
        DataError: FT224, FT225 or FT226, the row and the template or tokenizer do not go together.
    """
    return tokenize_all((example,), tokenizer, data)[0]


def tokenize_all(
    examples: Sequence[Example], tokenizer: Tokenizer, data: DataConfig
) -> list[TokenizedExample]:
    """Tokenize examples, in their order.

    Args:
        examples: The rows.
        tokenizer: A fast tokenizer of the base model.
        data: ``template``, ``system_prompt`` and ``max_tokens``.

    Returns:
        One entry an example. The mask covers exactly the last assistant turn and the mark that ends it, or
        every token but the first of plain text.

    Raises:
        DataError: FT224 or FT226, the tokenizer does not serve the template; FT225 for each row that the
            template does not take, or that has no token left to learn from.
    """
    check_template(data, tokenizer)
    tokenized: list[TokenizedExample] = []
    problems: list[Problem] = []
    for start in range(0, len(examples), _BATCH_ROWS):
        rendered: list[tuple[Example, Rendered]] = []
        for example in examples[start : start + _BATCH_ROWS]:
            try:
                rendered.append((example, render(example, data, tokenizer)))
            except DataError as error:
                problems.extend(error.problems)
        if problems:
            continue  # the rest is only read to list its problems too
        for (example, row), (ids, ends) in zip(rendered, _encode(rendered, tokenizer), strict=True):
            whole = _masked(example, row, ids, ends)
            if not whole.loss_mask.any():
                problems.append(_nothing_to_learn(example))
            tokenized.append(_fit(whole, example, row, ends=ends, tokenizer=tokenizer, data=data))
    if problems:
        raise DataError(problems)
    return tokenized


def tokenize_prompt(example: Example, tokenizer: Tokenizer, data: DataConfig) -> np.ndarray:
    """Tokenize what comes before the response, for a model that is to answer.

    Args:
        example: A conversation whose last turn is not looked at.
        tokenizer: A fast tokenizer of the base model.
        data: ``template`` and ``system_prompt``.

    Returns:
        int32 (length,): the prompt with its generation header, whole however long it is; for plain text,
        what the tokenizer puts before every text.

    Raises:
        DataError: FT224, FT225 or FT226, the row and the template or tokenizer do not go together.
    """
    check_template(data, tokenizer)
    plain = example.text is not None
    prompt = render_prompt(example, data, tokenizer)
    return np.asarray(tokenizer(prompt, add_special_tokens=plain, verbose=False)["input_ids"], dtype=np.int32)


def stop_token_ids(tokenizer: Tokenizer, data: DataConfig) -> tuple[int, ...]:
    """The tokens that end an answer: the template's end-of-turn mark, and the tokenizer's end-of-text token.

    Args:
        tokenizer: A fast tokenizer of the base model.
        data: ``template``.

    Raises:
        DataError: FT224, FT225 or FT226, the tokenizer does not serve the template.
    """
    probe = Example(id="probe", turns=(Turn(role="user", content="a"), Turn(role="assistant", content="b")))
    row = tokenize(probe, tokenizer, data)
    marks = set(tokenizer.get_added_vocab().values())
    stops = [int(token) for token in row.token_ids[row.loss_mask] if int(token) in marks][:1]
    if tokenizer.eos_token_id is not None:
        stops.append(int(tokenizer.eos_token_id))
    return tuple(dict.fromkeys(stops))


def _encode(
    rows: Sequence[tuple[Example, Rendered]], tokenizer: Tokenizer
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Token ids and, for each token, the character of the row where it ends; both int32 (length,)."""
    encoded: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for plain in (False, True):
        chosen = [index for index, (example, _) in enumerate(rows) if (example.text is not None) == plain]
        if not chosen:
            continue
        batch = tokenizer(
            [rows[index][1].prompt + rows[index][1].response for index in chosen],
            add_special_tokens=plain,  # a template writes its own
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        for index, ids, offsets in zip(chosen, batch["input_ids"], batch["offset_mapping"], strict=True):
            ends = [end for _, end in offsets]
            if plain and tokenizer.eos_token_id is not None and ids[-1:] != [tokenizer.eos_token_id]:
                ids, ends = [*ids, tokenizer.eos_token_id], [*ends, len(rows[index][1].response)]  # noqa: PLW2901
            encoded[index] = (np.asarray(ids, dtype=np.int32), np.asarray(ends, dtype=np.int32))
    return [encoded[index] for index in range(len(rows))]


def _masked(example: Example, row: Rendered, ids: np.ndarray, ends: np.ndarray) -> TokenizedExample:
    mask = np.ones(len(ids), dtype=bool) if example.text is not None else ends > len(row.prompt)
    mask[:1] = False
    return TokenizedExample(id=example.id, token_ids=ids, loss_mask=mask)


def _nothing_to_learn(example: Example) -> Problem:
    return Problem(
        code="FT225",
        what=f"expected a token to learn from, got none in {len(example.response)} characters of response",
        where=f"row {example.id}",
        fix="drop the row, or use a tokenizer that knows its characters",
    )


def _fit(
    whole: TokenizedExample,
    example: Example,
    row: Rendered,
    *,
    ends: np.ndarray,
    tokenizer: Tokenizer,
    data: DataConfig,
) -> TokenizedExample:
    """Cut a row to ``data.max_tokens``, as the module's docstring says."""
    excess = len(whole.token_ids) - data.max_tokens
    if excess <= 0:
        return whole
    if example.text is not None:
        kept = np.arange(data.max_tokens)
    else:
        prompt_length = int(np.argmax(whole.loss_mask))
        response_length = len(whole.token_ids) - prompt_length
        room = data.max_tokens - response_length
        if room < 1:
            room = min(prompt_length, data.max_tokens // 4)
            response_length = data.max_tokens - room
        header_start = len(row.prompt) - len(generation_header(example, data, tokenizer))
        header_length = int(np.count_nonzero(ends[:prompt_length] > header_start))
        header = min(header_length, room)
        front = (room - header + 1) // 2
        back = room - front
        kept = np.concatenate(
            [np.arange(front), np.arange(prompt_length - back, prompt_length + response_length)]
        )
    return TokenizedExample(
        id=whole.id,
        token_ids=whole.token_ids[kept],
        loss_mask=whole.loss_mask[kept],
        cut_tokens=excess,
    )
