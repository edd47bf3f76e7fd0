"""What is recorded of the sites that take part, and what the record says of those of earlier rounds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fedtune.federation.wire import HelloReply
from fedtune.observability.events import (
    ModelLoaded,
    Sites,
    SiteSize,
    Split,
    effective_events,
    read_events,
)

__all__ = ["base_of_earlier_rounds", "roll_call"]


def base_of_earlier_rounds(events: Path) -> str | None:
    """Return the hash of the base model that a run's rounds were trained on; None before the first."""
    loaded = [event.hash for event in effective_events(read_events(events)) if isinstance(event, ModelLoaded)]
    return loaded[-1] if loaded else None


def roll_call(hellos: Mapping[str, HelloReply], split: Split | None) -> tuple[ModelLoaded, Sites]:
    """Return the events that say who takes part, and with which model.

    Args:
        hellos: Who was greeted, by name; at least one.
        split: What a simulation knows of the labels at each site.
    """
    greeted = [hellos[name] for name in sorted(hellos)]
    first = greeted[0]
    loaded = ModelLoaded(
        seconds=max(hello.load_seconds for hello in greeted),
        name=first.base_name,
        hash=first.base_hash,
        parameters=first.parameters,
        adapter_parameters=first.adapter_parameters,
        quantization=first.quantization,
        compute_dtype=first.compute_dtype,
    )
    sizes = tuple(
        SiteSize(
            name=hello.site,
            train_examples=hello.train_examples,
            held_out_examples=hello.held_out_examples,
            version=hello.version,
        )
        for hello in greeted
    )
    skipped = max(hello.skipped_rows or 0 for hello in greeted)
    return loaded, Sites(sites=sizes, skipped_rows=skipped, split=split)
