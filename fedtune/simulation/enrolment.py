"""Identities, roster and memory of a simulation's virtual sites, for secure aggregation.

A deployment's sites make their own keys and confirm each other's; here one process makes them all, inside the
run directory, where a resumed run finds them again. The protocol that runs with them is the real one.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from urllib.parse import quote

from fedtune.config.schema import Config
from fedtune.federation.secure import policy_of
from fedtune.federation.secure_site import ReceivedAdapter, SecureSite
from fedtune.federation.server import COORDINATOR_KEY, ROSTER_FILE, secure_folder
from fedtune.observability.disk import write_atomic
from fedtune.secagg.client import SecureAggregationClient
from fedtune.secagg.cohorts import CohortLog
from fedtune.secagg.identity import Identity
from fedtune.secagg.roster import GENESIS, Roster, parse_roster, sign_entry, weight_bucket
from fedtune.secagg.spent import SpentJournal

__all__ = ["enrol", "secure_site"]


def enrol(run: Path, config: Config, examples: dict[str, int], *, anew: bool) -> None:
    """Give the coordinator and each virtual site an identity, and write the roster.

    Args:
        run: The run directory.
        config: The whole configuration.
        examples: Name of each site to its training examples.
        anew: Forget what an earlier run of this name left; otherwise only what is missing is made.
    """
    folder = secure_folder(run)
    if anew:
        shutil.rmtree(folder, ignore_errors=True)
    if (folder / ROSTER_FILE).exists():
        return
    shutil.rmtree(folder, ignore_errors=True)  # a first start that was killed half-way
    (folder / "keys").mkdir(parents=True)
    Identity.generate().save(folder / COORDINATOR_KEY)
    entries = []
    for name, count in sorted(examples.items()):
        identity = Identity.generate()
        identity.save(_key(folder, name))
        entries.append(sign_entry(identity, federation=config.name, site=name, weight=weight_bucket(count)))
    roster = Roster(federation=config.name, version=1, previous=GENESIS, entries=tuple(entries))
    write_atomic(folder / ROSTER_FILE, roster.to_json().encode())


def secure_site(run: Path, config: Config, name: str) -> SecureSite:
    """Return a virtual site's part in secure aggregation: its key, its journals, an empty memory."""
    folder = secure_folder(run)
    roster = parse_roster((folder / ROSTER_FILE).read_bytes())
    identity = Identity.load(_key(folder, name))
    state = run / "sites"
    state.mkdir(exist_ok=True)
    spent = SpentJournal(state / f"{quote(name, safe='')}.spent.jsonl")
    member = SecureAggregationClient(
        identity=identity,
        policy=policy_of(config),
        roster=roster,
        spent=spent,
        cohorts=CohortLog(state / f"{quote(name, safe='')}.cohorts.jsonl"),
    )
    return SecureSite(
        roster=roster,
        spent=spent,
        member=member,
        received=ReceivedAdapter(state / f"{quote(name, safe='')}.received.safetensors"),
        weight=roster.members[identity.public].weight,
        audit_head=spent.head,
    )


def _key(folder: Path, name: str) -> Path:
    return folder / "keys" / f"{quote(name, safe='')}.key"
