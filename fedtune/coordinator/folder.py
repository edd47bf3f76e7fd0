"""The coordinator's folder: what lies where.

======================  =====================================================================
``ca.* coordinator.key``  authority and identity, see `fedtune.keys.authority`
``nodes/NAME.pub``      node keys of the sites that are enrolled
``server.yaml``         settings, see `fedtune.coordinator.settings`
``tls/server.*``        key and certificate of the server
``roster.json``         the version of the roster in force; ``roster-N.json`` are all versions
``bundles/``            answers to sites' requests
``state/``              the SuperLink's database, its logs, which runs are wanted
``runs/NAME/``          run directories
======================  =====================================================================
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["HOME_VARIABLE", "INSECURE_VARIABLE", "CoordinatorFolder"]

HOME_VARIABLE = "FEDTUNE_COORDINATOR"
"""Environment variable that tells the ServerApp, a process of Flower's, whose it is."""

INSECURE_VARIABLE = "FEDTUNE_INSECURE"
"""Environment variable that tells it that nodes connect without keys: nobody's name is known by one."""


@dataclass(frozen=True)
class CoordinatorFolder:
    """Paths in a coordinator's folder.

    Attributes:
        path: The folder.
    """

    path: Path

    @classmethod
    def of_process(cls) -> CoordinatorFolder | None:
        """Return the folder that this process was started for, if it was for one."""
        home = os.environ.get(HOME_VARIABLE)
        return cls(Path(home)) if home else None

    @property
    def settings(self) -> Path:
        return self.path / "server.yaml"

    @property
    def tls(self) -> Path:
        return self.path / "tls"

    @property
    def certificate(self) -> Path:
        return self.tls / "server.pem"

    @property
    def key(self) -> Path:
        return self.tls / "server.key"

    @property
    def authority(self) -> Path:
        return self.path / "ca.pem"

    @property
    def identity(self) -> Path:
        return self.path / "coordinator.key"

    @property
    def nodes(self) -> Path:
        return self.path / "nodes"

    @property
    def roster(self) -> Path:
        return self.path / "roster.json"

    @property
    def bundles(self) -> Path:
        return self.path / "bundles"

    @property
    def state(self) -> Path:
        return self.path / "state"

    @property
    def database(self) -> Path:
        return self.state / "superlink.db"

    @property
    def flower_home(self) -> Path:
        return self.state / "flower"

    @property
    def lock(self) -> Path:
        return self.state / "server.lock"

    @property
    def names(self) -> Path:
        """Which node is which site's, for the ServerApp."""
        return self.state / "nodes.json"

    @property
    def status(self) -> Path:
        """What the running server last knew of sites and runs, for `fedtune server status`."""
        return self.state / "status.json"

    @property
    def traffic(self) -> Path:
        return self.state / "traffic.json"

    @property
    def logs(self) -> Path:
        return self.state / "logs"

    @property
    def wanted(self) -> Path:
        """One file for each run that is to be run to its end."""
        return self.state / "wanted"

    @property
    def runs(self) -> Path:
        return self.path / "runs"

    def roster_version(self, version: int) -> Path:
        """Return where a version of the roster is kept."""
        return self.path / f"roster-{version}.json"
