"""The reference page of ``client.yaml``, written from the typed settings themselves.

``python -m fedtune.site.settings_reference > docs/reference/client-settings.md`` renews it; a test keeps
it equal.
"""

from __future__ import annotations

import sys

from fedtune.config.typed_reference import reference_table
from fedtune.site.settings import SETTINGS, written

__all__ = ["reference_page"]

_HEAD = """\
# The settings of a client

`client.yaml` in a site's folder says what is particular to its machine: where base models lie, ports,
threads, logs. What the site allows stands in its [policy](site-policy.md). `fedtune client init` writes it
with comments; `fedtune client start` reads it as it starts, so a change asks for a restart.

- Every key has to be there, and no other may.
- The file is YAML 1.2: `no` is a text. A key that stands twice is refused.
- It must not be writable by others than its owner.

Everything wrong in the file is said at once; [FT680](errors/FT680.md) to [FT683](errors/FT683.md) explain it.

This page is written by `python -m fedtune.site.settings_reference`; *written* is what
`fedtune client init` writes, with a base model that has a place of its own.
"""


def reference_page() -> str:
    """The page as Markdown."""
    settings = SETTINGS.parse(written(model="lung-base", place="/srv/models/lung-base"), where="client.yaml")
    return "\n".join((_HEAD, *reference_table(SETTINGS, settings, column="written"), ""))


if __name__ == "__main__":
    sys.stdout.write(reference_page())
