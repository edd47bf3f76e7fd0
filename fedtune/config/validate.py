"""From plain values to a :class:`Config`: pydantic's findings as problems that a person can act on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from fedtune.config.keys import GROUPS, adapter, keys, similar_key
from fedtune.config.schema import Config
from fedtune.errors import Problem

__all__ = ["shown", "unknown_key", "validate_json"]

_LONGEST_SHOWN_VALUE = 80


def validate_json(
    text: str, *, where: str, sources: Mapping[str, str] | None = None
) -> Config | list[Problem]:
    """Parse the JSON of a configuration: the config, or every problem of it.

    Validation is strict: ``"4"`` is no number, ``1`` is no truth value, NaN and infinity are no numbers, no
    key may be unknown and none may be missing. Combinations are checked by :mod:`fedtune.config.rules`.

    Args:
        text: One JSON object, nested by section.
        where: What the text is, for the reader of an error, such as ``the composed configuration``.
        sources: Full key -> what set it, for errors that can be told more exactly than ``where``.
    """
    try:
        return adapter().validate_json(text, strict=True)
    except ValidationError as error:
        return list(_problems(error, where=where, sources=sources or {}))


def _problems(error: ValidationError, *, where: str, sources: Mapping[str, str]) -> Iterator[Problem]:
    """One problem for each key that pydantic refused."""
    seen: set[str] = set()
    for finding in error.errors(include_url=False):
        location = [str(part) for part in finding["loc"]]
        key = _known_prefix(location)
        if finding["type"] == "unexpected_keyword_argument":
            yield unknown_key(".".join(location), where=where)
        elif finding["type"] == "missing":
            yield _missing(".".join(location), where=where)
        elif key and key not in seen:
            # A union (a string or a list) reports once for each of its members.
            seen.add(key)
            yield _refused(key, finding, where=sources.get(key, f"{key} in {where}"))
        elif not key:
            yield Problem(
                code="FT107",
                what=f"this is not the JSON of a configuration: {_lower_first(finding['msg'])}",
                where=where,
                fix="pass one JSON object as fedtune writes it, with a section for each of "
                + ", ".join(GROUPS),
            )


def unknown_key(key: str, *, where: str) -> Problem:
    """The problem of a key that the configuration does not have, with the one that may be meant."""
    meant = similar_key(key)
    if meant is not None:
        fix = f"did you mean {meant}? It takes {keys()[meant].values}"
    elif (section := key.partition(".")[0]) in GROUPS:
        names = [name.rpartition(".")[2] for name in keys() if name.startswith(f"{section}.")]
        fix = f"the keys of {section} are " + ", ".join(names)
    else:
        fix = "see docs/reference/configuration.md for all keys; the sections are " + ", ".join(GROUPS)
    return Problem(code="FT101", what=f"there is no key {shown(key, quoted=False)}", where=where, fix=fix)


def shown(value: Any, *, quoted: bool = True) -> str:
    """A value as an error message prints it: on one line, and cut when it is long."""
    text = json.dumps(value, default=str, ensure_ascii=True) if quoted else str(value)
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= _LONGEST_SHOWN_VALUE else text[: _LONGEST_SHOWN_VALUE - 3] + "..."


def _known_prefix(location: list[str]) -> str:
    """The key or section that a location of pydantic lies in; it appends list indices and union members."""
    for length in range(len(location), 0, -1):
        name = ".".join(location[:length])
        if name in keys() or name in GROUPS:
            return name
    return ""


def _missing(key: str, *, where: str) -> Problem:
    if key in GROUPS:
        fix = f"choose one of the group, {key}=OPTION, or give every key of the section"
    else:
        fix = f"set {key} to {keys()[key].values}"
    return Problem(code="FT104", what=f"{key} has no value", where=where, fix=fix)


def _refused(key: str, finding: Mapping[str, Any], *, where: str) -> Problem:
    if key in GROUPS:
        return Problem(
            code="FT103",
            what=f"{key} is {shown(finding['input'])}, which is no section of keys and values",
            where=where,
            fix=f"set keys inside it, such as {next(name for name in keys() if name.startswith(key + '.'))}",
        )
    value = finding["input"]
    fix = f"set {key} to {keys()[key].values}"
    if finding["type"] == "tuple_type" and isinstance(value, str):
        fix += f": {key}=[{shown(value, quoted=False)}]"
    verb = "holds" if isinstance(finding["loc"][-1], int) else "is"
    return Problem(
        code="FT103",
        what=f"{key} {verb} {shown(value)}, but it takes {keys()[key].values}",
        where=where,
        fix=fix,
    )


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
