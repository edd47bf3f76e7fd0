"""Sites of different ranks: which rows a site trains, and what its delta means for the whole adapter.

The global adapter has the rank ``peft.rank``; a site of rank r_i trains the first r_i rows of A and columns
of B. Its scale is the federation's, s = alpha / rank, so its own alpha is s r_i: the same rows mean the
same at every site. (With one alpha for all, a site of a smaller rank would add alpha / r_i times its
product, and averaging factors would mix units.) What becomes of the other rows is the method's:

``kept``     they stand beside, frozen: the site computes with the whole global adapter and changes a part.
With one
             factor the same everywhere, as for ``ffa`` and ``alternating``, the mean of the products is
             exact.
``dropped``  they are not there: the site's product is that of its own rows, as in FlexLoRA and HetLoRA. A
row that few
             sites have is pulled towards zero by all others, each round again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from fedtune.models.adapter import Adapter, rank_axis
from fedtune.training.delta import Delta

__all__ = ["first_rows", "full_delta", "other_rows"]


def first_rows(adapter: Mapping[str, np.ndarray[Any, Any]], rank: int) -> Adapter:
    """Return the first rows of each A and columns of each B, as copies."""
    return {name: _part(name, tensor, slice(None, rank)).copy() for name, tensor in adapter.items()}


def other_rows(adapter: Mapping[str, np.ndarray[Any, Any]], rank: int) -> Adapter:
    """Return what `first_rows` leaves; empty where nothing is left."""
    rest = {name: _part(name, tensor, slice(rank, None)).copy() for name, tensor in adapter.items()}
    return {} if any(not tensor.size for tensor in rest.values()) else rest


def full_delta(delta: Delta, received: Adapter, rest: Literal["kept", "dropped"]) -> Delta:
    """Return a site's delta in the shapes of the global adapter.

    Args:
        delta: Of the first rows.
        received: The global adapter that the site received.
        rest: What the site did with the other rows. Kept, they did not change; dropped, they are zero at the
            site, so their change is ``-received``.
    """
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    for name, change in delta.tensors.items():
        whole = received[name]
        size = change.shape[rank_axis(name)]
        if size == whole.shape[rank_axis(name)]:
            tensors[name] = change
            continue
        tensors[name] = np.zeros_like(whole) if rest == "kept" else -whole
        _part(name, tensors[name], slice(None, size))[...] = change
    return Delta(tensors=tensors)


def _part(name: str, tensor: np.ndarray[Any, Any], rows: slice) -> np.ndarray[Any, Any]:
    return tensor[rows] if rank_axis(name) == 0 else tensor[:, rows]
