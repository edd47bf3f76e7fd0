"""A site's state as those who watch it read it: JSON for ``/health``, Prometheus's text for ``/metrics``.

The text format is version 0.0.4: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

from fedtune.site.health_state import Snapshot

__all__ = ["METRICS_TYPE", "health_fields", "metrics_text"]

METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, kw_only=True)
class _Family:
    """One metric, with a value for each set of labels."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    values: Mapping[tuple[tuple[str, str], ...], float | None]

    def lines(self) -> Iterator[str]:
        yield f"# HELP fedtune_site_{self.name} {self.help}"
        yield f"# TYPE fedtune_site_{self.name} {self.kind}"
        for labels, value in self.values.items():
            if value is not None:
                shown = ",".join(f'{name}="{_escaped(text)}"' for name, text in labels)
                yield f"fedtune_site_{self.name}{f'{{{shown}}}' if shown else ''} {value!r}"


def health_fields(now: Snapshot) -> dict[str, Any]:
    """The object that ``/health`` gives; the keys are an interface."""
    error = now.last_error
    return {
        "status": now.status,
        "version": now.version,
        "site": now.site,
        "federation": now.federation,
        "connected": now.connected,
        "paused": now.paused,
        "model_loaded": now.model_loaded,
        "busy": now.busy,
        "run": now.run,
        "round": now.round,
        "last_round_end": _utc(now.last_round_end),
        "last_success": _utc(now.last_success),
        "last_error": None if error is None else {"code": error.code, "time": _utc(error.time)},
    }


def metrics_text(now: Snapshot, *, resident_bytes: int) -> str:
    """All metrics; one that has no value yet has no sample.

    Args:
        now: The daemon.
        resident_bytes: Memory of its process.
    """
    lines = [line for family in _families(now, resident_bytes) for line in family.lines()]
    return "".join(f"{line}\n" for line in lines)


def _families(now: Snapshot, resident_bytes: int) -> Iterator[_Family]:
    about = (("version", now.version), ("site", now.site), ("federation", now.federation))
    yield _Family(name="info", kind="gauge", help="What runs here, as labels.", values={about: 1})
    yield _Family(
        name="messages_total",
        kind="counter",
        help="Messages of the coordinator, by kind and outcome.",
        values={(("kind", kind), ("outcome", end)): count for (kind, end), count in now.messages.items()},
    )
    yield _Family(
        name="refused_total",
        kind="counter",
        help="Refusals, by each reason that was given.",
        values={(("reason", reason),): count for reason, count in now.refused.items()},
    )
    yield _single("received_bytes_total", "counter", "Bytes of all messages.", now.bytes_received)
    yield _single("sent_bytes_total", "counter", "Bytes of all answers.", now.bytes_sent)
    yield _single("rounds_trained_total", "counter", "Rounds of local training.", now.rounds_trained)
    yield _single("training_seconds_total", "counter", "Time spent training.", now.training_seconds)
    yield _single("round", "gauge", "Round of the last message that named one.", now.round)
    yield _single("busy", "gauge", "1 while a message is handled.", int(now.busy))
    yield _single("connected", "gauge", "1 while the coordinator is reached.", int(now.connected))
    yield _single("paused", "gauge", "1 while the operator has paused the site.", int(now.paused))
    yield _single("model_loaded", "gauge", "1 if the base model is in memory.", int(now.model_loaded))
    yield _single("resident_memory_bytes", "gauge", "Memory of the daemon's process.", resident_bytes)
    yield _single(
        "last_success_timestamp_seconds", "gauge", "When a message was last answered.", now.last_success
    )


def _single(name: str, kind: Literal["counter", "gauge"], help: str, value: float | None) -> _Family:
    return _Family(name=name, kind=kind, help=help, values={(): value})


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _utc(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
