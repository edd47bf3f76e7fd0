"""A site's folder that `fedtune client start` takes, and a stand-in for its Flower node."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path
from typing import Any

from support.site_folder import JoinedSite, policy_values, write_policy, write_rows, write_settings

from fedtune.federation.processes import free_ports
from fedtune.secagg.identity import Identity
from fedtune.site.audit import verify_audit
from fedtune.site.folder import SiteFolder

__all__ = ["audit_lines", "standing_site", "write_stand_in"]

_STAND_IN = """\
#!{python}
import socket, sys, time
from pathlib import Path
begun = Path({begun!r})
count = int(begun.read_text() or 0) + 1 if begun.exists() else 1
begun.write_text(str(count))
print("node", count, flush=True)
if count in {mute}:
    sys.exit(3)
server = socket.create_server(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])))
server.settimeout({seconds})
print("SuperNode ID: 7", flush=True)
try:
    while True:
        server.accept()[0].close()
except TimeoutError:
    print("had enough", flush=True)
    sys.exit(4)
"""


def standing_site(root: Path, **settings: Any) -> SiteFolder:
    """A site that has joined; its server is at an address of this machine where nobody listens."""
    (port,) = free_ports(1)
    site = JoinedSite(root=root, address=f"127.0.0.1:{port}", sites=("ear", "eye", "heart"))
    rows = write_rows(root / "rows.jsonl")
    write_policy(site.folder, policy_values(site, files=[str(rows)], base_models=["a" * 64]))
    write_settings(site.folder, models={"tiny": None}, **settings)
    folder = SiteFolder(site.folder)
    folder.audit_key.write_bytes(Identity.generate().to_pem())
    folder.audit_key.chmod(0o600)
    return folder


def write_stand_in(path: Path, *, seconds: float, mute: tuple[int, ...] = ()) -> Path:
    """A program in place of flower-supernode.

    Args:
        path: Where it is written; ``path.begun`` counts how often it was started.
        seconds: It ends when nobody has connected for so long.
        mute: Starts, from 1, at which it ends before it listens.
    """
    begun = str(path.with_suffix(".begun"))
    path.write_text(_STAND_IN.format(python=sys.executable, begun=begun, seconds=seconds, mute=list(mute)))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def audit_lines(folder: SiteFolder) -> list[dict[str, Any]]:
    """Lines of the audit log, which has to verify."""
    assert verify_audit(folder.audit_log, Identity.load(folder.audit_key).public).intact
    return [json.loads(line) for line in folder.audit_log.read_bytes().splitlines()]
