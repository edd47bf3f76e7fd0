"""Numbers that follow from a configuration alone."""

from __future__ import annotations

from collections.abc import Iterable

from fedtune.config.methods import Factors, method
from fedtune.config.schema import Config, UpdatesConfig

__all__ = [
    "clients_in_a_round",
    "clip_bound",
    "is_fit",
    "keeps_own_model",
    "kept_rounds",
    "most_steps",
    "quantized_sizes",
    "rounds_a_training",
    "schedule_of",
    "secure_clip",
    "trained_factors",
    "update_bytes",
]

_SCALE_BYTES = 4


def clients_in_a_round(config: Config) -> int | None:
    """Return how many clients a round has; None where the configuration alone does not tell."""
    clients = config.partition.clients or len(config.partition.values) or None
    drawn = config.federation.clients_per_round
    return drawn if clients is None or (drawn is not None and drawn <= clients) else clients


def clip_bound(config: Config) -> float:
    """Return the public bound of an update's entries, in the unit of the parameters."""
    if config.secagg.clip_bound is not None:
        return config.secagg.clip_bound
    return config.training.learning_rate * config.training.steps_per_round


def secure_clip(config: Config) -> float | None:
    """Return the bound to which secure aggregation clips; None where the server sees each update."""
    return clip_bound(config) if config.secagg.enabled else None


def kept_rounds(config: Config, *, least: int) -> int:
    """Return of how many of its last trainings a site keeps what it needs to do one of them again.

    A server that is resumed goes back by at most one of its steps. A round is one training of a site; a
    buffer may hold updates of one site alone, and beside them the site may have had one that came too late,
    one that nobody waits for any more, and one under way.

    Args:
        config: The whole configuration.
        least: What rounds need.
    """
    if config.asynchronous.name == "none":
        return least
    return max(least, config.asynchronous.buffer + 4)


def schedule_of(config: Config) -> tuple[Factors, ...]:
    """Return the factors that the rounds send, in turn; it repeats."""
    known = method(config.aggregation.method)
    masked = known.masked if config.secagg.enabled else None
    return known.schedule if masked is None else masked.schedule


def _fitted(config: Config) -> Factors:
    masked = method(config.aggregation.method).masked
    return masked.fitted if config.secagg.enabled and masked is not None else ()


def rounds_a_training(config: Config) -> int:
    """Return how many rounds one training takes: 2 where every second one fits to what the first trained."""
    return len(schedule_of(config)) if _fitted(config) else 1


def is_fit(config: Config, round_number: int) -> bool:
    """Say whether sites train nothing in a round, and fit a factor to what they trained in the one before."""
    return bool(_fitted(config)) and round_number % rounds_a_training(config) == 0


def trained_factors(config: Config, factors: Factors) -> Factors:
    """Return the factors that a site trains in a round that sends these.

    Beside them there are those that it keeps, and those that it fits in the round after.
    """
    others = {*method(config.aggregation.method).kept, *_fitted(config)}
    return (*factors, *(factor for factor in sorted(others) if factor not in factors))


def keeps_own_model(config: Config) -> bool:
    """Say whether each site has a model of its own in the end."""
    return config.personal.name != "none" or bool(method(config.aggregation.method).kept)


def most_steps(config: Config) -> int:
    """Return the most optimizer steps that one request asks of a site, those of its own model included."""
    shared, personal = config.training.steps_per_round, config.personal
    if personal.name == "ditto":
        return 2 * shared
    return max(shared, personal.steps) if personal.name == "fine_tuning" else shared


def quantized_sizes(updates: UpdatesConfig, values: int) -> tuple[int, int]:
    """Return how many bytes of integers and how many scales a quantized tensor takes.

    Args:
        updates: With a quantization other than ``none``.
        values: Number of the tensor's values n.

    Returns:
        n bytes for ``int8``, ceil(n / 2) for ``int4``; and ceil(n / block_size) scales.
    """
    code_bytes = values if updates.quantization == "int8" else -(-values // 2)
    return code_bytes, -(-values // updates.block_size)


def update_bytes(config: Config, sizes: Iterable[int], *, itemsize: int) -> int:
    """Return the bytes of an update's values as they travel, names and headers left out.

    Args:
        config: The whole configuration.
        sizes: Number of values of each tensor that travels.
        itemsize: Bytes of a value as the adapter is held.
    """
    if config.secagg.enabled:
        return sum(sizes) * config.secagg.ring_bits // 8
    if config.updates.quantization == "none":
        return sum(sizes) * itemsize
    quantized = (quantized_sizes(config.updates, values) for values in sizes)
    return sum(code_bytes + _SCALE_BYTES * scales for code_bytes, scales in quantized)
