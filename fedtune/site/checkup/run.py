"""All checks of a site's folder in their order: each finding as soon as it is made, never an exception."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from fedtune.config.schema import Config, ModelConfig
from fedtune.keys.certificates import utc_now
from fedtune.site import machine
from fedtune.site.checkup import answer, certificate, model, reaching
from fedtune.site.checkup.agreement import agreement
from fedtune.site.checkup.making import made, not_made
from fedtune.site.checkup.material import Material
from fedtune.site.checkup.route import Address, Way, dial, presented_certificate
from fedtune.site.checkup.rows import SiteRows
from fedtune.site.findings import Check, Finding, ok
from fedtune.site.folder import SiteFolder
from fedtune.site.policy_schema import SitePolicy
from fedtune.site.settings import SiteSettings, here, load_settings, local_model

__all__ = ["run_local_checks", "run_site_checks"]


def run_site_checks(
    folder: Path,
    *,
    config: Callable[[], Config] | None = None,
    starting: Callable[[str], None] = lambda name: None,
) -> Iterator[Check]:
    """Check a site's folder, its way to the server, its models and its data.

    A check whose precondition is not there says so and is no failure of its own: what it needs has failed
    above. Nothing is written but the kept hash of a model file, and nothing is downloaded.

    Args:
        folder: The site's.
        config: Reads the configuration of a federation to check against; a `FedtuneError` of it is a finding.
            None for none.
        starting: Told the name of each check before it is made: some take seconds.
    """
    checkup = _Checkup(folder=SiteFolder(folder), starting=starting)
    yield from checkup.of_folder(config)
    yield from checkup.of_network()
    yield from checkup.of_models()
    yield from checkup.of_rows()
    yield from checkup.of_machine()
    yield from checkup.of_agreement()


def run_local_checks(folder: Path, *, config: Config) -> Iterator[Check]:
    """Make the checks that need no network, as far as they say whether a site is ready for a configuration.

    What the policy says to it is not among them.

    Args:
        folder: The site's.
        config: The coordinator's.
    """
    checkup = _Checkup(folder=SiteFolder(folder), starting=lambda name: None)
    yield from checkup.of_folder(lambda: config)
    yield from checkup.of_models()
    yield from checkup.of_rows()
    yield from checkup.of_machine()
    yield from made("clock", machine.clock)


@dataclass(kw_only=True)
class _Checkup:
    """What earlier checks found, for later ones."""

    folder: SiteFolder
    starting: Callable[[str], None]
    settings: SiteSettings | None = None
    config: Config | None = None
    models: list[model.BaseModel] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.material = Material(folder=self.folder, now=utc_now())

    @property
    def policy(self) -> SitePolicy | None:
        """What the site allows, if that is known."""
        return None if self.material.policy is None else self.material.policy.policy

    def _made(self, name: str, check: Callable[[], Any]) -> Iterator[Check]:
        self.starting(name)
        yield from made(name, check)

    def of_folder(self, config: Callable[[], Config] | None) -> Iterator[Check]:
        """What lies in it."""
        material = self.material
        yield from self._made("keys", material.keys)
        yield from self._made("joining", material.joined)
        yield from self._made("site.yaml", material.policy_file)
        yield from self._made("client.yaml", self._read_settings)
        if config is not None:
            yield from self._made("configuration", partial(self._read_config, config))
        yield from self._made("roster", lambda: material.pinned(secure=self._secure))

    def _read_settings(self) -> Finding:
        self.settings = load_settings(self.folder.settings)
        return ok("is complete")

    def _read_config(self, read: Callable[[], Config]) -> Finding:
        self.config = read()
        return ok(f"{self.config.name} is complete and possible")

    @property
    def _secure(self) -> bool:
        required = self.policy is not None and self.policy.secure_aggregation.required
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
        pem = self.folder.authority.read_text(encoding="ascii", errors="replace")
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

    def of_models(self) -> Iterator[Check]:
        """The base model of the configuration, or all that the settings name: there, and allowed."""
        settings = self.settings
        if settings is None:
            yield from made("base model", lambda: not_made("client.yaml could not be read"))
            return
        for name in settings.models if self.config is None else (self.config.model.name,):
            yield from self._made(f"base model {name}", partial(self._find_model, name, settings))
        for base in self.models:
            yield from self._made(f"hash of {base.name}", partial(base.allowed, self.policy))

    def _find_model(self, name: str, settings: SiteSettings) -> Finding:
        asked = self._default.model if self.config is None else self.config.model
        local = local_model(dataclasses.replace(asked, name=name), settings)
        self.models.append(model.BaseModel(name=name, model=local, config=self._here(local)))
        return self.models[-1].present()

    @property
    def _default(self) -> Config:
        """Stands for a coordinator's configuration where there is none."""
        from fedtune.config.compose import compose  # noqa: PLC0415

        return compose(["name=doctor"])

    def _here(self, local: ModelConfig) -> Config | None:
        """The coordinator's configuration as it holds on this machine."""
        if self.config is None or self.settings is None:
            return None
        files = self.policy.data.files if self.policy is not None else ()
        return dataclasses.replace(
            here(self.config, self.settings, files=files, runs_dir=self.folder.runs), model=local
        )

    def of_rows(self) -> Iterator[Check]:
        """The data that the policy names."""
        policy, connection = self.policy, self.material.connection
        if policy is None:
            yield from made("data", lambda: not_made("the policy could not be read"))
            return
        site = connection.site if connection is not None else "unknown"
        rows = SiteRows(config=self.config or self._default, policy=policy, site=site)
        yield from made("data", rows.sources)
        for path in rows.data.files:
            yield from self._made(f"data {path}", partial(rows.file, path))
        if rows.data.files:
            yield from self._made("rows", lambda: rows.together(self._tokenizer()))

    def _tokenizer(self) -> Any:
        return self.models[0].tokenizer() if self.models else None

    def of_machine(self) -> Iterator[Check]:
        """Memory, threads, folders and disks."""
        if self.settings is None:
            yield from made("memory", lambda: not_made("client.yaml could not be read"))
            return
        for base in self.models[:1]:
            yield from self._made("memory", partial(base.memory, self.policy))
        given = self.config.training.threads if self.config is not None else None
        yield from self._made("threads", partial(model.threads, self.settings.threads or given))
        for what, path, key in self._folders(self.settings):
            yield from self._made(f"folder of {what}", partial(machine.writable, path, key=key))
            yield from self._made(f"disk of {what}", partial(machine.disk_space, path))

    def _folders(self, settings: SiteSettings) -> Iterator[tuple[str, Path, str]]:
        """What is kept in each folder that is written to, its path, and the key that moves it."""
        from fedtune.models.cache import cache_folder  # noqa: PLC0415

        asked = dataclasses.replace(self._default.model, cache_dir=settings.cache_dir)
        yield "state", self.folder.state, "the site's folder"
        yield "models", cache_folder(asked), "cache_dir in client.yaml"

    def of_agreement(self) -> Iterator[Check]:
        """The policy against the configuration."""
        policy, connection, config = self.policy, self.material.connection, self.config
        if config is None:
            return
        if policy is None or connection is None:
            yield from made("policy", lambda: not_made("policy or connection could not be read"))
            return
        base = self.models[0] if self.models else None
        yield from self._made(
            "policy",
            lambda: agreement(
                policy,
                config,
                connection,
                base_model=base.hash if base else None,
                memory_mib=base.estimate.total_mib if base and base.estimate else None,
                now=datetime.now(UTC),
            ),
        )
