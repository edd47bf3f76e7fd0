"""From an example to the text that the model sees, cut into the prompt and the response it has to learn.

``tokenizer``  the chat template that comes with the tokenizer;
``alpaca``     Taori et al., "Stanford Alpaca: An instruction-following LLaMA model", 2023, in its two forms,
               with and without input;
``chatml``     ``<|im_start|>role``, the content, ``<|im_end|>`` for each turn, and no default system message.

The response ends with the mark that ends a turn, so that the model learns to stop; white space that a
template puts after that mark is no part of the row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from fedtune.config.schema import DataConfig
from fedtune.data.examples import Example, Turn
from fedtune.errors import DataError, Problem

__all__ = ["Rendered", "Tokenizer", "check_template", "generation_header", "render", "render_prompt"]

_IM_START, _IM_END = "<|im_start|>", "<|im_end|>"
_ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)
_ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
)
_ALPACA_HEADER = "### Response:\n"


class Tokenizer(Protocol):
    """What fedtune needs of a tokenizer: a fast one of the transformers library has it."""

    is_fast: bool
    chat_template: Any
    eos_token: Any
    eos_token_id: Any
    unk_token_id: Any

    def __call__(self, text: Any, **options: Any) -> Any: ...
    def apply_chat_template(self, conversation: Any, **options: Any) -> Any: ...
    def convert_tokens_to_ids(self, tokens: Any) -> Any: ...
    def decode(self, token_ids: Any, **options: Any) -> Any: ...
    def get_added_vocab(self) -> dict[str, int]: ...


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """A row as text; what the model sees is ``prompt + response``.

    Attributes:
        prompt: All before the response, the generation header included; "" for plain text.
        response: What the loss sees: the last assistant turn and its end-of-turn mark, or the plain text.
    """

    prompt: str
    response: str


def check_template(data: DataConfig, tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer that cannot serve ``data.template``, before a row is rendered.

    Raises:
        DataError: FT224 without a chat template or an end-of-text token, FT226 without offsets.
    """
    problems = []
    if not tokenizer.is_fast:
        problems.append(
            Problem(
                code="FT226",
                what=f"expected a fast tokenizer, got {type(tokenizer).__name__}, which gives no offsets",
                where="model.name",
                fix="use a model that has a tokenizer.json",
            )
        )
    if data.template == "tokenizer" and not tokenizer.chat_template:
        problems.append(
            Problem(
                code="FT224",
                what="data.template=tokenizer expected a tokenizer with a chat template, got one without",
                where="data.template",
                fix="set data.template=chatml or data.template=alpaca",
            )
        )
    if data.template == "alpaca" and not tokenizer.eos_token:
        problems.append(
            Problem(
                code="FT224",
                what="data.template=alpaca expected a tokenizer with an end-of-text token, got one without",
                where="data.template",
                fix="set data.template=chatml, or use the tokenizer's own template",
            )
        )
    if problems:
        raise DataError(problems)


def render(example: Example, data: DataConfig, tokenizer: Tokenizer | None) -> Rendered:
    """Write an example as text.

    Args:
        example: A conversation or plain text.
        data: ``template`` and ``system_prompt``.
        tokenizer: Needed for ``template=tokenizer``; else it gives the end-of-text token.

    Raises:
        DataError: FT225, the tokenizer's chat template refuses the row, or does not put the prompt, as it
            is given to the model when it answers, in front of the response.
    """
    eos = str(tokenizer.eos_token) if tokenizer is not None and tokenizer.eos_token else ""
    if example.text is not None:
        return Rendered(prompt="", response=example.text)
    prompt = render_prompt(example, data, tokenizer)
    if data.template == "tokenizer":
        full = _apply(example, _turns(example.turns, data), tokenizer, header=False)
        response = _own_response(example, full, prompt, eos)
    elif data.template == "chatml":
        response = example.response + _IM_END
        if tokenizer is not None and not _knows(tokenizer, _IM_END):
            response += eos  # spelt out in several tokens the mark would not stop a generation
    else:
        response = example.response + eos
    return Rendered(prompt=prompt, response=response)


