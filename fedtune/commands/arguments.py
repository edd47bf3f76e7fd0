"""Arguments that several commands have; nothing but argparse is imported to parse a command line."""

from __future__ import annotations

import argparse
from typing import TypeAlias

__all__ = ["Commands", "add_json", "below", "count", "overrides"]

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""What a parser's commands are added to."""


def below(parser: argparse.ArgumentParser, dest: str) -> Commands:
    """Let a command have commands, of which one must be given."""
    return parser.add_subparsers(dest=dest, metavar="COMMAND", required=True)


def add_json(parser: argparse.ArgumentParser) -> None:
    """Let a command print one object for a program."""
    parser.add_argument("--json", action="store_true", help="print one JSON object to stdout")


def count(text: str) -> int:
    """A whole number from 1.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1")
    return int(text)


def overrides(parser: argparse.ArgumentParser) -> None:
    """Let a command take keys and groups of the configuration."""
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="keys and groups of the configuration, see docs/reference/configuration.md",
    )
