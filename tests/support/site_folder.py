"""A site's whole folder: keys, joined to a coordinator, with a roster, a policy and rows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from support.enrolment import NOW, Coordinator, never_asked

from fedtune.config.compose import compose
from fedtune.config.schema import Config
from fedtune.keys.enrolment import enrol
from fedtune.keys.joining import accept, check, read_connection
from fedtune.keys.node import make_node, request_path
from fedtune.keys.request import read_request
from fedtune.keys.server import Server, ServerOrder, make_server
from fedtune.secagg.entry import fingerprint
from fedtune.secagg.files import read_roster
from fedtune.secagg.pinning import PinnedRoster
from fedtune.secagg.roster import GENESIS, Roster

__all__ = [
    "FEDERATION",
    "JoinedSite",
    "federation_config",
    "policy_values",
    "write_policy",
    "write_rows",
    "write_settings",
]

FEDERATION = "lungs"


@dataclass(kw_only=True)
class JoinedSite:
    """A coordinator and its sites on one disk.

    Attributes:
        root: Where all of it lies.
        address: Where the sites connect, ``host:port``.
        sites: Their names; the first is the one that is looked at.
    """

    root: Path
    address: str
    sites: tuple[str, ...] = ("ear", "eye", "heart", "lung", "skin")

    def __post_init__(self) -> None:
        self.desk = Coordinator(self.root)
        self.desk.begin()
        self.server = self.certificate()
        self._join()

    @property
    def folder(self) -> Path:
        """The folder of the site that is looked at."""
        return self.root / self.sites[0]

    @property
    def coordinator(self) -> str:
        """The coordinator's fingerprint."""
        return fingerprint(read_connection(self.folder / "connection.json").coordinator)

    def certificate(
        self, name: str = "hub", *, dns: tuple[str, ...] = ("localhost",), ip: tuple[str, ...] = ()
    ) -> Server:
        """A certificate of the server by this coordinator's authority."""
        order = ServerOrder(name=name, dns=dns, ip=ip, out=self.root / "tls")
        return make_server(self.desk.folder, order, never_asked, NOW)

    def pin(self, *names: str) -> Roster:
        """Let the site accept a roster of these sites."""
        entries = tuple(read_request(request_path(self.root / name, name)).entry for name in names)
        roster = Roster(federation=FEDERATION, version=1, previous=GENESIS, entries=entries)
        (self.folder / "pin.json").unlink(missing_ok=True)
        PinnedRoster(self.folder / "pin.json").accept_by_operator([roster], fingerprint(roster.hash))
        return read_roster(self.folder / "pin.json")

    def _join(self) -> None:
        for name in self.sites:
            make_node(self.root / name, site=name, federation=FEDERATION)
        enrol(
            self.desk.folder,
            [request_path(self.root / name, name) for name in self.sites],
            federation=FEDERATION,
            server=self.address,
            out=self.root / "bundles",
            now=NOW,
        )
        answer = check(self.folder, self.desk.bundle(self.sites[0]), NOW)
        accept(answer, fingerprint(answer.bundle.coordinator))
        self.pin(*self.sites)


def write_rows(path: Path, count: int = 30, *, word: str = "finding") -> Path:
    """Rows of a file that is good."""
    rows = [
        {"instruction": f"Define {word} {number}", "output": f"It is of grade {number % 3}."}
        for number in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def policy_values(site: JoinedSite, *, files: list[str], base_models: list[str]) -> dict[str, Any]:
    """A policy that allows what `federation_config` asks for."""
    return {
        "version": 1,
        "timezone": "Europe/Berlin",
        "coordinators": {FEDERATION: site.coordinator},
        "bundles": ["installed"],
        "preapproved": [],
        "base_models": base_models,
        "metrics": ["examples", "tokens", "train_loss", "held_out_loss", "peak_memory"],
        "hours": None,
        "peft": {"methods": ["lora"], "max_rank": 16},
        "data": {"sources": ["site"], "files": files, "columns": None},
        "limits": {
            "rounds_per_day": 50,
            "evaluations_per_day": 50,
            "steps_per_round": 100,
            "tokens_per_round": 10_000_000,
            "seconds_per_round": 100_000,
            "memory_mib": 100_000,
        },
        "secure_aggregation": {"required": False, "k_min": 3, "max_colluders": 0, "max_clip_bound": None},
        "privacy": None,
    }


def write_policy(folder: Path, values: dict[str, Any]) -> Path:
    """Write site.yaml as its owner would."""
    path = folder / "site.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    path.chmod(0o600)
    return path


def write_settings(folder: Path, **changed: Any) -> Path:
    """Write client.yaml; ``models`` has to be among the keys that are changed."""
    values = {
        "version": 1,
        "models": {},
        "cache_dir": None,
        "device": "cpu",
        "threads": 1,
        "node_port": None,
        "health": None,
        "syslog": None,
        "log_mib": 10,
    }
    path = folder / "client.yaml"
    path.write_text(yaml.safe_dump(values | changed, sort_keys=False), encoding="utf-8")
    path.chmod(0o600)
    return path


def federation_config(model: Path, *overrides: str) -> Config:
    """A small configuration of a deployment."""
    return compose(
        [
            "name=lungs-1",
            f"model.name={model}",
            "model.quantization=none",
            "model.compute_dtype=float32",
            "backend=deployment",
            "data.max_tokens=96",
            "data.held_out_fraction=0.2",
            "peft.rank=4",
            "training.steps_per_round=2",
            "training.examples_per_step=4",
            "training.microbatch_tokens=256",
            "training.learning_rate=0.01",
            "training.threads=1",
            "federation.rounds=2",
            *overrides,
        ]
    )
