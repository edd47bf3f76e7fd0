"""Overrides as users type them, checked one by one before hydra composes anything.

Hydra stops at the first override that it cannot apply. Here each is looked at alone, so that all wrong ones
are reported together; the right ones go on to be composed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, QuotedString
from hydra.errors import HydraException

from fedtune.config.keys import GROUPS, is_known, keys, similar
from fedtune.config.validate import shown, unknown_key
from fedtune.errors import Problem

__all__ = ["CheckedOverrides", "check_overrides", "expand_sweep", "options", "quoted"]

COMMAND_LINE = "the overrides"


@dataclass(frozen=True, kw_only=True)
class CheckedOverrides:
    """What is left of a list of overrides after a look at each.

    Attributes:
        accepted: Those that can be applied, in hydra's grammar, in the given order.
        problems: One for each of the others.
        sources: Full key -> the accepted override that set it, for the reader of an error.
    """

    accepted: tuple[str, ...]
    problems: tuple[Problem, ...]
    sources: Mapping[str, str]


def check_overrides(
    overrides: Sequence[str], *, directories: Sequence[Path], sweep: bool = False
) -> CheckedOverrides:
    """Look at each override: can it be read, does its key or option exist, is it one value?

    Args:
        overrides: Such as ``training.learning_rate=1e-3``, ``partition=iid``, ``+data.columns.id=key``.
        directories: Folders of configuration groups.
        sweep: Whether several values for a key (``seed=0,1``) are meant.
    """
    accepted: list[str] = []
    problems: list[Problem] = []
    sources: dict[str, str] = {}
    for text in overrides:
        override = _parse(text)
        if isinstance(override, Problem):
            problems.append(override)
            continue
        found = _problems_of(override, directories=directories, sweep=sweep)
        problems.extend(found)
        if not found:
            accepted.append(_applicable(override))
            sources[override.key_or_group] = f"the override {shown(text, quoted=False)}"
    return CheckedOverrides(accepted=tuple(accepted), problems=tuple(problems), sources=sources)


def options(group: str, directories: Sequence[Path]) -> tuple[str, ...]:
    """The YAML files of a group, by name, such as ``('dirichlet', 'hospitals', 'iid')``."""
    return tuple(sorted({path.stem for folder in directories for path in (folder / group).glob("*.yaml")}))


def expand_sweep(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of each job of a grid, in the order in which hydra's own sweeper runs them.

    The overrides must have passed :func:`check_overrides`. Ranges that only an optimizer can walk
    (``interval``, ``glob`` over options) make no grid: the list is then empty.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # noqa: PLC0415

    parsed = OverridesParser.create().parse_overrides(list(overrides))
    if any(override.is_sweep_override() and not override.is_discrete_sweep() for override in parsed):
        return []
    jobs: list[list[str]] = BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]
    return jobs


def quoted(value: str) -> str:
    """A string as the value of an override, whatever characters it holds."""
    # A backslash is itself, but before an interpolation to OmegaConf, and before a quote to hydra.
    value = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    escaped = re.sub(r"(\\*)'", r"\1\1\'", value)
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return f"'{escaped}{chr(92) * trailing}'"


def _parse(text: str) -> Override | Problem:
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        reason = str(error).splitlines()[0]
        if "=" not in text:
            fix = f"give it a value: {shown(text, quoted=False)}=VALUE"
        else:
            key, _, value = text.partition("=")
            fix = (
                "put a value with spaces, commas, equals signs or brackets in quotes: "
                f"'{key}=\"{shown(value, quoted=False)}\"'"
            )
        return Problem(
            code="FT106",
            what=f"the override {shown(text)} cannot be read: {shown(reason, quoted=False)}",
            where=COMMAND_LINE,
            fix=fix,
        )


def _problems_of(override: Override, *, directories: Sequence[Path], sweep: bool) -> list[Problem]:
    key = override.key_or_group
    where = f"the override {shown(override.input_line, quoted=False)}"
    if key == "hydra" or key.startswith(("hydra.", "hydra/")):
        return []
    if override.is_sweep_override() and not sweep:
        return [
            Problem(
                code="FT106",
                what=f"{key} has several values, but this is a single run",
                where=where,
                fix="add -m to run one job for each value; for one list write "
                f"{key}=[{_value_text(override)}]",
            )
        ]
    if key not in (*GROUPS, "experiment"):
        return [] if is_known(key) else [unknown_key(key, where=where)]
    if override.type is OverrideType.DEL:
        return []
    value = override.value()
    if key in GROUPS and isinstance(value, dict):
        below = [f"{key}.{name}" for name in value]
        return [unknown_key(name, where=where) for name in below if not is_known(name)]
    return _unknown_options(key, override, directories=directories, where=where)


def _unknown_options(
    group: str, override: Override, *, directories: Sequence[Path], where: str
) -> list[Problem]:
    known = options(group, directories)
    problems = []
    for chosen in _choices(override):
        if chosen in known:
            continue
        name = "null" if chosen is None else shown(str(chosen), quoted=False)
        meant = similar(name, known)
        fix = f"did you mean {group}={meant}? " if meant else ""
        fix += "The options are " + ", ".join(known)
        if chosen is None:
            fix = f"leave {group} out of the overrides, or choose an option: {', '.join(known)}"
        elif group == "model":
            fix += "; for any other model set model.name=HF_ID, a folder or a .gguf file"
        problems.append(
            Problem(
                code="FT102",
                what=f"the group {group} has no option {name}",
                where=where,
                fix=fix,
            )
        )
    return problems


def _choices(override: Override) -> list[Any]:
    values: list[Any]
    if override.is_sweep_override():
        if not override.is_discrete_sweep():
            return []
        values = list(override.sweep_iterator())
    else:
        value = override.value()
        values = list(value) if isinstance(value, list) else [value]
    return [value.text if isinstance(value, QuotedString) else value for value in values]


def _applicable(override: Override) -> str:
    """The override as hydra takes it: ``+`` is needed for keys of a mapping, and only there."""
    line = override.input_line or ""
    key = override.key_or_group
    if key.startswith("hydra") or override.type is OverrideType.DEL:
        return line
    bare = line.lstrip("+")
    owners = (key, key.rpartition(".")[0])
    return f"++{bare}" if any(name in keys() and keys()[name].is_mapping for name in owners) else bare


def _value_text(override: Override) -> str:
    return (override.input_line or "").partition("=")[2]
