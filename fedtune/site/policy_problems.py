"""What is wrong in a policy: pydantic's findings, and values that contradict each other, key by key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from fedtune.config.keys import Key, in_words, similar
from fedtune.config.validate import shown
from fedtune.errors import Problem
from fedtune.site.policy_schema import SitePolicy

__all__ = ["ADAPTER", "contradictions", "policy_keys", "schema_problems"]

ADAPTER: Final = TypeAdapter(SitePolicy)
"""The validator of a whole policy."""


@cache
def policy_keys() -> Mapping[str, Key]:
    """Every full key of a policy and its sections, in the order of the file."""
    schema = ADAPTER.json_schema()
    return dict(_flatten(schema["properties"], schema["$defs"], prefix=""))


def _flatten(
    properties: Mapping[str, Any], definitions: Mapping[str, Any], *, prefix: str
) -> Iterator[tuple[str, Key]]:
    for field, schema in properties.items():
        name = prefix + field
        choices = schema.get("anyOf", [schema])
        section = next((definitions[c["$ref"].rsplit("/", 1)[1]] for c in choices if "$ref" in c), None)
        if section is None:
            values = in_words(schema)
        else:
            values = "keys of its own, or null" if len(choices) > 1 else "keys of its own"
        description = " ".join(schema.get("description", "").split())
        yield name, Key(name=name, description=description, values=values, is_mapping=section is not None)
        if section is not None:
            yield from _flatten(section["properties"], definitions, prefix=f"{name}.")


def schema_problems(error: ValidationError, where: str) -> Iterator[Problem]:
    """One problem for each key that pydantic refused."""
    seen = set()
    for finding in error.errors(include_url=False):
        location = [str(part) for part in finding["loc"]]
        if finding["type"] == "unexpected_keyword_argument":
            yield _unknown(".".join(location), where)
            continue
        key = _known_prefix(location)
        if key in seen:
            continue
        seen.add(key)
        if finding["type"] == "missing":
            yield Problem(
                code="FT823",
                what=f"{key} has no value",
                where=f"{where}, key {key}",
                fix=f"set {key} to {policy_keys()[key].values}",
            )
        else:
            yield _refused(key, finding, where)


def _known_prefix(location: list[str]) -> str:
    """The key that a location of pydantic lies in; it appends list indices and keys of mappings."""
    name = ".".join(location)
    while name not in policy_keys():
        location = location[:-1]
        name = ".".join(location)
    return name


def _unknown(name: str, where: str) -> Problem:
    section, _, last = name.rpartition(".")
    inside = [key for key in policy_keys() if key.rpartition(".")[0] == section]
    others = {key.rpartition(".")[2]: key for key in policy_keys()}
    here = similar(last, [key.rpartition(".")[2] for key in inside])
    near = None if here else similar(last, others)
    meant = f"{section}.{here}".lstrip(".") if here else others[near] if near else None
    if meant is not None:
        fix = f"did you mean {meant}? It takes {policy_keys()[meant].values}"
    else:
        there = f"the keys of {section} are " if section else "the keys are "
        fix = there + ", ".join(key.rpartition(".")[2] for key in inside)
    return Problem(
        code="FT821",
        what=f"there is no key {shown(name, quoted=False)}",
        where=f"{where}, key {shown(name, quoted=False)}",
        fix=fix,
    )


def _refused(key: str, finding: Mapping[str, Any], where: str) -> Problem:
    values = policy_keys()[key].values
    inside = [str(part) for part in finding["loc"][key.count(".") + 1 :]]
    verb = "holds" if inside else "is"
    return Problem(
        code="FT822",
        what=f"{key} {verb} {shown(finding['input'])}, but it takes {values}",
        where=f"{where}, key {shown('.'.join((key, *inside)), quoted=False)}",
        fix=str(finding["ctx"]["error"]) if finding["type"] == "value_error" else f"set {key} to {values}",
    )


def contradictions(policy: SitePolicy, where: str) -> Iterator[Problem]:
    """Values that are each allowed and do not go together."""
    hours, data = policy.hours, policy.data
    if hours is not None and hours.start == hours.end:
        yield Problem(
            code="FT824",
            what=f"hours start and end at {hours.start}: that may mean all day, or never",
            where=f"{where}, keys hours.start, hours.end",
            fix="set hours to null for all day, or limits.rounds_per_day to 0 for never",
        )
    if data.files and "files" not in data.sources:
        yield Problem(
            code="FT824",
            what="data.files names files, but data.sources does not allow files",
            where=f"{where}, keys data.files, data.sources",
            fix="add files to data.sources, or set data.files to []",
        )
