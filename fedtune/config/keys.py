"""The flattened schema: every full key with its meaning and its values, and did-you-mean over them.

Everything here is read off the dataclasses in :mod:`fedtune.config.schema`, so that errors, the reference
page and the checks of overrides cannot say anything else than what pydantic will accept.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import TypeAdapter

from fedtune.config.schema import Config

__all__ = ["GROUPS", "Key", "adapter", "in_words", "is_known", "keys", "similar", "similar_key"]

GROUPS = (
    "model",
    "data",
    "partition",
    "peft",
    "training",
    "updates",
    "aggregation",
    "defence",
    "gate",
    "server_optimizer",
    "personal",
    "federation",
    "asynchronous",
    "speed",
    "secagg",
    "evaluation",
    "attack",
    "backend",
)
"""The groups that are sections of the configuration, in the order of :class:`Config`."""

# What users of other libraries type for the same thing. Spelling alone cannot find these.
_OTHER_NAMES = {
    "actors": "backend.actors",
    "base_model": "model.name",
    "batch_size": "training.examples_per_step",
    "bs": "training.examples_per_step",
    "dataset": "data.source",
    "epochs": "training.steps_per_round",
    "fraction_fit": "federation.clients_per_round",
    "grad_clip": "training.max_gradient_norm",
    "label": "partition.column",
    "label_column": "partition.column",
    "local_epochs": "training.steps_per_round",
    "local_steps": "training.steps_per_round",
    "lora_alpha": "peft.alpha",
    "lora_dropout": "peft.dropout",
    "lora_r": "peft.rank",
    "lora_rank": "peft.rank",
    "lr": "training.learning_rate",
    "lr_scheduler_type": "training.decay",
    "max_grad_norm": "training.max_gradient_norm",
    "max_length": "data.max_tokens",
    "max_seq_length": "data.max_tokens",
    "max_steps": "training.steps_per_round",
    "min_fit_clients": "federation.min_replies",
    "model_name_or_path": "model.name",
    "mu": "training.proximal_mu",
    "num_clients": "partition.clients",
    "num_rounds": "federation.rounds",
    "output_dir": "runs_dir",
    "per_device_train_batch_size": "training.examples_per_step",
    "proximal_mu": "training.proximal_mu",
    "r": "peft.rank",
    "random_seed": "seed",
    "run_name": "name",
    "scheduler": "training.decay",
    "steps": "training.steps_per_round",
    "strategy": "aggregation.method",
    "val_fraction": "data.held_out_fraction",
    "warmup_ratio": "training.warmup_fraction",
}


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key of the configuration.

    Attributes:
        name: The full key, such as ``training.learning_rate``.
        description: What it means, from the docstring under the field.
        values: The values it takes, in words, such as ``a number above 0, or null``.
        is_mapping: Whether the user may add keys of his own below it.
    """

    name: str
    description: str
    values: str
    is_mapping: bool


@cache
def adapter() -> TypeAdapter[Config]:
    """The validator of a whole :class:`Config`, built once."""
    return TypeAdapter(Config)


@cache
def keys() -> Mapping[str, Key]:
    """Every full key of the configuration, in the order of the schema."""
    schema = adapter().json_schema()
    return dict(_flatten(schema["properties"], schema["$defs"], prefix=""))


def _flatten(
    properties: Mapping[str, Any], definitions: Mapping[str, Any], *, prefix: str
) -> Iterable[tuple[str, Key]]:
    for field, field_schema in properties.items():
        if "$ref" in field_schema:
            section = definitions[field_schema["$ref"].rsplit("/", 1)[1]]
            yield from _flatten(section["properties"], definitions, prefix=f"{field}.")
            continue
        name = prefix + field
        yield (
            name,
            Key(
                name=name,
                description=" ".join(field_schema.get("description", "").split()),
                values=in_words(field_schema),
                is_mapping=field_schema.get("type") == "object",
            ),
        )


def in_words(schema: Mapping[str, Any]) -> str:
    """The values that a JSON schema admits, as a phrase; a type may bring its own under ``words``."""
    match schema:
        case {"words": str(words)}:
            pass
        case {"type": "array", "items": {"words": str(each)}}:
            words = f"a list, each {each}"
        case {"anyOf": choices}:
            words = ", or ".join(in_words(choice) for choice in choices)
        case {"const": only}:
            words = str(only)
        case {"enum": values}:
            words = "one of " + ", ".join(str(value) for value in values)
        case {"type": "array", "items": {"enum": values}}:
            words = "a list of " + ", ".join(str(value) for value in values)
        case {"type": "array", "items": {"const": only}}:
            words = f"a list of {only}"
        case {"pattern": _}:
            words = "a folder name of letters, digits and . _ = + - that starts with a letter or digit"
        case {"minLength": 1}:
            words = "a string that is not empty"
        case {"type": "object", "additionalProperties": {"type": "integer" | "number"} as value}:
            words = f"a mapping of strings to numbers, each {in_words(value)}"
        case {"type": kind}:
            words = _KINDS[kind] + _bounds(schema)
    return words


_KINDS = {
    "null": "null",
    "boolean": "true or false",
    "integer": "an integer",
    "number": "a number",
    "array": "a list of strings",
    "object": "a mapping of strings to strings",
    "string": "a string",
}


def _bounds(schema: Mapping[str, Any]) -> str:
    words = {"exclusiveMinimum": "above", "minimum": "from", "maximum": "up to", "exclusiveMaximum": "below"}
    return "".join(f" {word} {schema[bound]}" for bound, word in words.items() if bound in schema)


def is_known(name: str) -> bool:
    """Whether ``name`` is a full key, a section, or lies below a key whose value is a mapping."""
    if name in GROUPS or name in keys():
        return True
    parent = name.rpartition(".")[0]
    return parent in keys() and keys()[parent].is_mapping


def similar_key(name: str) -> str | None:
    """The full key that a wrong ``name`` most likely means, or None when nothing is near.

    What counts is the last part (``learning_rate``): the names that other libraries use for it, the same in
    another section, one spelled like it in this section or elsewhere, and its initials (``lr``).
    """
    section, _, last = name.lower().rpartition(".")
    if last in _OTHER_NAMES:
        return _OTHER_NAMES[last]
    by_part: dict[str, list[str]] = {}
    for key in keys():
        by_part.setdefault(key.rpartition(".")[2], []).append(key)
    if last in by_part:
        return _nearest(name, by_part[last])
    of_section = [part for part, of_part in by_part.items() if f"{section}.{part}" in of_part]
    part = similar(last, of_section) or similar(last, by_part)
    if part is not None:
        return _nearest(name, by_part[part])
    initials = [key for part, of_part in by_part.items() if _initials(part) == last for key in of_part]
    return _nearest(name, initials) if initials else None


def similar(word: str, known: Iterable[str]) -> str | None:
    """The member of ``known`` that is spelled most like ``word``, or None when none is near."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return found[0] if found else None


def _initials(part: str) -> str:
    return "".join(word[:1] for word in part.split("_"))


def _nearest(name: str, candidates: list[str]) -> str:
    """The candidate most like ``name``; never None, for the candidates already match in their last part."""
    return max(candidates, key=lambda key: difflib.SequenceMatcher(None, name, key).ratio())
