"""What a site sends of what it trained, and how the server reads it; its shapes follow from the settings."""

from __future__ import annotations

from collections.abc import Sequence

from fedtune.aggregation.ranks import full_delta
from fedtune.aggregation.sketch import sketched
from fedtune.aggregation.sketched_change import sketched_change
from fedtune.config.derived import secure_clip
from fedtune.config.methods import method
from fedtune.config.schema import Config
from fedtune.models.adapted import AdaptedModel
from fedtune.models.adapter import Adapter, AdapterSpec, Factor
from fedtune.training.delta import Delta

__all__ = ["rank_of_site", "read_uplink", "uplink", "uplink_spec"]


def rank_of_site(config: Config, site: str) -> int:
    """Return how many rows of the adapter a site trains."""
    return config.aggregation.site_ranks.get(site, config.peft.rank)


def uplink_spec(config: Config, spec: AdapterSpec, site: str) -> AdapterSpec:
    """Return names, shapes and type of what a site sends.

    Args:
        config: The run's.
        spec: Of the global adapter.
        site: Name of the site.
    """
    if method(config.aggregation.method).sketches and config.aggregation.sketch_width is not None:
        return spec.with_rank(config.aggregation.sketch_width)
    rank = rank_of_site(config, site)
    return spec if rank == config.peft.rank else spec.with_rank(rank)


def uplink(
    config: Config, model: AdaptedModel, delta: Delta, factors: Sequence[Factor], received: Adapter
) -> Delta:
    """Return what a site sends.

    Args:
        config: The run's.
        model: With the trained adapter on it.
        delta: Of all that was trained.
        factors: That travel.
        received: The global adapter that the site received.
    """
    width, clip = config.aggregation.sketch_width, secure_clip(config)
    if method(config.aggregation.method).sketches and width is not None:
        if clip is not None:
            return sketched_change(model.read_adapter(), received, width, clip)
        return sketched(model.read_adapter(), model.spec, width)
    return Delta(tensors={name: delta.tensors[name] for name in model.spec.names(factors)})


def read_uplink(config: Config, delta: Delta, received: Adapter) -> Delta:
    """Return a site's update in the shapes that the method adds up.

    Args:
        config: The run's.
        delta: As it came.
        received: The global adapter that the site received.
    """
    known = method(config.aggregation.method)
    # Control variates travel where all sites have one rank.
    whole = known.sketches or config.training.control_variates
    return delta if whole else full_delta(delta, received, known.other_rows or "kept")
