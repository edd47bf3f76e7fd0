"""A coordinator and its sites, with the key material that `fedtune keys` makes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from fedtune.keys.authority import Authority, make_authority
from fedtune.keys.enrolment import BUNDLE_SUFFIX, enrol
from fedtune.keys.joining import Connection, accept, check
from fedtune.keys.node import make_node, request_path
from fedtune.keys.request import Request
from fedtune.keys.server import Server, ServerOrder, make_server
from fedtune.secagg.entry import fingerprint

__all__ = ["NOW", "SERVER", "Coordinator", "never_asked"]

NOW = datetime.now(UTC).replace(microsecond=0)
SERVER = "fedtune.example.org:9092"


def never_asked() -> bytes:
    """The passphrase of a key that has none."""
    raise AssertionError("no passphrase is needed")


@dataclass(frozen=True)
class Coordinator:
    """A folder in which the coordinator and each site have a folder of their own."""

    root: Path
    now: datetime = NOW

    @property
    def folder(self) -> Path:
        return self.root / "coordinator"

    def begin(self, *, days: int = 3650, passphrase: bytes | None = None) -> Authority:
        return make_authority(self.folder, name="test", now=self.now, days=days, passphrase=passphrase)

    def server(
        self, *, dns: tuple[str, ...] = ("localhost",), ip: tuple[str, ...] = (), days: int = 1
    ) -> Server:
        order = ServerOrder(name="hub", dns=dns, ip=ip, days=days, out=self.root / "tls")
        return make_server(self.folder, order, never_asked, self.now)

    def ask(self, site: str) -> Request:
        return make_node(self.root / site, site=site, federation="f")

    def answer(self, *sites: str, out: str = "bundles", roster: Path | None = None, later: int = 0) -> Path:
        """Enrol sites that asked, and return the folder of their bundles."""
        enrol(
            self.folder,
            [request_path(self.root / site, site) for site in sites],
            federation="f",
            server=SERVER,
            out=self.root / out,
            now=self.now + timedelta(seconds=later),
            roster=roster,
        )
        return self.root / out

    def bundle(self, site: str, out: str = "bundles") -> Path:
        return self.root / out / f"{site}{BUNDLE_SUFFIX}"

    def join(self, site: str, out: str = "bundles") -> Connection:
        answer = check(self.root / site, self.bundle(site, out), self.now)
        return accept(answer, fingerprint(answer.bundle.coordinator))
