"""All checks of a site's folder in their order: each finding as soon as it is made, never an exception."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

from fedtune.config.schema import Config
from fedtune.keys.authority import AUTHORITY_CERTIFICATE
from fedtune.keys.certificates import utc_now
from fedtune.site import machine
from fedtune.site.checkup import answer, certificate, reaching
from fedtune.site.checkup.agreement import agreement
from fedtune.site.checkup.making import made, not_made
from fedtune.site.checkup.material import Material
from fedtune.site.checkup.model import BaseModel, at_this_site
from fedtune.site.checkup.route import Address, Way, dial, presented_certificate
from fedtune.site.checkup.rows import SiteRows
from fedtune.site.checkup.settings import Defaults, Settings
from fedtune.site.findings import Check, Finding, ok

__all__ = ["run_site_checks"]

STATE: Final = "state"
SETTINGS: Final = "client.yaml"


def run_site_checks(
    folder: Path,
    *,
    settings: Callable[[], Settings] = Defaults,
    config: Callable[[], Config] | None = None,
    starting: Callable[[str], None] = lambda name: None,
) -> Iterator[Check]:
    """Check a site's folder, its way to the server, its model and its data.

    A check whose precondition is not there says so and is no failure of its own: what it needs has failed
    above. Nothing is written but the kept hash of a model file, and nothing is downloaded.

    Args:
        folder: The site's.
        settings: Reads the site's own settings; a `FedtuneError` of it is a finding.
        config: Reads the configuration of a federation to check against; likewise. None for none.
        starting: Told the name of each check before it is made: some take seconds.
    """
    checkup = _Checkup(folder=folder, starting=starting)
    yield from checkup.of_folder(settings, config)
    yield from checkup.of_network()
    yield from checkup.of_model()
    yield from checkup.of_rows()
    yield from checkup.of_machine()
    yield from checkup.of_agreement()


@dataclass(kw_only=True)
class _Checkup:
    """What earlier checks found, for later ones."""

    folder: Path
    starting: Callable[[str], None]
    settings: Settings | None = None
    config: Config | None = None
    base: BaseModel | None = None

    def __post_init__(self) -> None:
        self.material = Material(folder=self.folder, now=utc_now())

    def _made(self, name: str, check: Callable[[], Any]) -> Iterator[Check]:
        self.starting(name)
        yield from made(name, check)

    def of_folder(
        self, settings: Callable[[], Settings], config: Callable[[], Config] | None
    ) -> Iterator[Check]:
        """What lies in it."""
        material = self.material
        yield from self._made("keys", material.keys)
        yield from self._made("joining", material.joined)
        yield from self._made("site.yaml", material.policy_file)
        yield from self._made(SETTINGS, partial(self._read_settings, settings))
        if config is not None:
            yield from self._made("configuration", partial(self._read_config, config))
        yield from self._made("roster", lambda: material.pinned(secure=self._secure))

    def _read_settings(self, read: Callable[[], Settings]) -> Finding:
        self.settings = read()
        there = (self.folder / SETTINGS).exists()
        return ok("is complete" if there else "there is none: the defaults apply")

    def _read_config(self, read: Callable[[], Config]) -> Finding:
        self.config = read()
        return ok(f"{self.config.name} is complete and possible")

    @property
    def _secure(self) -> bool:
        policy = self.material.policy
        required = policy is not None and policy.policy.secure_aggregation.required
        return required or (self.config is not None and self.config.secagg.enabled)

    def of_network(self) -> Iterator[Check]:
        """The way to the server, as far as it leads."""
        connection, authority = self.material.connection, self.material.authority
        if connection is None or authority is None:
            yield from made("connection", lambda: not_made("this site has not joined a federation"))
            return
        ways: list[Way] = []
        yield from self._made("connection", partial(self._dial, Address.of(connection.server), ways))
        for way in ways:
            yield from self._along(way)

    def _dial(self, server: Address, ways: list[Way]) -> tuple[()]:
        pem = (self.folder / AUTHORITY_CERTIFICATE).read_text(encoding="ascii", errors="replace")
        ways.append(dial(server, pem))
        return ()

    def _along(self, way: Way) -> Iterator[Check]:
        yield from self._made("name of the server", partial(reaching.resolution, way))
        yield from self._made("connection", partial(reaching.connection, way))
        yield from made("proxy", partial(reaching.proxy, way))
        if way.stage not in ("tls", "answer", "done"):
            yield from made("certificate", lambda: not_made("the server was not reached"))
            return
        yield from self._made("certificate", lambda: self._certificate(way))
        if way.stage == "tls":
            yield from made("clock", lambda: not_made("TLS was not agreed on"))
            return
        yield from made("SuperLink", lambda: answer.superlink(way))
        if way.status is not None:
            yield from made("clock", lambda: answer.clock(way))

    def _certificate(self, way: Way) -> Iterator[Finding]:
        assert self.material.authority is not None  # noqa: S101  # asked by `of_network`
        shown = way.certificate or presented_certificate(way.server)
        return certificate.judged(way, shown, self.material.authority, self.material.now)

    def of_model(self) -> Iterator[Check]:
        """The base model: there, and allowed."""
        base: list[BaseModel] = []
        yield from self._made("base model", partial(self._find_model, base))
        if not base:
            return
        self.base = base[0]
        policy = self.material.policy
        allowed = partial(self.base.allowed, policy.policy if policy else None)
        yield from self._made("hash of the base model", allowed)

    def _find_model(self, base: list[BaseModel]) -> Finding:
        from fedtune.config.compose import compose  # noqa: PLC0415

        settings = self.settings or Defaults()
        named = bool(settings.models) or self.config is not None
        config = at_this_site(self.config or _of_first_model(compose(()), settings), settings)
        base.append(BaseModel(config=config, named=named, configured=self.config is not None))
        return base[0].present()

    def of_rows(self) -> Iterator[Check]:
        """The data that the policy names."""
        policy, connection = self.material.policy, self.material.connection
        if policy is None or self.base is None:
            yield from made("data", lambda: not_made("the policy could not be read"))
            return
        site = connection.site if connection is not None else "unknown"
        rows = SiteRows(config=self.base.config, policy=policy.policy, site=site)
        yield from made("data", rows.sources)
        for path in rows.data.files:
            yield from self._made(f"data {path}", partial(rows.file, path))
        if rows.data.files:
            yield from self._made("rows", partial(self._read_rows, rows, self.base))

    def _read_rows(self, rows: SiteRows, base: BaseModel) -> Iterator[Finding]:
        return rows.together(base.tokenizer())

    def of_machine(self) -> Iterator[Check]:
        """Memory, threads, folders and disks."""
        if self.base is None:
            return
        policy = self.material.policy
        memory = partial(self.base.memory, policy.policy if policy else None)
        yield from self._made("memory", memory)
        yield from self._made("threads", self.base.threads)
        for what, path, key in self.base.folders(self.folder / STATE):
            yield from self._made(f"folder of {what}", partial(machine.writable, path, key=key))
            yield from self._made(f"disk of {what}", partial(machine.disk_space, path))

    def of_agreement(self) -> Iterator[Check]:
        """The policy against the configuration."""
        policy, connection, config = self.material.policy, self.material.connection, self.config
        if config is None:
            return
        if policy is None or connection is None:
            yield from made("policy", lambda: not_made("policy or connection could not be read"))
            return
        base = self.base
        yield from self._made(
            "policy",
            lambda: agreement(
                policy.policy,
                config,
                connection,
                base_model=base.hash if base else None,
                memory_mib=base.estimate.total_mib if base and base.estimate else None,
                now=datetime.now(UTC),
            ),
        )


def _of_first_model(config: Config, settings: Settings) -> Config:
    """The shipped configuration with the model that the site has first."""
    name = next(iter(settings.models), config.model.name)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, name=name))
