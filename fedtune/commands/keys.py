"""``fedtune keys``: a deployment's key material, the federation's roster, the journal of opened updates."""

from __future__ import annotations

import argparse
from pathlib import Path

from fedtune.commands.keys_authority import run_ca, run_server
from fedtune.commands.keys_enrolment import run_client, run_enrol, run_join, run_revoke
from fedtune.commands.keys_roster import run_roster
from fedtune.commands.keys_show import run_show
from fedtune.commands.keys_spent import run_spent
from fedtune.commands.reporting import print_json, say
from fedtune.observability.disk import disk_errors
from fedtune.secagg.entry import fingerprint
from fedtune.secagg.files import refuse_existing
from fedtune.secagg.identity import Identity

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    """Run the command below ``keys``.

    Returns:
        0; of ``show``, 7 when something is wrong.

    Raises:
        FederationError: FT630 to FT637 for keys, certificates, requests and bundles.
        SecureAggregationError: FT928 or FT930 for an identity, FT918 or FT929 for a roster and its entries,
            FT912 or FT919 for the journal.
        ConfigError: FT109, options that do not go together.
        RunError: FT705 or FT707, a file cannot be written.
    """
    commands = {
        "ca": run_ca,
        "server": run_server,
        "client": run_client,
        "enrol": run_enrol,
        "join": run_join,
        "revoke": run_revoke,
        "show": run_show,
        "identity": _identity,
        "roster": run_roster,
        "spent": run_spent,
    }
    return commands[arguments.keys_command](arguments)


def _identity(arguments: argparse.Namespace) -> int:
    path = Path(arguments.file)
    identity = Identity.load(path) if arguments.show else _made(path)
    shown = fingerprint(identity.public)
    if arguments.json:
        print_json(
            {
                "identity": str(path),
                "made": not arguments.show,
                "public_key": identity.public.hex(),
                "fingerprint": shown,
            }
        )
        return 0
    say(f"{path}: {'an' if arguments.show else 'a new'} identity")
    say(f"  public key   {identity.public.hex()}")
    say(f"  fingerprint  {shown}")
    if not arguments.show:
        say("The file is the private key: it stays on this machine; whoever has it can sign as this site.")
    return 0


def _made(path: Path) -> Identity:
    refuse_existing(path, "an identity")
    identity = Identity.generate()
    with disk_errors(path, kept="nothing was changed", again="make the identity again"):
        identity.save(path)
    return identity
