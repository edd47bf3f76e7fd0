"""``fedtune client preview``: what would leave a site in a round, before anything does."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from fedtune.commands.config_file import read_config_file
from fedtune.commands.reporting import print_json, say
from fedtune.config.schema import Config
from fedtune.errors import ConfigError, Problem
from fedtune.keys.joining import read_connection
from fedtune.observability import wording
from fedtune.secagg.fields import printable
from fedtune.secagg.pinning import PinnedRoster
from fedtune.site.checkup.agreement import agreement
from fedtune.site.checkup.model import without_download
from fedtune.site.folder import SiteFolder
from fedtune.site.policy_file import load_policy
from fedtune.site.settings import here, load_settings

if TYPE_CHECKING:
    from fedtune.site.preview.described import Field, TensorGroup
    from fedtune.site.preview.outgoing import Preview

__all__ = ["run_preview"]

_MARKS = {"leaves": "leaves", "null": "null", "refused": "REFUSED"}


def run_preview(arguments: argparse.Namespace) -> int:
    """Show every message of a round with every field; with ``arguments.train``, of one real step.

    Args:
        arguments: ``folder``, ``config`` (a path), ``round``, ``train`` and ``json``.

    Returns:
        0.

    Raises:
        FedtuneError: Every problem of the folder, of the configuration, and with ``train`` of model and rows.
    """
    folder = SiteFolder(Path(arguments.folder))
    config = _of_round(read_config_file(Path(arguments.config)), arguments.round)
    connection, policy = read_connection(folder.connection), load_policy(folder.policy).policy
    roster = PinnedRoster(folder.pin).roster if config.secagg.enabled else None
    refusals = agreement(policy, config, connection, base_model=None, memory_mib=None, now=datetime.now(UTC))
    refused = tuple(finding.text for finding in refusals if finding.status == "failed")
    settings = load_settings(folder.settings)
    local = here(config, settings, files=policy.data.files, runs_dir=folder.runs)
    without_download(local.model)  # refuses a model that is not here: a preview fetches nothing

    from fedtune.site.preview.outgoing import as_json, preview  # noqa: PLC0415  # takes seconds to import

    shown = preview(
        local,
        site=connection.site,
        policy=policy,
        roster=roster,
        round_number=arguments.round,
        refused=refused,
    )
    if arguments.train:
        from fedtune.site.preview.trial import try_one_step, with_trial  # noqa: PLC0415

        trial = try_one_step(local, site=connection.site, round_number=arguments.round)
        shown = with_trial(shown, trial)
    if arguments.json:
        print_json(as_json(shown) | {"tried": bool(arguments.train)})
        return 0
    for line in _lines(shown, tried=arguments.train):
        say(line)
    return 0


def _of_round(config: Config, round_number: int) -> Config:
    if round_number <= config.federation.rounds:
        return config
    raise ConfigError(
        Problem(
            code="FT103",
            what=f"there is no round {round_number}, the configuration has {config.federation.rounds}",
            where="--round",
            fix=f"name a round from 1 to {config.federation.rounds}",
        )
    )


def _lines(shown: Preview, *, tried: bool) -> Iterator[str]:
    yield f"What {printable(shown.site)} would send for {shown.run}, round {shown.round} of {shown.rounds}"
    for text in shown.refused:
        yield f"  the policy refuses this configuration: {text}"
    if shown.refused:
        yield "  so nothing of what follows would leave, but a Failure with the codes of the refusals"
    for message in shown.messages:
        yield ""
        size = wording.bytes_(message.bytes)
        yield f"{message.name}, {message.when} ({size}{'' if message.in_round else ', not in this round'})"
        width = max(len(field.name) for field in message.fields)
        yield from (_field(field, width, tried=tried) for field in message.fields)
        for group in message.tensors:
            yield from _tensors(group)
    yield ""
    yield f"in all, this round sends {wording.bytes_(shown.bytes_a_round)}"
    yield from _list("beside each message", shown.beside)
    yield from _list("what never leaves", shown.never)
    if tried:
        yield ""
        yield "values are those of one real step on this site's own rows; nothing was sent"
        if shown.secure:
            yield "norms are of the update before it is masked, which the coordinator never sees"


def _field(field: Field, width: int, *, tried: bool) -> str:
    line = f"  {field.name:<{width}}  {_MARKS[field.leaves]:<7}  {field.meaning}"
    if field.because is not None:
        line += f"; {field.because}"
    if tried and field.value is not None:
        line += f" = {printable(str(field.value))}"
    return line


def _tensors(group: TensorGroup) -> Iterator[str]:
    how = "masked" if group.masked else "in clear"
    shape = " x ".join(map(str, group.shape))
    many = f"{len(group.names)} tensors of" if len(group.names) > 1 else "1 tensor of"
    yield f"  {group.name}"
    norms = ""
    if group.norms:
        norms = f", L2 norms {min(group.norms):.3g} to {max(group.norms):.3g}"
    yield f"    {many} {shape} {group.dtype}, {how}, {wording.bytes_(group.bytes)}{norms}"


def _list(title: str, lines: tuple[str, ...]) -> Iterator[str]:
    yield ""
    yield f"{title}:"
    yield from (f"  - {line}" for line in lines)