def render_prompt(example: Example, data: DataConfig, tokenizer: Tokenizer | None) -> str:
    """Write what comes before the response, as the model gets it in training and when it answers.

    Args:
        example: A conversation; its last turn is not looked at. Plain text has the prompt "".
        data: ``template`` and ``system_prompt``.
        tokenizer: Needed for ``template=tokenizer``.

    Raises:
        DataError: FT225, the tokenizer's chat template refuses the row.
    """
    turns = _turns(example.prompt, data)
    if example.text is not None:
        return ""
    if data.template == "tokenizer":
        return _apply(example, turns, tokenizer, header=True)
    if data.template == "chatml":
        return "".join(map(_chatml, turns)) + f"{_IM_START}assistant\n"
    return _alpaca(turns, example.input, str(tokenizer.eos_token or "") if tokenizer is not None else "")


def generation_header(example: Example, data: DataConfig, tokenizer: Tokenizer | None) -> str:
    """What a prompt ends with after the content of its last turn: the mark that opens the response.

    Args:
        example: A conversation; of plain text the header is "".
        data: ``template`` and ``system_prompt``.
        tokenizer: Needed for ``template=tokenizer``.
    """
    if not example.prompt:
        return ""
    stand_in = "content-of-the-last-turn"
    last = replace(example.prompt[-1], content=stand_in)
    with_stand_in = replace(example, turns=(*example.prompt[:-1], last, example.turns[-1]), input=None)
    return render_prompt(with_stand_in, data, tokenizer).rpartition(stand_in)[2]


def _knows(tokenizer: Tokenizer, mark: str) -> bool:
    return tokenizer.convert_tokens_to_ids(mark) not in (None, tokenizer.unk_token_id)


def _turns(turns: Sequence[Turn], data: DataConfig) -> Sequence[Turn]:
    if data.system_prompt is None or any(turn.role == "system" for turn in turns):
        return turns
    return (Turn(role="system", content=data.system_prompt), *turns)


def _chatml(turn: Turn) -> str:
    return f"{_IM_START}{turn.role}\n{turn.content}{_IM_END}\n"


def _alpaca(turns: Sequence[Turn], context: str | None, eos: str) -> str:
    """Stanford Alpaca's prompt; a system turn replaces its preamble, earlier answers keep their place."""
    parts = []
    preamble = _ALPACA_WITH_INPUT if context else _ALPACA
    for index, turn in enumerate(turns):
        if turn.role == "system":
            preamble = turn.content
        elif turn.role == "assistant":
            parts.append(f"{_ALPACA_HEADER}{turn.content}{eos}")
        elif context and index == len(turns) - 1:
            instruction = turn.content.removesuffix(f"\n\n{context}")
            parts.append(f"### Instruction:\n{instruction}\n\n### Input:\n{context}")
        else:
            parts.append(f"### Instruction:\n{turn.content}")
    return "\n\n".join([*([preamble] if preamble else []), *parts, _ALPACA_HEADER])


def _apply(example: Example, turns: Sequence[Turn], tokenizer: Tokenizer | None, *, header: bool) -> str:
    if tokenizer is None:
        raise ValueError("template=tokenizer needs a tokenizer")
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=header)
    except Exception as error:  # the template is the model's code: it may raise anything
        raise DataError(
            Problem(
                code="FT225",
                what=f"the tokenizer's chat template refuses the row: {type(error).__name__}: {error}",
                where=f"row {example.id}",
                fix="bring the conversation into the order that the template takes (a system message is not "
                "taken by all), or set data.template=chatml",
            )
        ) from error
    return str(text)


def _own_response(example: Example, full: str, prompt: str, eos: str) -> str:
    """What the tokenizer's template writes after the prompt, up to the end of its last mark."""
    if not full.startswith(prompt):
        raise _not_prompt_then_response(example, "a prompt that changes when the response is there")
    rest = full[len(prompt) :]
    content = example.response.strip()  # many templates trim what they are given
    start = rest.find(content)
    if start < 0:
        raise _not_prompt_then_response(example, "no such response after the prompt")
    end_mark = rest[start + len(content) :].rstrip()
    return rest.rstrip() if end_mark else rest[: start + len(content)] + eos


def _not_prompt_then_response(example: Example, got: str) -> DataError:
    # The row's text is not quoted: this error may be raised at a site, whose rows stay there.
    return DataError(
        Problem(
            code="FT225",
            what=f"expected the tokenizer's chat template to write prompt and response in turn, got {got}",
            where=f"row {example.id}",
            fix="set data.template=chatml or data.template=alpaca",
        )
    )
