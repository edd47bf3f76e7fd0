"""A site's folder: what lies where.

========================  ===================================================================
``node.key identity.key``  the site's keys, see `fedtune.keys.node`
``connection.json ca.pem``  whom it trusts and where it connects, see `fedtune.keys.joining`
``pin.json``              the version of the roster that it believes
``site.yaml``             the policy
``client.yaml``           settings of this machine
``audit.key audit.jsonl``  the audit log and the key that signs it
``state/``                what the client remembers; nothing in it is for hands
========================  ===================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["SiteFolder"]


@dataclass(frozen=True)
class SiteFolder:
    """Paths in a site's folder.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def policy(self) -> Path:
        return self.path / "site.yaml"

    @property
    def settings(self) -> Path:
        return self.path / "client.yaml"

    @property
    def connection(self) -> Path:
        return self.path / "connection.json"

    @property
    def authority(self) -> Path:
        return self.path / "ca.pem"

    @property
    def node_key(self) -> Path:
        return self.path / "node.key"

    @property
    def identity(self) -> Path:
        return self.path / "identity.key"

    @property
    def pin(self) -> Path:
        return self.path / "pin.json"

    @property
    def audit_key(self) -> Path:
        return self.path / "audit.key"

    @property
    def audit_log(self) -> Path:
        return self.path / "audit.jsonl"

    @property
    def state(self) -> Path:
        return self.path / "state"

    @property
    def lock(self) -> Path:
        return self.state / "client.lock"

    @property
    def standing(self) -> Path:
        """Whether the operator lets the site take part at all."""
        return self.state / "standing.json"

    @property
    def approvals(self) -> Path:
        return self.state / "approvals.jsonl"

    @property
    def pending(self) -> Path:
        """What waits for the operator."""
        return self.state / "pending"

    @property
    def accepted(self) -> Path:
        """Requests that were accepted, for limits of a day."""
        return self.state / "accepted.jsonl"

    @property
    def spent(self) -> Path:
        """Journal of opened updates, of all runs."""
        return self.state / "spent.jsonl"

    @property
    def cohorts(self) -> Path:
        return self.state / "cohorts.jsonl"

    @property
    def runs(self) -> Path:
        """What is remembered of each run; see `of_run`."""
        return self.state / "runs"

    def of_run(self, name: str) -> Path:
        """Return where the site keeps positions, moments and the adapter received last of one run."""
        return self.runs / name

    @property
    def flower_home(self) -> Path:
        return self.state / "flower"

    @property
    def secret(self) -> Path:
        """What the site's Flower node and its executor share."""
        return self.state / "node.secret"

    @property
    def logs(self) -> Path:
        return self.state / "logs"
