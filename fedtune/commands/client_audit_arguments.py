"""The arguments of ``fedtune client audit``."""

from __future__ import annotations

import argparse

from fedtune.commands.arguments import Commands, add_json, below, count

__all__ = ["add_audit"]

_HEAD_BYTES = 32


def add_audit(commands: Commands) -> None:
    """Add what stands below ``fedtune client audit``."""
    audit = below(
        commands.add_parser("audit", help="the site's audit log: check it, read it"), "audit_command"
    )
    verify = audit.add_parser("verify", help="find the first line that is not as it was written")
    _folder(verify)
    verify.add_argument(
        "--head", type=head, metavar="HEX", help="a head of this log that was seen elsewhere, to find a cut"
    )
    add_json(verify)

    show = audit.add_parser("show", help="print the last lines as a table")
    _folder(show)
    show.add_argument("--last", type=count, default=20, metavar="N", help="how many lines (default: 20)")


def _folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="the site's folder")


def head(text: str) -> bytes:
    """A head of an audit log.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if len(value) != _HEAD_BYTES:
        raise argparse.ArgumentTypeError(f"{text!r:.80} is no head: {2 * _HEAD_BYTES} hexadecimal digits")
    return value
