"""A site's folder, made on the site's own machine: keys, request, policy, settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedtune.config.compose import compose
from fedtune.config.schema import ModelConfig
from fedtune.config.typed_yaml import quoted
from fedtune.errors import DataError, Problem
from fedtune.keys.names import name_flaws
from fedtune.keys.node import make_node, request_path
from fedtune.keys.problems import Gathered
from fedtune.keys.request import Request
from fedtune.keys.storage import PRIVATE, existing, write_new
from fedtune.models.base_hash import base_hash
from fedtune.secagg.identity import Identity
from fedtune.site import settings
from fedtune.site.folder import SiteFolder
from fedtune.site.policy_file import example_path, parse_policy

__all__ = ["NewSite", "initialise"]


@dataclass(frozen=True, kw_only=True)
class NewSite:
    """What was made.

    Attributes:
        folder: Where.
        request: What the site sends to the coordinator.
        base_model: Hash of the base model, as the policy allows it.
    """

    folder: SiteFolder
    request: Request
    base_model: str

    @property
    def request_path(self) -> Path:
        return request_path(self.folder.path, self.request.site)


def initialise(
    path: Path,
    *,
    site: str,
    federation: str,
    coordinator: str,
    data: Sequence[Path],
    model: str,
    place: str | None = None,
    weight: int = 1,
    group: str = "",
    timezone: str = "Etc/UTC",
    k_min: int = 5,
) -> NewSite:
    """Make a site's folder; nothing is written over.

    The policy is the commented example with this coordinator, this base model and these rows; its limits
    are for the site's people to set before they sign it.

    Args:
        path: Where; made if it is not there.
        site: The site's name.
        federation: What it wants to belong to.
        coordinator: Fingerprint of the coordinator, as its operator read it out.
        data: The site's rows.
        model: What the federation calls its base model.
        place: Where that is on this machine; None where the name says it.
        weight: The weight that it declares, a power of two.
        group: Sites of one group join and leave a sum together.
        timezone: Where the site's days and hours are.
        k_min: Smallest cohort that the policy allows.

    Raises:
        FedtuneError: All problems of names and files, FT634 for what is there already; the model's, if it
            cannot be found.
        RunError: FT705 or FT707.
    """
    folder, found = SiteFolder(path), Gathered()
    found.add("FT635", name_flaws(site, "site"), where="--name")
    found.problems += existing([folder.policy, folder.settings, folder.audit_key])
    found.refuse()
    if missing := [file for file in data if not file.is_file()]:
        raise DataError([_no_file(file) for file in missing])
    shipped: ModelConfig = compose(["name=init"]).model
    base = base_hash(replace(shipped, name=place or model))
    policy = _policy(
        federation=federation,
        coordinator=_spelled(coordinator),
        base_model=base,
        files=[str(file.absolute()) for file in data],
        timezone=timezone,
        k_min=k_min,
    )
    parse_policy(policy, where="the policy that would be written")
    local = settings.written(model=model, place=place)
    settings.SETTINGS.parse(local, where="the settings that would be written")
    request = make_node(path, site=site, federation=federation, weight=weight, group=group)
    write_new(
        {
            folder.policy: (policy.encode(), PRIVATE),
            folder.settings: (local.encode(), PRIVATE),
            folder.audit_key: (Identity.generate().to_pem(), PRIVATE),
        }
    )
    return NewSite(folder=folder, request=request, base_model=base)


def _policy(
    *, federation: str, coordinator: str, base_model: str, files: Sequence[str], timezone: str, k_min: int
) -> str:
    """Return the commented example with what is known of this site."""
    lines, result, skipping = example_path().read_text(encoding="utf-8").splitlines(), [], False
    listed = "".join(f"\n    - {quoted(file)}" for file in files)
    replaced = {
        "timezone:": f"timezone: {timezone}",
        "  consortium:": f"  {quoted(federation)}: {coordinator}",
        "base_models:": f"base_models:\n  - {base_model}",
        "  files:": f"  files:{listed}",
        "  columns:": "  columns: null",
        "hours:": "hours: null",
        "  k_min:": f"  k_min: {k_min}",
    }
    for line in lines:
        if skipping and line.startswith(("  -", "  start:", "  end:")):
            continue
        skipping = False
        start = next((key for key in replaced if line.startswith(key)), None)
        result.append(line if start is None else replaced[start])
        skipping = start in ("base_models:", "hours:")
    return "\n".join([*result, ""])


def _spelled(coordinator: str) -> str:
    """A fingerprint as a policy writes it."""
    marks = "".join(coordinator.lower().replace("-", " ").split())
    return "-".join(marks[at : at + 4] for at in range(0, len(marks), 4))


def _no_file(path: Path) -> Problem:
    return Problem(
        code="FT201",
        what="there is no such file",
        where=str(path),
        fix="give the path of a .jsonl, .json, .csv or .parquet file",
    )
