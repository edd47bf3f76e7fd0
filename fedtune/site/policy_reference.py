"""The reference page of the site's policy, written from the schema and the example themselves.

``python -m fedtune.site.policy_reference > docs/reference/site-policy.md`` renews it; a test keeps it equal.
"""

from __future__ import annotations

import sys

from fedtune.config.typed_reference import reference_table
from fedtune.site.policy import REASONS
from fedtune.site.policy_file import POLICY, example_path, parse_policy

__all__ = ["reference_page"]

_HEAD = """\
# The policy of a site

A coordinator asks, and the site's own policy decides: who may ask, which bundle and base model, how much
and when it trains, and what leaves. The policy is one file, `site.yaml`, that a hospital can read and sign
off. Start from the commented example, `client/site.example.yaml`.

- Every key has to be there, and no other may: nothing follows from a default that somebody else can change.
  `null` means no limit, where a key takes it.
- The file is YAML 1.2: `20:00` is a text, `no` is a text. A key that stands twice is refused.
- It must not be writable by others than its owner.
- Each check stands for itself, and a request is accepted if it passes all of them. A stricter policy never
  accepts more.

Everything wrong in the file is said at once; [FT820](errors/FT820.md) to [FT824](errors/FT824.md) explain it.

This page is written by `python -m fedtune.site.policy_reference`; *example* is what the example says.

## Keys
"""

_REASONS = """\
## What a coordinator is told

A refusal reaches the coordinator as [FT640](errors/FT640.md) with one or more of these codes, and without the
limit. The site's own log names the value that was asked for, the limit, and the key to change.

| code | a request is refused because |
|---|---|"""


def reference_page() -> str:
    """The page as Markdown."""
    reasons = (f"| `{code}` | {why} |" for code, why in REASONS.items())
    path = example_path()
    example = parse_policy(path.read_text(encoding="utf-8"), where=str(path))
    return "\n".join((_HEAD, *reference_table(POLICY, example, column="example"), "", _REASONS, *reasons, ""))


if __name__ == "__main__":
    sys.stdout.write(reference_page())
