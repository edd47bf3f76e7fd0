"""``fedtune keys ca`` and ``fedtune keys server``: what the coordinator makes for itself."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from fedtune.commands.passphrases import new_passphrase, passphrase
from fedtune.commands.reporting import print_json, say
from fedtune.keys.authority import (
    AUTHORITY_CERTIFICATE,
    AUTHORITY_DAYS,
    AUTHORITY_KEY,
    COORDINATOR_KEY,
    make_authority,
)
from fedtune.keys.certificates import certificate_hash, days_left, utc_now
from fedtune.keys.server import SERVER_DAYS, Server, ServerOrder, make_server, renew_server
from fedtune.secagg.entry import fingerprint

__all__ = ["chosen_passphrase", "run_ca", "run_server"]

_OF = "the authority's key"


def run_ca(arguments: argparse.Namespace) -> int:
    """Make an authority.

    Returns:
        0.
    """
    folder, now = Path(arguments.folder), utc_now()
    secret = chosen_passphrase(arguments)
    made = make_authority(
        folder, name=arguments.name, now=now, days=arguments.days or AUTHORITY_DAYS, passphrase=secret
    )
    certificate, coordinator = made.certificate, fingerprint(made.coordinator)
    if arguments.json:
        print_json(
            {
                "name": arguments.name,
                "certificate": str(folder / AUTHORITY_CERTIFICATE),
                "key": str(folder / AUTHORITY_KEY),
                "coordinator_key": str(folder / COORDINATOR_KEY),
                "passphrase": secret is not None,
                "ends": certificate.not_valid_after_utc.isoformat(),
                "days_left": days_left(certificate, now),
                "fingerprints": {
                    "authority": fingerprint(certificate_hash(certificate)),
                    "coordinator": coordinator,
                },
            }
        )
        return 0
    say(f"{folder}: a new authority, {arguments.name}, until {certificate.not_valid_after_utc:%Y-%m-%d}")
    say(f"  authority    {fingerprint(certificate_hash(certificate))}")
    say(f"  coordinator  {coordinator}")
    if secret is None:
        say(f"{AUTHORITY_KEY} is under no passphrase: whoever reads it can pretend to be your server.")
    say("The coordinator's fingerprint is what you read to each site; nobody else should tell them.")
    return 0


def chosen_passphrase(arguments: argparse.Namespace) -> bytes | None:
    """Return the passphrase for a new authority's key: from a file, from the terminal, or none.

    Raises:
        FederationError: FT630, the file cannot be used, or the passphrase is too short or was not repeated.
        ConfigError: FT109, there is no terminal to ask.
    """
    if arguments.passphrase_file is None and not arguments.passphrase:
        return None
    return new_passphrase(arguments.passphrase_file, of=_OF, command="--passphrase")


def run_server(arguments: argparse.Namespace) -> int:
    """Make or renew a server's certificate.

    Returns:
        0.
    """
    now = utc_now()
    order = ServerOrder(
        name=arguments.name,
        dns=arguments.dns,
        ip=arguments.ip,
        days=arguments.days or SERVER_DAYS,
        out=Path(arguments.out),
    )
    work = renew_server if arguments.renew else make_server
    ask = partial(passphrase, arguments.passphrase_file, of=_OF, command="fedtune keys server")
    server = work(Path(arguments.ca), order, ask, now)
    _print_server(arguments, server, days_left(server.certificate, now))
    return 0


def _print_server(arguments: argparse.Namespace, server: Server, left: int) -> None:
    names, ends = server.names, server.certificate.not_valid_after_utc
    shown = fingerprint(certificate_hash(server.certificate))
    if arguments.json:
        print_json(
            {
                "name": arguments.name,
                "certificate": str(server.certificate_path),
                "key": str(server.key),
                "renewed": arguments.renew,
                "dns": list(names.dns),
                "ip": [str(address) for address in names.ip],
                "ends": ends.isoformat(),
                "days_left": left,
                "fingerprint": shown,
            }
        )
        return
    say(f"{server.certificate_path}: {'renewed' if arguments.renew else 'new'}, until {ends:%Y-%m-%d}")
    say(f"  names        {', '.join([*names.dns, *map(str, names.ip)])}")
    say(f"  fingerprint  {shown}")
    if arguments.renew:
        say("A server that runs shows the old certificate until it is started again.")
