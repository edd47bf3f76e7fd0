"""Reading ``site.yaml``: a :class:`SitePolicy`, or every problem of the file at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import fedtune
from fedtune.config.typed_yaml import TypedYaml
from fedtune.errors import MachineError, Problem
from fedtune.site.policy_schema import SitePolicy

__all__ = ["POLICY", "PolicyFile", "example_path", "load_policy", "parse_policy"]


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


def example_path() -> Path:
    """Where the commented example is: in a wheel inside the package, in a checkout beside it."""
    package = Path(fedtune.__file__).resolve().parent
    installed = package / "site" / "site.example.yaml"
    return installed if installed.is_file() else package.parent / "client" / "site.example.yaml"


POLICY: Final = TypedYaml(
    kind=SitePolicy,
    noun="the policy",
    fix=f"start from the commented example, {example_path()}",
    code=820,
)


def load_policy(path: Path) -> PolicyFile:
    """Read a site's policy.

    Raises:
        MachineError: FT820 for a file that cannot be read, that others can write, or that is no YAML;
            otherwise every problem in it at once: FT821 an unknown key, FT822 a value that a key does not
            take, FT823 a key without a value, FT824 values that contradict each other.
    """
    read = POLICY.load(path)
    _refuse_contradictions(read.value, str(path))
    return PolicyFile(path=path, sha256=read.sha256, policy=read.value)


def parse_policy(text: str, *, where: str) -> SitePolicy:
    """Parse the text of a policy.

    Args:
        text: YAML.
        where: What the text is, for the reader of an error.

    Raises:
        MachineError: As `load_policy`.
    """
    policy = POLICY.parse(text, where=where)
    _refuse_contradictions(policy, where)
    return policy


def _refuse_contradictions(policy: SitePolicy, where: str) -> None:
    if problems := list(_contradictions(policy, where)):
        raise MachineError(problems)


def _contradictions(policy: SitePolicy, where: str) -> Iterator[Problem]:
    """Values that are each allowed and do not go together."""
    hours, data = policy.hours, policy.data
    if hours is not None and hours.start == hours.end:
        yield Problem(
            code="FT824",
            what=f"hours start and end at {hours.start}: that may mean all day, or never",
            where=f"{where}, keys hours.start, hours.end",
            fix="set hours to null for all day, or limits.rounds_per_day to 0 for never",
        )
    if data.files and not {"site", "files"} & set(data.sources):
        yield Problem(
            code="FT824",
            what="data.files names files, but data.sources allows neither site nor files",
            where=f"{where}, keys data.files, data.sources",
            fix="add site to data.sources, or set data.files to []",
        )
    if "site" in data.sources and not data.files:
        yield Problem(
            code="FT824",
            what="data.sources allows the site's rows, but data.files names none",
            where=f"{where}, keys data.files, data.sources",
            fix="name the site's files in data.files, or set data.sources to []",
        )
