"""Identities, roster and memory of a simulation's virtual sites, for secure aggregation.

A deployment's sites make their own keys and confirm each other's; here one process makes them all, inside the
run directory, where a resumed run finds them again. The protocol that runs with them is the real one.
"""

from __future__ import annotations

import shutil
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

from fedtune.config.schema import Config
from fedtune.federation.secure import policy_of
from fedtune.federation.secure_groups import drawn_groups
from fedtune.federation.secure_site import ReceivedAdapter, SecureMember, SecureSite
from fedtune.federation.server import ROSTER_FILE, secure_folder
from fedtune.keys.authority import COORDINATOR_KEY
from fedtune.observability.disk import write_atomic
from fedtune.secagg.client import SecureAggregationClient
from fedtune.secagg.cohorts import CohortLog
from fedtune.secagg.identity import Identity
from fedtune.secagg.roster import GENESIS, Roster, parse_roster, sign_entry, weight_bucket
from fedtune.secagg.spent import SpentJournal

__all__ = ["enrol", "new_member", "secure_site"]


def enrol(run: Path, config: Config, examples: dict[str, int]) -> None:
    """Give the coordinator and each virtual site an identity, and write the roster, unless they are there.

    A run that goes on must find them again, even if no round was complete: its journals know what was opened.

    Args:
        run: The run directory.
        config: The whole configuration.
        examples: Name of each site to its training examples.
    """
    folder = secure_folder(run)
    if (folder / ROSTER_FILE).exists():
        return
    shutil.rmtree(folder, ignore_errors=True)  # a first start that was killed half-way
    (folder / "keys").mkdir(parents=True)
    Identity.generate().save(folder / COORDINATOR_KEY)
    entries = []
    groups = drawn_groups(list(examples), config.secagg.groups, config.seed)
    for name, count in sorted(examples.items()):
        identity = Identity.generate()
        identity.save(_key(folder, name))
        entry = sign_entry(
            identity, federation=config.name, site=name, weight=weight_bucket(count), group=groups[name]
        )
        entries.append(entry)
    roster = Roster(federation=config.name, version=1, previous=GENESIS, entries=tuple(entries))
    write_atomic(folder / ROSTER_FILE, roster.to_json().encode())


def secure_site(run: Path, name: str, member: SecureMember) -> SecureSite:
    """Return a virtual site's part in secure aggregation.

    Args:
        run: The run directory.
        name: The site's.
        member: Its state machine, or the way to it.
    """
    roster, spent = _roster(run), _spent(run, name)
    return SecureSite(
        roster=roster,
        spent=spent,
        member=member,
        received=ReceivedAdapter(_state(run, name, "received.safetensors")),
        weight=next(entry.weight for entry in roster.entries if entry.site == name),
        audit_head=spent.head,
    )


def new_member(run: Path, config: Config, name: str) -> SecureAggregationClient:
    """Return a virtual site's state machine with its key and its journals, and nothing in its memory."""
    return SecureAggregationClient(
        identity=Identity.load(_key(secure_folder(run), name)),
        policy=policy_of(config),
        roster=_roster(run),
        spent=_spent(run, name),
        cohorts=CohortLog(_state(run, name, "cohorts.jsonl")),
    )


def _roster(run: Path) -> Roster:
    return _parsed((secure_folder(run) / ROSTER_FILE).read_bytes())


@lru_cache(maxsize=1)
def _parsed(data: bytes) -> Roster:
    # Every virtual site of a process pins the same version; each parse checks all signatures.
    return parse_roster(data)


def _spent(run: Path, name: str) -> SpentJournal:
    return SpentJournal(_state(run, name, "spent.jsonl"))


def _state(run: Path, name: str, kind: str) -> Path:
    folder = run / "sites"
    folder.mkdir(exist_ok=True)
    return folder / f"{quote(name, safe='')}.{kind}"


def _key(folder: Path, name: str) -> Path:
    return folder / "keys" / f"{quote(name, safe='')}.key"
