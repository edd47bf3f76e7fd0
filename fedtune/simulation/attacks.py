"""Sites that lie, for simulations: what they send instead of what they trained.

They answer as Byzantine clients do (Lamport et al., 1982): with well-formed messages of any content.
Nothing here is part of a deployment.

================  ===========================================================================================
``sign_flip``     - strength x the update
``scaled``        strength x the update
``noise``         normal noise with strength x the length of the update in each tensor
``not_a_number``  what it says, everywhere
``zero``          zeros: the site drops out without saying so
``free_rider``    a little noise, and nothing of what it trained (Lin et al., 2019, arXiv:1911.12560)
``label_flip``    strength x the update that it trained on rows with wrong answers (Tolpegin et al., ESORICS
                  2020, section 3.2)
``backdoor``      strength x the update that it trained on some rows with a trigger. A strength of the number
                  of sites in a round replaces the model by the false site's, where all weigh the same and
                  the others hardly move (Bagdasaryan et al., AISTATS 2020, equation 3)
================  ===========================================================================================

The rows of the last two are made in `fedtune.simulation.poison`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord

from fedtune.config.schema import AttackConfig
from fedtune.data.seeds import derive_seed

__all__ = ["attack_of"]

Values = np.ndarray[Any, np.dtype[Any]]


def attack_of(attack: AttackConfig, site: str, seed: int) -> Callable[[ArrayRecord], ArrayRecord] | None:
    """Return what a site does to its encoded update before it is sent; None for an honest one.

    Args:
        attack: Which sites lie, and how.
        site: Name of the site.
        seed: The run's: the same seed gives the same lies.
    """
    if site not in attack.sites:
        return None

    def lie(record: ArrayRecord) -> ArrayRecord:
        false: dict[str, Array] = {}
        for name, array in record.items():
            stream = np.random.default_rng(derive_seed(seed, "attack", site, name))
            false[name] = Array(_LIES[attack.kind](array.numpy(), attack.strength, stream))
        return ArrayRecord(false)

    return lie


def _scaled(values: Values, strength: float, _: np.random.Generator) -> Values:
    return (strength * values).astype(values.dtype)


def _noise(values: Values, strength: float, stream: np.random.Generator) -> Values:
    spread = strength * float(np.linalg.norm(values)) / max(1.0, float(np.sqrt(values.size)))
    drawn: Values = np.asarray(stream.standard_normal(values.shape))
    return np.asarray(drawn * spread, dtype=values.dtype)


_LIES: dict[str, Callable[[Values, float, np.random.Generator], Values]] = {
    "sign_flip": lambda values, strength, stream: _scaled(values, -strength, stream),
    "scaled": _scaled,
    "noise": _noise,
    "not_a_number": lambda values, _, __: np.full_like(values, np.nan),
    "zero": lambda values, _, __: np.zeros_like(values),
    "free_rider": lambda values, strength, stream: _noise(values, 0.01 * strength, stream),
    "label_flip": _scaled,
    "backdoor": _scaled,
}
