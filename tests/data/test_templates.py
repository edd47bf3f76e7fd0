from __future__ import annotations

from typing import Any

import pytest
from support.datasets import data_config, question
from support.tiny_model import make_tokenizer
from tokenizers import Tokenizer as Words
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from fedtune.data.examples import Example, Turn
from fedtune.data.templates import Tokenizer, generation_header, render, render_prompt
from fedtune.errors import DataError

CHAT = Example(
    id="chat",
    turns=(
        Turn(role="user", content="one"),
        Turn(role="assistant", content="two"),
        Turn(role="user", content="three"),
        Turn(role="assistant", content="four"),
    ),
)
# What the training script of Stanford Alpaca writes for its two kinds of rows.
ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
ALPACA_NO_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)


def with_template(template: str | None, **changes: Any) -> Tokenizer:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return tokenizer


def test_alpaca_is_written_as_stanford_alpaca_writes_it() -> None:
    data, tokenizer = data_config(template="alpaca"), make_tokenizer()
    with_input = Example(
        id="1",
        turns=(Turn(role="user", content="Add\n\n1 2"), Turn(role="assistant", content="3")),
        input="1 2",
    )
    rendered = render(with_input, data, tokenizer)
    assert rendered.prompt == ALPACA_INPUT.format(instruction="Add", input="1 2")
    assert rendered.response == "3<|im_end|>"
    plain = render_prompt(question("Add\n\n1 2", "3"), data, tokenizer)
    assert plain == ALPACA_NO_INPUT.format(instruction="Add\n\n1 2")


def test_alpaca_keeps_earlier_turns_and_puts_a_system_prompt_for_its_preamble() -> None:
    data = data_config(template="alpaca", system_prompt="Be brief.")
    assert render(CHAT, data, make_tokenizer()).prompt == (
        "Be brief.\n\n### Instruction:\none\n\n### Response:\ntwo<|im_end|>\n\n"
        "### Instruction:\nthree\n\n### Response:\n"
    )


def test_chatml_is_what_a_chatml_tokenizer_writes() -> None:
    tokenizer = make_tokenizer()
    built_in = render(CHAT, data_config(template="chatml"), tokenizer)
    own = render(CHAT, data_config(template="tokenizer"), tokenizer)
    assert built_in == own
    assert built_in.prompt + built_in.response == tokenizer.apply_chat_template(
        [{"role": turn.role, "content": turn.content} for turn in CHAT.turns], tokenize=False
    ).removesuffix("\n")


def test_chatml_adds_the_end_of_text_token_where_its_own_mark_is_no_token() -> None:
    data = data_config(template="chatml")
    assert render(question("Q", "A"), data, make_tokenizer()).response == "A<|im_end|>"
    stranger = PreTrainedTokenizerFast(tokenizer_object=Words(WordLevel({"A": 0})), eos_token="</s>")
    assert render(question("Q", "A"), data, stranger).response == "A<|im_end|></s>"


@pytest.mark.parametrize("template", ["tokenizer", "chatml"])
def test_the_system_prompt_goes_before_rows_that_have_none(template: str) -> None:
    data = data_config(template=template, system_prompt="Be brief.")
    assert render_prompt(question("Q", "A"), data, make_tokenizer()).startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nQ"
    )
    own = render_prompt(question("Q", "A", system="Rhyme."), data, make_tokenizer())
    assert "Rhyme." in own
    assert "Be brief." not in own


@pytest.mark.parametrize(
    ("template", "response"),
    [
        # as Llama 3 writes it: trimmed
        ("{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}<|im_end|>{% endfor %}", "A<|im_end|>"),
        # as Phi 3 writes it: an end-of-turn mark, and end-of-text after the whole conversation
        (
            "{% for m in messages %}<{{ m.role }}>{{ m.content }}<|im_end|>\n{% endfor %}"
            "{% if not add_generation_prompt %}<|endoftext|>{% endif %}",
            " A <|im_end|>\n<|endoftext|>",
        ),
        # a template that marks no end: the end-of-text token does
        ("{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}", " A<|im_end|>"),
        # as Qwen 3 writes it: an empty thought before the answer
        (
            "{% for m in messages %}<{{ m.role }}>{% if loop.last and m.role == 'assistant' %}"
            "(no thought)\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}",
            "(no thought)\n A <|im_end|>",
        ),
    ],
)
def test_the_response_ends_with_the_mark_that_ends_a_turn(template: str, response: str) -> None:
    template += "{% if add_generation_prompt %}<assistant>{% endif %}"
    rendered = render(question("Q", " A "), data_config(), with_template(template))
    assert rendered.response == response
    assert rendered.prompt.endswith("<assistant>")


def test_a_template_that_refuses_a_row_is_named_with_the_row_and_its_words() -> None:
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    with pytest.raises(DataError, match=r"FT225: .*no system role\n  where: row r7") as caught:
        render(question("Q", "A", system="S", id="r7"), data_config(), with_template(template))
    assert "data.template=chatml" in caught.value.problems[0].fix


@pytest.mark.parametrize(
    "template",
    [
        # the generation header opens a thought that a finished answer does not have
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant><think>{% endif %}",
        # the response is not written at all
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
    ],
)
def test_a_template_whose_prompt_is_not_in_front_of_the_response_is_refused(template: str) -> None:
    with pytest.raises(DataError, match="FT225"):
        render(question("Q", "A"), data_config(), with_template(template))


@pytest.mark.parametrize("template", ["tokenizer", "chatml", "alpaca"])
@pytest.mark.parametrize("content", ["Q", "assistant", "user", "\n", "### Response:"])
def test_the_generation_header_is_what_follows_the_last_turn_whatever_that_says(
    template: str, content: str
) -> None:
    data = data_config(template=template)
    header = generation_header(question(content, "A"), data, make_tokenizer())
    prompt = render_prompt(question(content, "A"), data, make_tokenizer())
    assert prompt.endswith(content + header)
    assert header == {"alpaca": "\n\n### Response:\n"}.get(template, "<|im_end|>\n<|im_start|>assistant\n")


def test_plain_text_has_no_prompt() -> None:
    rendered = render(Example(id="t", text="words"), data_config(), make_tokenizer())
    assert (rendered.prompt, rendered.response) == ("", "words")
