"""A canary: a text planted in a site's data that may turn up in nothing which leaves, in no common form.

A file that is compressed, and a text that is cut into tokens, are not seen through: plant several canaries,
and look into what was uncompressed.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

__all__ = ["assert_no_trace", "forms", "traces"]

_SHORTEST = 12


def forms(canary: str) -> dict[str, bytes]:
    """Each form in which a text may be hidden in bytes, by a name for it."""
    raw = canary.encode()
    found = {
        "utf-8": raw,
        "utf-16-le": canary.encode("utf-16-le"),
        "utf-16-be": canary.encode("utf-16-be"),
        "utf-32-le": canary.encode("utf-32-le"),
        "utf-32-be": canary.encode("utf-32-be"),
        "json, escaped": json.dumps(canary).encode()[1:-1],
        "json, twice": json.dumps(json.dumps(canary)).encode()[3:-3],
        "python": ascii(canary).encode()[1:-1],
        "url": quote(canary, safe="").encode(),
        "hex": raw.hex().encode(),
        "HEX": raw.hex().upper().encode(),
        "utf-16 in hex": canary.encode("utf-16-le").hex().encode(),
    }
    for name, encode in (("base64", base64.b64encode), ("base64, for urls", base64.urlsafe_b64encode)):
        for source, data in (("", raw), (" of utf-16", canary.encode("utf-16-le"))):
            for before in range(3):
                # What stands before and after it decides the marks at both ends: those are left out.
                whole = encode(bytes(before) + data)
                start = (8 * before + 5) // 6
                end = 4 * ((before + len(data)) // 3) or None
                found[f"{name}{source}, {before} bytes on"] = whole[start:end]
    return found


def traces(folder: Path, canary: str) -> list[str]:
    """Where below a folder a canary is found, in a file's name or its content, and in which form.

    Args:
        folder: Looked through with everything below it.
        canary: At least 12 characters, so that no form of it turns up by chance.
    """
    if len(canary) < _SHORTEST:
        raise ValueError(f"a canary has at least {_SHORTEST} characters, got {len(canary)}")
    sought = forms(canary)
    found = []
    for path in sorted(folder.rglob("*")):
        name = bytes(path.relative_to(folder))
        found += [f"{path}: its name, {form}" for form, mark in sought.items() if mark in name]
        if path.is_file():
            found += [f"{path}: {form}" for form in _forms_in(path.read_bytes(), sought)]
    return found


def _forms_in(data: bytes, sought: dict[str, bytes]) -> Iterator[str]:
    # Base64 and hex are often broken into lines, and these are sometimes indented.
    joined = re.sub(rb"(\\r|\\n|\s)+", b"", data)
    for form, mark in sought.items():
        if mark in data or mark in joined:
            yield form


def assert_no_trace(folder: Path, canary: str) -> None:
    """Fail if a canary is in any file below a folder, or in the name of one."""
    found = traces(folder, canary)
    assert not found, "the canary was found:\n" + "\n".join(found)
