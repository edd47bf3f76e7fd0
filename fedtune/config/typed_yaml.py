"""Settings of an operator in one YAML file, typed: a frozen object, or every problem of the file at once.

The files are YAML 1.2: 20:00 is a text, ``no`` is a text, 1e-6 is a number, and no key may stand twice. Every
key has to be given, so that nothing follows from a default that its reader does not see.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Final, Generic, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from fedtune.config.keys import Key, in_words, similar
from fedtune.config.validate import shown
from fedtune.errors import MachineError, Problem

__all__ = ["ReadFile", "TypedYaml", "quoted"]

_MAX_BYTES: Final = 2**20
T = TypeVar("T")


def quoted(text: str) -> str:
    """Return a text as a value of YAML, on one line, whatever it holds."""
    return str(yaml.safe_dump(text, default_style='"', width=math.inf, allow_unicode=True)).rstrip("\n")


@dataclass(frozen=True, kw_only=True)
class ReadFile(Generic[T]):
    """A file as it was read.

    Attributes:
        path: Where from.
        sha256: Of its bytes, in hex.
        value: What it says.
    """

    path: Path
    sha256: str
    value: T


@dataclass(frozen=True, kw_only=True)
class TypedYaml(Generic[T]):
    """One kind of file.

    Attributes:
        kind: The dataclass that the file fills.
        noun: What people call the file, such as ``the policy``.
        fix: What to do about a file that cannot be used at all.
        code: FT code of a file that cannot be used; the next ones are for an unknown key, for a value that a
            key does not take, and for a key without a value.
    """

    kind: type[T]
    noun: str
    fix: str
    code: int

    @cached_property
    def adapter(self) -> TypeAdapter[T]:
        """The validator of the whole file."""
        return TypeAdapter(self.kind)

    @cached_property
    def keys(self) -> Mapping[str, Key]:
        """Every full key and its sections, in the order of the file."""
        schema = self.adapter.json_schema()
        return dict(_flatten(schema["properties"], schema.get("$defs", {}), prefix=""))

    def load(self, path: Path) -> ReadFile[T]:
        """Read a file.

        Raises:
            MachineError: A file that cannot be read, that others can write, or that is no YAML; otherwise
                every problem in it at once.
        """
        try:
            with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                if not stat.S_ISREG(mode):
                    raise MachineError(self.unusable(f"{self.noun} is no regular file", str(path)))
                raw = file.read(_MAX_BYTES + 1)
        except OSError as error:
            what = f"{self.noun} cannot be read: {error.strerror}"
            raise MachineError(self.unusable(what, str(path))) from error
        if mode & 0o022:
            what = f"{self.noun} can be changed by others than its owner (mode {mode & 0o777:o})"
            fix = "chmod 600 the file, after you have read it again"
            raise MachineError(self.unusable(what, str(path), fix=fix))
        if len(raw) > _MAX_BYTES:
            raise MachineError(self.unusable(f"{self.noun} has more than {_MAX_BYTES:,} bytes", str(path)))
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            what = f"{self.noun} is not UTF-8 at byte {error.start}"
            raise MachineError(self.unusable(what, str(path))) from None
        value = self.parse(text, where=str(path))
        return ReadFile(path=path, sha256=hashlib.sha256(raw).hexdigest(), value=value)

    def parse(self, text: str, *, where: str) -> T:
        """Parse the text of a file.

        Args:
            text: YAML.
            where: What the text is, for the reader of an error.

        Raises:
            MachineError: As `load`.
        """
        try:
            loader = _Loader(text)
            values = loader.get_single_data()
            plain = json.dumps(values)
        except (yaml.YAMLError, TypeError, ValueError, RecursionError, LookupError, AttributeError) as error:
            # PyYAML raises the last two for tags whose values do not fit, such as !!int ''.
            reason = " ".join(str(error).split())
            what = f"this is no YAML: {shown(reason, quoted=False)}"
            raise MachineError(self.unusable(what, where)) from None
        if not isinstance(values, dict):
            raise MachineError(self.unusable(f"this is {shown(values)} and no keys with values", where))
        problems = [
            self.unusable(
                f"the key {shown(key, quoted=False)} stands twice",
                f"{where}, line {line}",
                fix="keep one of the two",
            )
            for key, line in loader.repeated
        ]
        try:
            value = self.adapter.validate_json(plain, strict=True)
        except ValidationError as error:
            raise MachineError([*problems, *self._schema_problems(error, where)]) from None
        if problems:
            raise MachineError(problems)
        return value

    def unusable(self, what: str, where: str, *, fix: str | None = None) -> Problem:
        """The problem of a file that cannot be used at all."""
        return Problem(code=f"FT{self.code}", what=what, where=where, fix=fix or self.fix)

    def _schema_problems(self, error: ValidationError, where: str) -> Iterator[Problem]:
        """One problem for each key that pydantic refused."""
        seen = set()
        for finding in error.errors(include_url=False):
            location = [str(part) for part in finding["loc"]]
            if finding["type"] == "unexpected_keyword_argument":
                yield self._unknown(".".join(location), where)
                continue
            key = self._known_prefix(location)
            if not key:
                yield self.unusable(f"this cannot be used: {shown(finding['msg'], quoted=False)}", where)
                continue
            if key in seen:
                continue
            seen.add(key)
            if finding["type"] == "missing":
                yield Problem(
                    code=f"FT{self.code + 3}",
                    what=f"{key} has no value",
                    where=f"{where}, key {key}",
                    fix=f"set {key} to {self.keys[key].values}",
                )
            else:
                yield self._refused(key, finding, where)

    def _known_prefix(self, location: list[str]) -> str:
        """The key that a location of pydantic lies in; it appends list indices and keys of mappings."""
        while location and ".".join(location) not in self.keys:
            location = location[:-1]
        return ".".join(location)

    def _unknown(self, name: str, where: str) -> Problem:
        section, _, last = name.rpartition(".")
        section = section if section in self.keys else ""
        inside = [key for key in self.keys if key.rpartition(".")[0] == section]
        others = {key.rpartition(".")[2]: key for key in self.keys}
        here = similar(last, [key.rpartition(".")[2] for key in inside])
        near = None if here else similar(last, others)
        meant = f"{section}.{here}".lstrip(".") if here else others[near] if near else None
        if meant is not None:
            fix = f"did you mean {meant}? It takes {self.keys[meant].values}"
        else:
            there = f"the keys of {section} are " if section else "the keys are "
            fix = there + ", ".join(key.rpartition(".")[2] for key in inside)
        return Problem(
            code=f"FT{self.code + 1}",
            what=f"there is no key {shown(name, quoted=False)}",
            where=f"{where}, key {shown(name, quoted=False)}",
            fix=fix,
        )

    def _refused(self, key: str, finding: Mapping[str, Any], where: str) -> Problem:
        values = self.keys[key].values
        inside = [str(part) for part in finding["loc"][key.count(".") + 1 :]]
        verb = "holds" if inside else "is"
        fix = str(finding["ctx"]["error"]) if finding["type"] == "value_error" else f"set {key} to {values}"
        return Problem(
            code=f"FT{self.code + 2}",
            what=f"{key} {verb} {shown(finding['input'])}, but it takes {values}",
            where=f"{where}, key {shown('.'.join((key, *inside)), quoted=False)}",
            fix=fix,
        )


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


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML 1.2's scalars, keys that are texts as they stand, and a note of keys that stand twice: the last
    one would silently win. Aliases are refused: a few lines of them make a value of any size.
    """

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.repeated: list[tuple[str, int]] = []

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"write the value out instead of *{self.peek_event().anchor}")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode):
                continue
            key.tag = "tag:yaml.org,2002:str"
            if key.value in seen:
                self.repeated.append((key.value, key.start_mark.line + 1))
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


_SCALARS: Final = {  # type -> what it looks like, and its first character
    "null": (r"(~|null|)$", ["~", "n", ""]),
    "bool": (r"(true|false)$", ["t", "f"]),
    "int": (r"[-+]?(0|[1-9][0-9]*)$", [*"-+0123456789"]),
    "float": (r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$", [*"-+.0123456789"]),
}
for _tag, (_pattern, _first) in _SCALARS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)
