"""The virtual clients of a simulation: one dataset, split among sites that share a base model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import overload

import numpy as np
from flwr.app import Context

from fedtune.config.schema import Config
from fedtune.config.wire import config_from_json
from fedtune.data.examples import Example
from fedtune.data.load import load_examples
from fedtune.data.partition import HeldOutSplit, Partition, label_counts, partition, split_held_out
from fedtune.data.tokenize import TokenizedExample, tokenize_all
from fedtune.federation.own_factors import personal_folder
from fedtune.federation.run_config import CONFIG_KEY
from fedtune.federation.secure_site import SecureSite
from fedtune.federation.site import Site
from fedtune.models.adapted import AdaptedModel, load_tokenizer, shared_adapted_model
from fedtune.models.hardware import physical_cores
from fedtune.observability.events import Split
from fedtune.simulation.attacks import attack_of
from fedtune.simulation.enrolment import new_member, secure_site
from fedtune.simulation.poison import poisoned
from fedtune.simulation.ray_memory import RemoteMember
from fedtune.training.train import StepReport

__all__ = ["VirtualSites", "load_sites", "site_of_context"]

KEPT_SITES = 256


class _Rows(Sequence[TokenizedExample]):
    """Rows of a site, tokenized when the first of them is read: to count them costs nothing.

    Args:
        rows: Their positions in the dataset.
        tokenize: Returns them.
    """

    def __init__(self, rows: np.ndarray, tokenize: Callable[[np.ndarray], list[TokenizedExample]]) -> None:
        self._positions, self._tokenize = rows, tokenize

    def __len__(self) -> int:
        return len(self._positions)

    @overload
    def __getitem__(self, row: int) -> TokenizedExample: ...
    @overload
    def __getitem__(self, row: slice) -> list[TokenizedExample]: ...
    def __getitem__(self, row: int | slice) -> TokenizedExample | list[TokenizedExample]:
        return self._all[row]

    @cached_property
    def _all(self) -> list[TokenizedExample]:
        return self._tokenize(self._positions)


@dataclass(frozen=True, kw_only=True)
class VirtualSites:
    """All sites of a simulated federation.

    A site's rows are tokenized when the first of them is read, and those of the `KEPT_SITES` sites that were
    asked last are kept: what is in memory does not grow with the number of sites.

    Attributes:
        config: The whole configuration.
        examples: Every usable row of the dataset.
        partition: Which rows are whose.
        skipped_rows: Bad rows that were left out.
        on_step: Told of each optimizer step at any site.
    """

    config: Config
    examples: Sequence[Example]
    partition: Partition
    skipped_rows: int
    on_step: Callable[[str, int, StepReport], None] | None = None
    _tokenized: dict[int, tuple[_Rows, _Rows]] = field(default_factory=dict, init=False, repr=False)
    _poisoned: dict[int, list[TokenizedExample]] = field(default_factory=dict, init=False, repr=False)
    _secure: dict[int, SecureSite] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.partition.names)

    def site(self, index: int, *, honest: bool = False) -> Site:
        """Return site ``index`` of the partition, in its order.

        Args:
            index: From 0.
            honest: With its own rows, whatever rows it trains on in the federation: for baselines.

        Raises:
            DataError: FT228, a site that is to lie about its rows has none to poison.
        """
        own, held_out = self._rows(index)
        train: Sequence[TokenizedExample] = own
        if not honest and self.partition.names[index] in self.config.attack.sites:
            train = self._poisoned_rows(index)
        return Site(
            name=self.partition.names[index],
            config=self.config,
            train=train,
            held_out=held_out,
            skipped_rows=self.skipped_rows,
            state_dir=Path(self.config.runs_dir) / self.config.name / "sites",
            model=self.model,
            threads=self.threads,
            secure=self._secure_site(index) if self.config.secagg.enabled else None,
            lie=attack_of(self.config.attack, self.partition.names[index], self.config.seed),
            own_model_dir=personal_folder(
                Path(self.config.runs_dir) / self.config.name, self.partition.names[index]
            ),
            on_step=self.on_step,
        )

    def training_examples(self) -> dict[str, int]:
        """Return how many rows each site trains on, by name."""
        return {name: len(self._split(index).train) for index, name in enumerate(self.partition.names)}

    def model(self) -> AdaptedModel:
        """Return the base model with its adapter: one for all sites of this process."""
        return shared_adapted_model(
            self.config.model,
            self.config.peft,
            gradient_checkpointing=self.config.training.gradient_checkpointing,
        )

    @property
    def threads(self) -> int:
        """CPU threads of one training process: as configured, else the physical cores, shared by actors."""
        backend = self.config.backend
        share = backend.actors if backend.name == "ray" else 1
        return self.config.training.threads or max(1, physical_cores() // share)

    def held_out_examples(self, index: int) -> list[Example]:
        """Return the rows that a site is tested on, before tokenization."""
        rows = self.partition.indices[index]
        return [self.examples[rows[row]] for row in self._tested(self._split(index))]

    def split(self) -> Split | None:
        """Return how many rows of each label each site has, for the report."""
        labels, counts = label_counts(self.examples, self.partition, self.config.partition)
        return Split(
            sites=tuple(self.partition.names),
            labels=tuple(labels),
            counts=tuple(tuple(int(n) for n in row) for row in counts),
        )

    def _rows(self, index: int) -> tuple[_Rows, _Rows]:
        if index not in self._tokenized:
            rows, split = self.partition.indices[index], self._split(index)
            self._tokenized[index] = (
                _Rows(rows[split.train], self._tokenize),
                _Rows(rows[self._tested(split)], self._tokenize),
            )
            if len(self._tokenized) > KEPT_SITES:
                del self._tokenized[next(iter(self._tokenized))]
        return self._tokenized[index]

    def _poisoned_rows(self, index: int) -> list[TokenizedExample]:
        if index not in self._poisoned:
            rows = self.partition.indices[index][self._split(index).train]
            false = poisoned(
                [self.examples[row] for row in rows],
                self.config.attack,
                self.partition.names[index],
                self.config.seed,
            )
            self._poisoned[index] = tokenize_all(false, load_tokenizer(self.config.model), self.config.data)
        return self._poisoned[index]

    def _split(self, index: int) -> HeldOutSplit:
        return split_held_out(
            len(self.partition.indices[index]),
            self.config.data,
            seed=self.config.seed,
            site=self.partition.names[index],
        )

    def _secure_site(self, index: int) -> SecureSite:
        if index not in self._secure:
            run, name = Path(self.config.runs_dir) / self.config.name, self.partition.names[index]
            place = RemoteMember if self.config.backend.name == "ray" else new_member
            self._secure[index] = secure_site(run, name, place(run, self.config, name))
        return self._secure[index]

    def _tested(self, split: HeldOutSplit) -> np.ndarray:
        return split.validation if self.config.evaluation.rows == "validation" else split.held_out

    def _tokenize(self, rows: np.ndarray) -> list[TokenizedExample]:
        return tokenize_all(
            [self.examples[row] for row in rows], load_tokenizer(self.config.model), self.config.data
        )


def load_sites(config: Config) -> VirtualSites:
    """Read the dataset and split it among the sites.

    Raises:
        DataError: Every problem of the rows, or of the split.
    """
    data = load_examples(config.data)
    return VirtualSites(
        config=config,
        examples=data.examples,
        partition=partition(data.examples, config.partition, config.seed),
        skipped_rows=data.skipped_rows,
    )


@lru_cache(maxsize=1)
def sites_of_process(config_json: str) -> VirtualSites:
    """Return the sites of a configuration, read once in a process: for Ray's actors."""
    return load_sites(config_from_json(config_json))


def site_of_context(context: Context) -> Site:
    """Return the virtual site that a node of Flower's simulation engine stands for.

    The run config holds the configuration as JSON; the node config holds Flower's ``partition-id``.
    """
    sites = sites_of_process(str(context.run_config[CONFIG_KEY]))
    return sites.site(int(context.node_config["partition-id"]))
