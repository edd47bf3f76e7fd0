"""Virtual clients that do all that a round asks of them but training: for measurements of everything else.

They are the sites of a simulation, with their rows, their files on disk and the handlers of every other
client. What stands in is the base model, of which only the adapter's names and shapes are there, and the
trainer, whose updates are seeded noise of the size of a real one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import Context
from flwr.clientapp import ClientApp

from fedtune.data.seeds import derive_seed
from fedtune.federation.client import build_client_app
from fedtune.federation.site import Site
from fedtune.models.adapted import AdaptedModel, BaseModelInfo
from fedtune.models.adapter import FACTORS, Adapter, AdapterSpec, Factor
from fedtune.simulation.sites import VirtualSites
from fedtune.training.delta import Delta
from fedtune.training.memory import peak_memory_mib
from fedtune.training.train import TrainingResult

__all__ = ["idle_app"]

_UPDATE_SCALE = 1e-3


def idle_app(sites: VirtualSites, spec: AdapterSpec) -> ClientApp:
    """Return the ClientApp of clients that do not train.

    Args:
        sites: The simulation's sites.
        spec: Of the adapter that travels.
    """
    model, trainer = _AdapterAlone(spec, sites.config.model.name), _Noise(spec)

    def site(context: Context) -> Site:
        of_partition = sites.site(int(context.node_config["partition-id"]))
        return replace(of_partition, model=lambda: model, trainer=trainer.train)

    return build_client_app(site)


class _AdapterAlone(AdaptedModel):
    """An adapter without a base; it holds the arrays that were loaded last, and copies none."""

    def __init__(self, spec: AdapterSpec, name: str) -> None:
        self.spec = spec
        self.info = BaseModelInfo(
            name=name,
            hash="0" * 64,
            parameters=0,
            adapter_parameters=spec.parameters(),
            quantization="none",
            compute_dtype=spec.dtype,
            device="cpu",
            load_seconds=0.0,
        )
        self._rank = spec.shapes[spec.pairs[0][0]][0]
        self._loaded: Adapter = {}

    def load_adapter(self, adapter: Adapter) -> None:  # type: ignore[override]
        self._loaded = adapter

    def read_adapter(self, factors: Any = FACTORS) -> Adapter:
        return {name: self._loaded[name].copy() for name in self.spec.names(factors)}

    def set_rank(self, rank: int) -> None:
        if rank != self._rank:
            raise ValueError(f"clients that do not train have one rank, got {rank}")

    def set_side_car(self, tensors: Any) -> None:
        if tensors:
            raise ValueError("clients that do not train take no side-car")


class _Noise:
    """Updates cut from one block of noise, from a place that the seed says: drawing is work too."""

    def __init__(self, spec: AdapterSpec) -> None:
        self._spec = spec
        stream = np.random.Generator(np.random.PCG64(derive_seed("idle clients")))
        values = stream.standard_normal(2 * spec.parameters(), dtype=np.float32)
        self._noise = (_UPDATE_SCALE * values).astype(spec.dtype)

    def train(
        self, model: AdaptedModel, steps: Any, *, factors: tuple[Factor, ...], seed: int, **_: Any
    ) -> TrainingResult:
        at = seed % self._spec.parameters()
        tensors: Adapter = {}
        for name in self._spec.names(factors):
            shape = self._spec.shapes[name]
            size = shape[0] * shape[1]
            tensors[name] = self._noise[at : at + size].reshape(shape)
            at += size
        return TrainingResult(
            delta=Delta(tensors=tensors),
            adapter={},  # only methods that send something else than a delta ask for it
            examples=sum(map(len, steps)),
            tokens=0,
            response_tokens=0,
            steps=len(steps),
            loss_before=1.0,
            loss_after=1.0,
            seconds=0.0,
            peak_memory_mib=peak_memory_mib(),
            moments=None,
            mean_gradients={},
        )
