"""``fedtune server backup`` and ``fedtune server restore``."""

from __future__ import annotations

import argparse
from pathlib import Path

from fedtune.commands.passphrases import new_passphrase, passphrase
from fedtune.commands.reporting import print_json, say
from fedtune.coordinator.backup import back_up
from fedtune.coordinator.restore import restore
from fedtune.keys.certificates import utc_now

__all__ = ["run_backup", "run_restore"]

_OF = "the backup"


def run_backup(arguments: argparse.Namespace) -> int:
    """Write a backup.

    Returns:
        0.

    Raises:
        FedtuneError: As `fedtune.coordinator.backup.back_up`, and FT109 without a terminal to ask.
    """
    secret = new_passphrase(arguments.passphrase_file, of=_OF, command="fedtune server backup")
    folder, out = Path(arguments.folder), Path(arguments.out)
    made = back_up(folder, out, passphrase=secret, now=utc_now())
    if arguments.json:
        print_json(
            {
                "backup": str(made.path),
                "size": made.path.stat().st_size,
                "files": made.files,
                "bytes": made.bytes,
                "left_out": list(made.left_out),
            }
        )
        return 0
    say(f"{made.path}: {made.files} files of {folder}, {made.bytes:,} bytes")
    if made.left_out:
        say(f"  not in it: {', '.join(map(ascii, made.left_out))}")
    say("Keep it and its passphrase apart: together they are the federation. Nobody can open it without.")
    return 0


def run_restore(arguments: argparse.Namespace) -> int:
    """Restore a backup.

    Returns:
        0.

    Raises:
        FedtuneError: As `fedtune.coordinator.restore.restore`, and FT109 without a terminal to ask.
    """
    secret = passphrase(arguments.passphrase_file, of=_OF, command="fedtune server restore")
    folder = Path(arguments.folder)
    done = restore(Path(arguments.backup), folder, passphrase=secret)
    if arguments.json:
        print_json(
            {
                "folder": str(folder),
                "made": done.made.isoformat(),
                "version": done.version,
                "files": done.files,
                "bytes": done.bytes,
            }
        )
        return 0
    say(f"{folder}: {done.files} files, {done.bytes:,} bytes")
    say(f"  as of {done.made:%Y-%m-%d %H:%M} UTC, by fedtune {ascii(done.version)[1:-1]}")
    say("Start it only once the server that it replaces is off for good.")
    return 0
