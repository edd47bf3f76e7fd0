"""``fedtune client start``: connect to the coordinator and answer it, until stopped."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from fedtune.commands.reporting import say
from fedtune.commands.serving import stops_on_signals
from fedtune.observability.json_log import log_to
from fedtune.site.folder import SiteFolder

__all__ = ["run_start"]

_MIB = 2**20
_OLD_FILES = 4


def run_start(arguments: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C.

    Returns:
        0.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"  # a site looks for nothing on the internet
    folder = SiteFolder(Path(arguments.folder))
    from fedtune.site.daemon import Client  # noqa: PLC0415  # transformers reads the variable as it is imported

    client = Client.of(folder, insecure=arguments.insecure)
    stop = stops_on_signals()
    most = client.settings.log_mib * _MIB // (_OLD_FILES + 1)
    with log_to(folder.logs, "client", most_bytes=most, old_files=_OLD_FILES):
        connection = client.connection
        if client.insecure:
            say("WITHOUT TLS: whatever else runs on this machine can read and change what is sent")
        say(f"{connection.site} of {connection.federation} connects to {connection.server}; Ctrl-C stops it")
        client.serve(stop)
    say("stopped")
    return 0
