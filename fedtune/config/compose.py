"""From overrides to a checked :class:`Config`: hydra composes the groups, pydantic and the rules judge.

Overrides are read one by one, hydra merges them with the groups under conf/ and resolves what they refer to,
and the result is parsed strictly, as JSON, by the same schema that parses what comes over the wire.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from fedtune.config import location
from fedtune.config.overrides import check_overrides
from fedtune.config.rules import combination_problems, plugin_problems
from fedtune.config.schema import Config
from fedtune.config.validate import shown, validate_json
from fedtune.errors import ConfigError, Problem

__all__ = ["compose", "judged", "register_resolvers"]

DEFAULT_NAME = "${timestamp:}"


def compose(overrides: Sequence[str], config_dir: Path | str | None = None) -> Config:
    """Compose, resolve and check a configuration.

    Args:
        overrides: Hydra overrides such as ``["experiment=demo", "federation.rounds=2"]``; no sweeps.
        config_dir: Folder of YAML groups with a ``config.yaml``; the shipped one unless given.

    Returns:
        The complete configuration, which :mod:`fedtune.config.rules` found possible. Its ``name`` is the date
        and time of this call unless an override or an experiment gives one.

    Raises:
        ConfigError: With every problem of the overrides, of the values and of their combination.
    """
    config, problems = judged(overrides, config_dir)
    if problems:
        raise ConfigError(problems)
    return config


def judged(
    overrides: Sequence[str], config_dir: Path | str | None = None
) -> tuple[Config, tuple[Problem, ...]]:
    """Compose a configuration, and say what is impossible about it.

    Args:
        overrides: As of `compose`.
        config_dir: Likewise.

    Returns:
        The configuration and the problems of its combinations; none where `compose` would accept it.

    Raises:
        ConfigError: With every problem of the overrides and of the values.
    """
    folder = Path(config_dir).resolve() if config_dir is not None else location.config_dir()
    checked = check_overrides(overrides, directories=(folder,))
    composed = _composed(checked.accepted, folder=folder)
    if isinstance(composed, Problem):
        raise ConfigError([*checked.problems, composed])
    values, unnamed = composed
    result = validate_json(
        json.dumps(values, default=str), where="the composed configuration", sources=checked.sources
    )
    if not isinstance(result, Config):
        raise ConfigError([*checked.problems, *result])
    if checked.problems:
        raise ConfigError(checked.problems)
    problems = [*combination_problems(result), *plugin_problems(result)]
    if result.resume and unnamed:
        problems.append(
            Problem(
                code="FT105",
                what="resume=true says to go on, but not with which run: the default name is new each time",
                where="resume, name",
                fix=f"give the name of the run, a folder under {result.runs_dir}: name=NAME",
            )
        )
    return result, tuple(problems)


def register_resolvers() -> None:
    """Make ``${timestamp:}``, the default name of a run, known to OmegaConf."""
    # Never cached: two runs of one process must not share a name, and with it a directory.
    OmegaConf.register_new_resolver(
        "timestamp", lambda: datetime.now().strftime("%Y%m%d-%H%M%S-%f")[:-3], use_cache=False, replace=True
    )


def _composed(overrides: Sequence[str], *, folder: Path) -> tuple[dict[str, Any], bool] | Problem:
    """The resolved values, and whether the run is left to be named by the clock."""
    register_resolvers()
    try:
        with _no_hydra_around(), initialize_config_dir(str(folder), version_base="1.3", job_name="fedtune"):
            tree = hydra_compose("config", overrides=list(overrides))
        # Looked at before it is resolved: afterwards any name looks given.
        unnamed = _container(tree, resolve=False).get("name") == DEFAULT_NAME
        values = _container(tree, resolve=True)
    except Exception as error:  # hydra, OmegaConf and PyYAML raise what they like for bad input
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        return Problem(
            code="FT108",
            what=f"the configuration cannot be composed: {shown(reason, quoted=False)}",
            where=f"{folder} with " + (" ".join(overrides) or "no overrides"),
            fix="correct the override or the YAML file that the message names",
        )
    return values, unnamed


@contextmanager
def _no_hydra_around() -> Iterator[None]:
    """Lay aside a hydra that runs already: a sweep composes each of its jobs, as may any hydra program."""
    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        # Another object by now: hydra replaces its singletons when it is left.
        GlobalHydra.instance().hydra = running


def _container(tree: DictConfig, *, resolve: bool) -> dict[str, Any]:
    return cast("dict[str, Any]", OmegaConf.to_container(tree, resolve=resolve, throw_on_missing=True))
