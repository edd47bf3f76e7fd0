"""A site's keys and its request, made on the site's own machine.

========================  ====  ===============================================================
``node.key``              0600  the node key, by which the server knows the site's SuperNode
``identity.key``          0600  the identity, by which the other sites know it
``NAME.request.json``     0644  what the site sends to the coordinator; nothing in it is secret
``connection.json``       0644  written by `joining`: whom the site trusts and where it connects
``ca.pem``                0644  likewise
========================  ====  ===============================================================
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fedtune.keys.names import name_flaws
from fedtune.keys.private import new_key, openssh
from fedtune.keys.problems import Gathered
from fedtune.keys.request import Request, sign_request
from fedtune.keys.storage import PRIVATE, PUBLIC, existing, write_new
from fedtune.secagg.entry import Application, apply_for_roster
from fedtune.secagg.identity import Identity

__all__ = ["CONNECTION", "IDENTITY_KEY", "NODE_KEY", "REQUEST_SUFFIX", "make_node", "request_path"]

NODE_KEY: Final = "node.key"
IDENTITY_KEY: Final = "identity.key"
REQUEST_SUFFIX: Final = ".request.json"
CONNECTION: Final = "connection.json"


def request_path(folder: Path, site: str) -> Path:
    """Where a site's request is."""
    return folder / f"{site}{REQUEST_SUFFIX}"


def make_node(folder: Path, *, site: str, federation: str, weight: int = 1, group: str = "") -> Request:
    """Make a site's two keys and its request; nothing is written over.

    Args:
        folder: Where they are written; made if it is not there.
        site: The site's name.
        federation: What it wants to belong to.
        weight: The weight that it declares, a power of two.
        group: Sites of one group join and leave a sum together.

    Raises:
        FederationError: All problems: FT634 for files that are there already, FT635 for the site's name,
            FT929 for what its entry declares.
        RunError: FT705 or FT707; no file is left.
    """
    found, identity, node = Gathered(), Identity.generate(), new_key()
    application: Application | None = None
    found.add("FT635", name_flaws(site, "site"), where="NAME")
    with found.part():
        application = apply_for_roster(identity, federation=federation, site=site, weight=weight, group=group)
    paths = folder / NODE_KEY, folder / IDENTITY_KEY, request_path(folder, site)
    found.problems += existing(paths)
    found.refuse()
    if application is None:
        raise TypeError("an application that was not made is a problem")
    request = sign_request(application, identity=identity, node=node)
    contents = (openssh(node), PRIVATE), (identity.to_pem(), PRIVATE), (request.to_json(), PUBLIC)
    write_new(dict(zip(paths, contents, strict=True)))
    return request
