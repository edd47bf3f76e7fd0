"""A configuration as text: canonical JSON is hashed and sent from a server to its clients, YAML is kept with
a run for people to read. Both are parsed by the same strict schema.
"""

from __future__ import annotations

import hashlib
import json

import yaml

from fedtune.config.keys import adapter
from fedtune.config.rules import combination_problems
from fedtune.config.schema import Config
from fedtune.config.validate import shown, validate_json
from fedtune.errors import ConfigError, Problem

__all__ = [
    "MAX_CONFIG_CHARACTERS",
    "config_from_json",
    "config_from_yaml",
    "config_hash",
    "config_to_json",
    "config_to_yaml",
]

MAX_CONFIG_CHARACTERS = 262_144
"""Longest text that is parsed: a full configuration takes about 2,000 characters."""


def config_to_json(config: Config) -> str:
    """The canonical JSON of a configuration.

    Guarantees:
        - equal configurations give equal texts: keys sorted, no spaces, ASCII only;
        - :func:`config_from_json` gives the same configuration back, floats to the last bit.
    """
    values = adapter().dump_python(config, mode="json")
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def config_from_json(text: str, *, where: str = "the JSON of a configuration") -> Config:
    """Parse the JSON of a configuration; made for text that came over the wire.

    Nothing in it is imported, instantiated by name or resolved: it is parsed into the schema or refused.

    Args:
        text: One JSON object, as :func:`config_to_json` writes it.
        where: Where the text came from, for the reader of an error.

    Raises:
        ConfigError: With all problems of a text that is not a complete, valid and possible configuration.
    """
    if len(text) > MAX_CONFIG_CHARACTERS:
        raise ConfigError(
            Problem(
                code="FT107",
                what=f"the text has {len(text):,} characters, the most is {MAX_CONFIG_CHARACTERS:,}",
                where=where,
                fix="send the JSON of one configuration and nothing else",
            )
        )
    result = validate_json(text, where=where)
    if not isinstance(result, Config):
        raise ConfigError(result)
    if problems := combination_problems(result):
        raise ConfigError(problems)
    return result


def config_hash(config: Config) -> str:
    """SHA-256 of the canonical JSON, in hex: equal for equal configurations."""
    return hashlib.sha256(config_to_json(config).encode("ascii")).hexdigest()


def config_to_yaml(config: Config) -> str:
    """The configuration as YAML in the order of the schema, the ``config.yaml`` of a run directory."""
    values = adapter().dump_python(config, mode="json")
    return str(yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]  # PyYAML comes without types
    """YAML takes three characters for line breaks that JSON does not, and folds them into a space."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    breaks = any(character in value for character in "\x85\u2028\u2029")
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style='"' if breaks else None)


_Dumper.add_representer(str, _text)


def config_from_yaml(text: str, *, where: str) -> Config:
    """Parse what :func:`config_to_yaml` wrote.

    Raises:
        ConfigError: For a text that is not a complete, valid and possible configuration.
    """
    try:
        plain = json.dumps(yaml.safe_load(text), default=str)
    except (yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            Problem(
                code="FT107",
                what=f"this is not the YAML of a configuration: {shown(reason, quoted=False)}",
                where=where,
                fix="restore the file; fedtune writes it and never needs it edited",
            )
        ) from error
    return config_from_json(plain, where=where)
