"""The reference page of the configuration, written from the schema and the YAML groups themselves.

``python -m fedtune.config.reference > docs/reference/configuration.md`` renews it; a test keeps it equal.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from fedtune.config.compose import compose
from fedtune.config.keys import GROUPS, Key, keys
from fedtune.config.location import config_dir
from fedtune.config.overrides import options
from fedtune.config.wire import config_to_json

__all__ = ["reference_page"]

_HEAD = """\
# Configuration

A run is described by one configuration: a few keys of its own and sections. Each section is a group of
YAML files under `conf/`; choose a file by `GROUP=OPTION` and change any key by its full name:

    fedtune simulate experiment=demo partition=dirichlet partition.alpha=0.1 federation.rounds=10

Overrides apply from left to right. `experiment=NAME` sets several groups and keys at once; what stands beside
it on the command line wins. Put a value with spaces, commas or brackets in quotes:
`'data.files=[my rows.jsonl]'`. Several values with `-m` run one job for each of them:
`fedtune simulate -m seed=0,1,2 aggregation=fedavg,ffa`.

An unknown key, a value that a key does not take, and a combination that cannot work are refused before
anything is loaded, all at once; [FT101](errors/FT101.md) to [FT108](errors/FT108.md) explain them.

This page is written by `python -m fedtune.config.reference`; the column *default* is what
`fedtune simulate` takes without overrides.
"""


def reference_page() -> str:
    """The page as Markdown."""
    defaults = json.loads(config_to_json(compose(["name=timestamp"])))
    lines = chain([_HEAD, *_section("", defaults)], *(_section(group, defaults) for group in GROUPS))
    return "\n".join((*lines, *_experiments(), ""))


def _section(group: str, defaults: dict[str, Any]) -> Iterator[str]:
    yield f"## `{group}`\n" if group else "## The run\n"
    yield from _options_of(group)
    yield "| key | values | default | meaning |\n|---|---|---|---|"
    for key in keys().values():
        section, _, field = key.name.rpartition(".")
        if section == group:
            yield _row(key, (defaults[group] if group else defaults)[field])
    yield ""


def _row(key: Key, default: Any) -> str:
    shown = "date and time" if key.name == "name" else f"`{json.dumps(default)}`"
    meaning = key.description.replace("``", "`").replace("|", "\\|")
    return f"| `{key.name}` | {key.values} | {shown} | {meaning} |"


def _options_of(group: str) -> Iterator[str]:
    for option in options(group, (config_dir(),)) if group else ():
        yield f"- `{group}={option}`: {_purpose(config_dir() / group / f'{option}.yaml')}"
    if group:
        yield ""


def _experiments() -> Iterator[str]:
    yield "## Experiments\n"
    yield from _options_of("experiment")


def _purpose(path: Path) -> str:
    """The comment at the top of a YAML file, on one line."""
    comments = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            comments.append(line.removeprefix("#").strip())
    return " ".join(comments)


if __name__ == "__main__":
    sys.stdout.write(reference_page())
