"""Asking a person for a passphrase, or reading it from a file that its owner alone can read."""

from __future__ import annotations

import getpass
import sys
from pathlib import Path

from fedtune.errors import ConfigError, Problem
from fedtune.keys.private import long_enough, read_passphrase
from fedtune.keys.problems import refusal

__all__ = ["new_passphrase", "passphrase"]


def passphrase(file: str | None, *, of: str, command: str) -> bytes:
    """A passphrase that exists.

    Args:
        file: Holds it in its first line; None asks.
        of: What it opens, for the question.
        command: For an error.

    Raises:
        FederationError: FT630, the file cannot be used.
        ConfigError: FT109, there is nobody to ask.
    """
    if file is not None:
        return read_passphrase(Path(file))
    return _typed(f"Passphrase of {of}: ", command)


def new_passphrase(file: str | None, *, of: str, command: str) -> bytes:
    """A passphrase that is given here for the first time, typed twice where it is typed.

    Raises:
        FederationError: FT630, it is too short, the two differ, or as `passphrase`.
        ConfigError: As `passphrase`.
    """
    if file is not None:
        return read_passphrase(Path(file))
    typed = long_enough(_typed(f"New passphrase of {of}: ", command), where=command)
    if _typed("The same again: ", command) != typed:
        what = "the two passphrases differ"
        raise refusal("FT630", what, where=command, fix="repeat the command and type carefully")
    return typed


def _typed(prompt: str, command: str) -> bytes:
    if not sys.stdin.isatty():
        raise ConfigError(
            Problem(
                code="FT109",
                what="there is no terminal to ask for the passphrase, and no file of it was given",
                where=command,
                fix="give --passphrase-file FILE, or use a terminal",
            )
        )
    return getpass.getpass(prompt, stream=sys.stderr).encode()
