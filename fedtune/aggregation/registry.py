"""From ``aggregation.method`` to the method: built in, or installed by another package."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points

from fedtune.aggregation.base import Aggregator
from fedtune.aggregation.linear import ALTERNATING, CORE, FEDAVG, FEDSA, FFA, ZERO_PADDING
from fedtune.aggregation.projection import PROJECTION, PROJECTION_IN_ROUNDS
from fedtune.aggregation.residual import fedex, flora
from fedtune.aggregation.sketch import SketchAggregator
from fedtune.aggregation.sketched_change import SketchedChangeAggregator
from fedtune.aggregation.svd import SVD
from fedtune.config.schema import AggregationConfig
from fedtune.errors import ConfigError, Problem

__all__ = ["ENTRY_POINT_GROUP", "aggregator", "method_names"]

ENTRY_POINT_GROUP = "fedtune.aggregators"

_BUILT_IN: dict[str, Callable[[AggregationConfig], Aggregator]] = {
    "fedavg": lambda _: FEDAVG,
    "ffa": lambda _: FFA,
    "alternating": lambda _: ALTERNATING,
    "core": lambda _: CORE,
    "fedsa": lambda _: FEDSA,
    "svd": lambda _: SVD,
    "fedex": lambda config: fedex(config.side_car_rank),
    "flora": lambda config: flora(config.side_car_rank),
    "projection": lambda _: PROJECTION,
    # Without a width the configuration is refused beforehand (`fedtune.config.rules`).
    "sketch": lambda config: SketchAggregator(width=config.sketch_width or 1),
    "zero_padding": lambda _: ZERO_PADDING,
}


_MASKED: dict[str, Callable[[AggregationConfig, float], Aggregator]] = {
    "projection": lambda _config, _clip: PROJECTION_IN_ROUNDS,
    "sketch": lambda config, clip: SketchedChangeAggregator(width=config.sketch_width or 1, clip=clip),
}
"""Methods that go otherwise under secure aggregation."""


def method_names() -> tuple[str, ...]:
    """Return every value that ``aggregation.method`` takes here: the built-in ones, then the installed."""
    return (*_BUILT_IN, *(name for name in sorted(_installed()) if name not in _BUILT_IN))


def aggregator(config: AggregationConfig, *, clip: float | None = None) -> Aggregator:
    """Return the method that a configuration names.

    Args:
        config: The run's.
        clip: Bound to which secure aggregation clips (`fedtune.config.derived.secure_clip`); None where the
            server sees each update.

    An installed method is an entry point of the group ``fedtune.aggregators`` whose object, called without
    arguments, returns an `Aggregator`. A built-in name always means the built-in method.

    Raises:
        ConfigError: FT191 there is no such method, FT192 an installed one cannot be loaded, is named by two
            packages, or is no `Aggregator`.
    """
    if clip is not None and config.method in _MASKED:
        return _MASKED[config.method](config, clip)
    if config.method in _BUILT_IN:
        return _BUILT_IN[config.method](config)
    candidates = _installed().get(config.method, ())
    if not candidates:
        raise ConfigError(_unknown(config.method))
    if len(candidates) > 1:
        packages = sorted({_package(candidate) for candidate in candidates})
        raise ConfigError(
            _unusable(config.method, f"is installed by {' and by '.join(packages)}", "uninstall all but one")
        )
    return _load(candidates[0])


def _installed() -> dict[str, tuple[EntryPoint, ...]]:
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        found[entry_point.name] = (*found.get(entry_point.name, ()), entry_point)
    return found


def _package(entry_point: EntryPoint) -> str:
    return entry_point.dist.name if entry_point.dist is not None else entry_point.value


def _load(entry_point: EntryPoint) -> Aggregator:
    origin = f"{entry_point.value} of {_package(entry_point)}"
    try:
        made = entry_point.load()()
    except Exception as error:  # the code of another package: whatever it raises, its owner has to be named
        raise ConfigError(
            _unusable(
                entry_point.name,
                f"({origin}) cannot be loaded: {type(error).__name__}: {error}",
                "repair or reinstall the package that provides it",
            )
        ) from error
    if not isinstance(made, Aggregator):
        raise ConfigError(
            _unusable(
                entry_point.name,
                f"({origin}) gives {type(made).__name__}, which is no Aggregator",
                "give it the members of fedtune.aggregation.base.Aggregator",
            )
        )
    return made


def _unknown(method: str) -> Problem:
    near = get_close_matches(method, method_names(), n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return Problem(
        code="FT191",
        what=f"there is no aggregation method {method!r}",
        where="aggregation.method",
        fix=f"{hint}choose one of {', '.join(method_names())}, or install the package that provides it",
    )


def _unusable(method: str, what: str, fix: str) -> Problem:
    return Problem(
        code="FT192", what=f"the aggregation method {method!r} {what}", where="aggregation.method", fix=fix
    )
