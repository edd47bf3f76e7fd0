"""Reading ``site.yaml``: a :class:`SitePolicy`, or every problem of the file at once.

The file is YAML 1.2: 20:00 is a text, ``no`` is a text, 1e-6 is a number, and no key may stand twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import yaml
from pydantic import ValidationError

import fedtune
from fedtune.config.validate import shown
from fedtune.errors import MachineError, Problem
from fedtune.site.policy_problems import ADAPTER, contradictions, schema_problems
from fedtune.site.policy_schema import SitePolicy

__all__ = ["PolicyFile", "example_path", "load_policy", "parse_policy"]

_MAX_BYTES: Final = 2**20


@dataclass(frozen=True, kw_only=True)
class PolicyFile:
    """A policy as it was read.

    Attributes:
        path: Where from.
        sha256: Of the file's bytes, in hex: what an audit log and an approval name.
        policy: What it says.
    """

    path: Path
    sha256: str
    policy: SitePolicy


def load_policy(path: Path) -> PolicyFile:
    """Read a site's policy.

    Raises:
        MachineError: FT820 for a file that cannot be read, that others can write, or that is no YAML;
            otherwise every problem in it at once: FT821 an unknown key, FT822 a value that a key does not
            take, FT823 a key without a value, FT824 values that contradict each other.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            raw = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise MachineError(_unusable(f"the policy cannot be read: {error.strerror}", str(path))) from error
    if mode & 0o022:
        what = f"the policy can be changed by others than its owner (mode {mode & 0o777:o})"
        raise MachineError(_unusable(what, str(path), fix="chmod 600 the file, after you have read it again"))
    if len(raw) > _MAX_BYTES:
        raise MachineError(_unusable(f"the policy has more than {_MAX_BYTES:,} bytes", str(path)))
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise MachineError(_unusable(f"the policy is not UTF-8 at byte {error.start}", str(path))) from None
    policy = parse_policy(text, where=str(path))
    return PolicyFile(path=path, sha256=hashlib.sha256(raw).hexdigest(), policy=policy)


def parse_policy(text: str, *, where: str) -> SitePolicy:
    """Parse the text of a policy.

    Args:
        text: YAML.
        where: What the text is, for the reader of an error.

    Raises:
        MachineError: As `load_policy`.
    """
    try:
        loader = _Loader(text)
        values = loader.get_single_data()
        plain = json.dumps(values)
    except (yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise MachineError(_unusable(f"this is no YAML: {shown(reason, quoted=False)}", where)) from None
    if not isinstance(values, dict):
        raise MachineError(_unusable(f"this is {shown(values)} and no keys with values", where))
    problems = [
        _unusable(
            f"the key {shown(key, quoted=False)} stands twice",
            f"{where}, line {line}",
            fix="keep one of the two",
        )
        for key, line in loader.repeated
    ]
    try:
        policy = ADAPTER.validate_json(plain, strict=True)
    except ValidationError as error:
        problems += schema_problems(error, where)
    else:
        problems += contradictions(policy, where)
    if problems:
        raise MachineError(problems)
    return policy


def example_path() -> Path:
    """Where the commented example is: in a wheel inside the package, in a checkout beside it."""
    package = Path(fedtune.__file__).resolve().parent
    installed = package / "site" / "site.example.yaml"
    return installed if installed.is_file() else package.parent / "client" / "site.example.yaml"


def _unusable(what: str, where: str, *, fix: str | None = None) -> Problem:
    return Problem(
        code="FT820",
        what=what,
        where=where,
        fix=fix or f"start from the commented example, {example_path()}",
    )


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML 1.2's scalars, and a note of keys that stand twice: the last one would silently win."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.repeated: list[tuple[str, int]] = []

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
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
