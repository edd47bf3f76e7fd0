"""The memory of virtual sites on Flower's Ray engine, for secure aggregation.

Any actor of the engine may answer for any site, and a site's secrets must outlive a message without touching
Flower's context or a disk. So one actor of our own, in memory alone, holds every site's state machine.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from fedtune.config.schema import Config
from fedtune.config.wire import config_from_json, config_to_json
from fedtune.errors import FedtuneError
from fedtune.federation.secure_site import SecureMember
from fedtune.secagg.encoding import Encoding
from fedtune.secagg.rounding import EncodedUpdate
from fedtune.secagg.states import RoundFacts
from fedtune.simulation.enrolment import new_member

__all__ = ["RemoteMember"]


class Memory:
    """State machines by site; runs as an actor."""

    def __init__(self, run: str, config_json: str) -> None:
        self._run, self._config = Path(run), config_from_json(config_json)
        self._members: dict[str, SecureMember] = {}

    def call(self, site: str, method: str, arguments: tuple[Any, ...]) -> tuple[Any, FedtuneError | None]:
        """Return what a site's state machine answers, or the error that it raised."""
        if site not in self._members:
            self._members[site] = new_member(self._run, self._config, site)
        try:
            return getattr(self._members[site], method)(*arguments), None
        except FedtuneError as error:
            return None, error


class RemoteMember:
    """A site's `SecureMember` that lives in the memory's actor.

    Args:
        run: The run directory, which the actor's name comes from.
        config: The whole configuration.
        site: The site's name.
    """

    def __init__(self, run: Path, config: Config, site: str) -> None:
        self._run, self._config, self._site = run, config, site

    def hold(self, update: EncodedUpdate, encoding: Encoding, facts: RoundFacts) -> None:
        self._call("hold", update, encoding, facts)

    def holds(self, facts: RoundFacts) -> bool:
        return bool(self._call("holds", facts))

    def handle(self, request: bytes) -> bytes:
        return bytes(self._call("handle", request))

    def _call(self, method: str, *arguments: Any) -> Any:
        import ray  # noqa: PLC0415  # there with backend=ray alone

        answer, error = ray.get(self._memory.call.remote(self._site, method, arguments))
        if error is not None:
            raise error
        return answer

    @cached_property
    def _memory(self) -> Any:
        import ray  # noqa: PLC0415

        actor: Any = ray.remote(Memory)
        settings = actor.options(name=f"fedtune memory of {self._run}", get_if_exists=True, num_cpus=0)
        return settings.remote(str(self._run), config_to_json(self._config))
