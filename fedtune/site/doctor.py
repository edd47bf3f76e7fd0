"""``fedtune doctor``: is this machine ready? Every check with its finding and, if need be, the fix.

A check that cannot be carried out has failed; it never keeps the others from being made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import fedtune.models  # noqa: F401  # hides a remark that bitsandbytes makes when it is imported
from fedtune.config.compose import compose
from fedtune.config.schema import Config
from fedtune.errors import FedtuneError, ModelError
from fedtune.site import machine, software
from fedtune.site.findings import Check, Finding, failed, ok, warning

__all__ = ["run_checks"]

_DEMO = ("experiment=demo",)


def run_checks() -> Iterator[Check]:
    """Make every check, one after the other, so that each can be shown as soon as it is made."""
    yield _made("python", software.python_version)
    for name, check in software.package_checks():
        yield _made(f"package {name}", check)
    yield _made("torch", software.torch_devices)
    yield _made("quantization", software.quantization)
    yield _made("clock", machine.clock)
    composed: list[Config] = []
    yield _made("configuration", partial(_configuration, composed))
    for config in composed:
        yield from _for_demo(config)


def _for_demo(config: Config) -> Iterator[Check]:
    from fedtune.models.cache import cache_folder  # noqa: PLC0415

    runs, cache = Path(config.runs_dir), cache_folder(config.model)
    yield _made("arithmetic", partial(machine.arithmetic, config))
    yield _made("demo model", partial(_demo_model, config))
    yield _made("demo data", _demo_data)
    yield _made("memory", partial(_demo_memory, config))
    yield _made("folder of runs", partial(machine.writable, runs, key="runs_dir"))
    yield _made("folder of models", partial(machine.writable, cache, key="model.cache_dir"))
    yield _made("disk of runs", partial(machine.disk_space, runs))
    yield _made("disk of models", partial(machine.disk_space, cache))


def _made(name: str, check: Callable[[], Finding]) -> Check:
    try:
        finding = check()
    except FedtuneError as error:
        first = error.problems[0]
        finding = failed(first.code, first.what, fix=first.fix)
    except Exception as error:  # the doctor must report what is broken, whatever it raises
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        finding = failed(
            "FT808", f"this check could not be made: {reason}", fix="mend what failed above first"
        )
    return Check(name=name, status=finding.status, finding=finding.text, fix=finding.fix, code=finding.code)


def _configuration(composed: list[Config]) -> Finding:
    composed.append(compose(_DEMO))
    return ok(f"{' '.join(_DEMO)} composes")


def _demo_model(config: Config) -> Finding:
    from fedtune.models.cache import cache_folder  # noqa: PLC0415
    from fedtune.models.gguf import is_converted  # noqa: PLC0415
    from fedtune.models.resolve import resolve  # noqa: PLC0415

    try:
        source = resolve(config.model)
    except FedtuneError as error:
        return warning(error.problems[0].what, fix=error.problems[0].fix)
    if source.kind == "gguf" and not is_converted(source.path, cache_folder(config.model)):
        return ok(f"{source.path.name} is there; its first use converts it once, which takes about 25 s")
    return ok(f"{source.path.name} is there and converted")


def _demo_memory(config: Config) -> Finding:
    try:
        return machine.memory(config)
    except ModelError:  # a machine without the demo's model lacks nothing else for it
        return warning("not estimated: the demo's model is not there", fix="see demo model above")


def _demo_data() -> Finding:
    from fedtune.data.hpo import find_ontology  # noqa: PLC0415

    try:
        path = find_ontology()
    except FedtuneError as error:
        return warning(error.problems[0].what, fix=error.problems[0].fix)
    return ok(f"{path.name} is there")
