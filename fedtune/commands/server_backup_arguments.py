"""The arguments of ``fedtune server backup`` and ``fedtune server restore``."""

from __future__ import annotations

import argparse

from fedtune.commands.arguments import Commands, add_json

__all__ = ["add_backup"]


def add_backup(commands: Commands) -> None:
    """Add both commands below ``fedtune server``."""
    backup = commands.add_parser("backup", help="write all of the coordinator's folder to one encrypted file")
    backup.add_argument("folder", metavar="FOLDER", help="the coordinator's folder; its server may run")
    backup.add_argument("--out", required=True, metavar="FILE", help="the backup: a new file")
    _passphrase(backup)

    restore = commands.add_parser("restore", help="put a backup into an empty folder")
    restore.add_argument("folder", metavar="FOLDER", help="the coordinator's folder: new, or empty")
    restore.add_argument("--from", required=True, dest="backup", metavar="FILE", help="the backup")
    _passphrase(restore)


def _passphrase(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--passphrase-file", metavar="FILE", help="the backup's passphrase, mode 0600 (default: ask)"
    )
    add_json(parser)
