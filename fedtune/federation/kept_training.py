"""What a site trained in one round and fits in the next: ``aggregation=projection`` under secure aggregation.

A server that could have the same training fitted to one mean A after another would learn one linear map of
the same products after another, until it had all of them. So a training is fitted once:

* to nothing before its own update was opened, so that every product belongs to one spent update;
* to one A: the journal of opened updates writes down that the *training* was fitted, whatever A was;
* in the round after it and no later one.

The file is only where the product lies meanwhile; that it is used once is the journal's word, which is on the
disk before anything is signed (`fedtune.secagg.spent`).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fedtune.aggregation.projection import GREATEST_CONDITION, ill_conditioned
from fedtune.errors import FederationError, Problem, RunError
from fedtune.federation.round_files import RoundFiles
from fedtune.models.adapter import Adapter
from fedtune.secagg.spent import SpentJournal, UpdateOrigin

__all__ = ["KeptTraining", "Training", "fit_origin", "nothing_to_fit", "require_conditioned"]

_KIND = "kept"


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training.

    Attributes:
        adapter: The site's A and B after it.
        origin: What its update was made of.
    """

    adapter: Adapter
    origin: UpdateOrigin


class KeptTraining:
    """A site's last training, which its owner alone can read; it leaves the site as part of a sum alone.

    Args:
        state_dir: Folder of what sites remember.
        site: The site's name.
    """

    def __init__(self, state_dir: Path, site: str) -> None:
        self._files = RoundFiles(state_dir, site, _KIND, kept=1, private=True)

    def keep(self, round_number: int, training: Training) -> None:
        """Keep what a round trained, in place of what another did."""
        origin = json.dumps(training.origin.as_json())
        self._files.clear()
        self._files.keep(round_number, save(training.adapter, {"origin": origin}))

    def of(self, round_number: int) -> Training | None:
        """Return what a round trained; None where it is not here.

        Raises:
            RunError: FT725, the file is damaged.
        """
        last = self._files.last()
        if last is None or last[0] != round_number:
            return None
        return Training(adapter=_tensors(last[1]), origin=_origin(last[1]))

    def forget_fitted(self, spent: SpentJournal) -> None:
        """Delete a training that was fitted in an opened sum: nothing may be done with it any more.

        Raises:
            RunError: FT725, the file is damaged.
            SecureAggregationError: FT919, the journal is damaged.
        """
        last = self._files.last()
        if last is not None and spent.holds(fit_origin(_origin(last[1]))):
            self._files.clear()

    @staticmethod
    def forget(state_dir: Path) -> None:
        """Delete what all sites of a folder keep, once no round will follow."""
        RoundFiles.forget(state_dir, _KIND)


def fit_origin(training: UpdateOrigin) -> UpdateOrigin:
    """Return what the journal knows a fit of a training by: the same for every A that it is fitted to."""
    config = hashlib.sha256(b"fedtune fit\x00" + training.config).digest()
    return UpdateOrigin(base=training.base, adapter=training.adapter, config=config, samples=training.samples)


def nothing_to_fit(round_number: int, why: str) -> FederationError:
    """Return FT615: this site takes no part in a round that fits.

    Args:
        round_number: The round.
        why: What is not there.
    """
    return FederationError(
        Problem(
            code="FT615",
            what=f"there is nothing to fit: {why}",
            where=f"round {round_number}",
            fix="nothing at this site: it takes part again in the next round, which trains",
        )
    )


def require_conditioned(adapter: Adapter, round_number: int) -> None:
    """Refuse to fit to an A whose rows hardly differ.

    Args:
        adapter: The global adapter that a round came with.
        round_number: The round.

    Raises:
        FederationError: FT616 with every such A.
    """
    problems = [
        Problem(
            code="FT616",
            what=f"the singular values of {name} are {ratio:.3g} times apart, at most "
            f"{GREATEST_CONDITION:g} times can be fitted to",
            where=f"round {round_number}, {name}",
            fix="lower training.learning_rate or peft.rank, or set aggregation=alternating, which fits none",
        )
        for name, ratio in ill_conditioned(adapter).items()
    ]
    if problems:
        raise FederationError(problems)


def _origin(path: Path) -> UpdateOrigin:
    try:
        with safe_open(path, framework="numpy") as file:
            return UpdateOrigin.from_json(json.loads(file.metadata()["origin"]))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, error) from None


def _tensors(path: Path) -> Adapter:
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, TypeError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> RunError:
    return RunError(
        Problem(
            code="FT725",
            what=f"what this site trained in the round before cannot be read: {error}",
            where=str(path),
            fix="delete the file: the site sits this round out, and takes part in the next one that trains",
        )
    )
