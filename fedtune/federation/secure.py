"""What both sides of a secure round compute for themselves, from the configuration and the roster alone.

The server cannot tell a site any of it: a site compares what an attempt is about with its own results.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json

from fedtune.aggregation.sketched_change import product_bounds
from fedtune.config.derived import clip_bound, is_fit, rounds_a_training, trained_factors
from fedtune.config.methods import method
from fedtune.config.schema import Config
from fedtune.federation.wire import TrainRequest
from fedtune.models.adapter import AdapterSpec, Factor
from fedtune.models.architecture import architecture
from fedtune.secagg.encoding import Encoding, greatest_levels
from fedtune.secagg.layout import tensor_bounds
from fedtune.secagg.policy import Policy
from fedtune.secagg.roster import Roster

__all__ = ["SERVER_STEP", "policy_of", "round_encoding", "training_hash"]

SERVER_STEP = 1.0
"""Factor on the mean update; the linear methods add the mean itself."""

_TRIPS = 5

_EXECUTION_ONLY = frozenset({"threads", "microbatch_tokens", "packing", "gradient_checkpointing"})
"""Training keys that change rounding and nothing else: with them, the same update would count as another."""


def policy_of(config: Config) -> Policy:
    """Return the conditions that a configuration states."""
    secagg, round_seconds = config.secagg, config.federation.round_timeout_seconds
    trips = _TRIPS * secagg.trip_timeout_seconds
    return Policy(
        k_min=secagg.k_min,
        max_colluders=secagg.max_colluders,
        groups=secagg.groups > 1,
        # The first to finish waits for the last: keys and update live as long as a round may take.
        attempt_seconds=round_seconds + trips,
        hold_seconds=round_seconds + secagg.attempts * trips,
    )


def round_encoding(
    config: Config, spec: AdapterSpec, factors: tuple[Factor, ...], roster: Roster
) -> Encoding:
    """Return the rules by which this round's updates become integers.

    Entries are clipped to the clip bound; those of sketches to the bound of the layer's product, which sites
    keep to anyway (`fedtune.aggregation.sketched_change`).

    Levels are as fine as a sum over the whole roster allows. Weights are 1, or, with
    ``aggregation.weighting=examples``, the powers of two that members declare in the roster.

    Raises:
        SecureAggregationError: FT914 to FT916, a round that cannot be encoded.
    """
    members = len(roster.entries)
    weighted = config.aggregation.weighting == "examples"
    vocabulary = architecture(config.model).get_text_config().vocab_size
    clip, width = clip_bound(config), config.aggregation.sketch_width
    bounds: float | dict[str, float] = clip
    if method(config.aggregation.method).sketches and width is not None:
        bounds = {name: bound for pair, bound in product_bounds(spec.shapes, clip).items() for name in pair}
        spec = spec.with_rank(width)
    return Encoding(
        tensors=tensor_bounds(
            {name: spec.shapes[name] for name in spec.names(factors)}, bounds, vocabulary=vocabulary
        ),
        ring_bits=config.secagg.ring_bits,
        levels=greatest_levels(config.secagg.ring_bits, members),
        max_cohort=members,
        max_weight=max(entry.weight for entry in roster.entries) if weighted else 1,
    )


def training_hash(config: Config, request: TrainRequest) -> bytes:
    """H(configuration that shapes training), 32 bytes: equal where two updates would be the same.

    The number of the round is no part of it, nor what changes rounding alone. Where a training is sent in two
    rounds, it counts as one update of all that it trained.
    """
    fits = is_fit(config, request.round)
    whole = rounds_a_training(config) > 1 and not fits
    training = {
        key: value for key, value in dataclasses.asdict(config.training).items() if key not in _EXECUTION_ONLY
    }
    shaping = {
        "training": training,
        "peft": dataclasses.asdict(config.peft),
        "seed": config.seed,
        "factors": sorted(trained_factors(config, request.factors)) if whole else request.factors,
        "first_step": request.first_step,
        "total_steps": request.total_steps,
    } | ({"fits": True} if fits else {})
    return hashlib.sha256(json.dumps(shaping, sort_keys=True, separators=(",", ":")).encode()).digest()
