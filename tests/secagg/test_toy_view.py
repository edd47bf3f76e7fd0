"""What the adversary sees reveals the sum and nothing else, shown exhaustively on a toy instance.

Four clients over Z_4, one of them (client 3) colluding with the server; masks are truly random elements of
Z_4 and sharing is ideal: the adversary gets exactly the secrets that the protocol opens. For each choice of
honest inputs, every assignment of the honest clients' masks is enumerated and the distribution of the view
is tabulated; inputs with equal honest sums must give equal tables, value for value.

The masking rule and its signs are the package's own (`pair_sign`, and which secrets R4 opens).
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fedtune.secagg.masks import pair_sign

CLIENTS = 4
COLLUDER = 3
HONEST = (0, 1, 2)
PAIRS = tuple(itertools.combinations(range(CLIENTS), 2))
MODULUS = 4


def all_masks() -> tuple[np.ndarray, dict[tuple[int, int], np.ndarray]]:
    """Every assignment of the honest b's and of the pair masks: 4^3 x 4^6 columns, b's first."""
    free = len(HONEST) + len(PAIRS)
    grid = np.array(list(itertools.product(range(MODULUS), repeat=free)), dtype=np.uint8)
    return grid[:, : len(HONEST)], {pair: grid[:, len(HONEST) + at] for at, pair in enumerate(PAIRS)}


B, PAIR_MASKS = all_masks()


def masked(inputs: tuple[int, ...], client: int, u2: tuple[int, ...]) -> np.ndarray:
    """y of an honest client for every assignment of masks."""
    total = inputs[client] + B[:, client].astype(int)
    for peer in u2:
        if peer != client:
            pair = (min(client, peer), max(client, peer))
            total = total + pair_sign(client, peer) * PAIR_MASKS[pair].astype(int)
    return total % MODULUS


def view(inputs: tuple[int, ...], u2: tuple[int, ...], u3: tuple[int, ...], *, late: bool) -> np.ndarray:
    """Distribution of everything that the server and client 3 see: one code for each assignment, sorted.

    Args:
        inputs: Of the honest clients.
        u2: Who dealt shares.
        u3: Whose vectors arrived.
        late: Whether vectors of U2 without U3 reach the server after all.
    """
    seen = [masked(inputs, client, u2) for client in HONEST if client in (u2 if late else u3)]
    seen += [B[:, client] for client in HONEST if client in u3]
    gone = set(u2) - set(u3)
    seen += [
        mask for pair, mask in PAIR_MASKS.items() if COLLUDER in pair or gone.intersection(pair)
    ]  # the colluder's own masks, and all masks of the dropped, whose keys are rebuilt
    codes = np.zeros(len(B), dtype=np.int32)
    for column in seen:
        codes = codes * MODULUS + column.astype(np.int32)
    return np.sort(codes)


CASES = {
    "everyone": ((0, 1, 2, 3), (0, 1, 2, 3), False),
    "one dropped before masking": ((0, 1, 3), (0, 1, 3), False),
    "one dropped after sharing": ((0, 1, 2, 3), (0, 1, 3), False),
    "one dropped, its vector late": ((0, 1, 2, 3), (0, 1, 3), True),
    "the colluder dropped": ((0, 1, 2, 3), (0, 1, 2), False),
}


@pytest.mark.parametrize("case", CASES)
def test_equal_sums_give_the_same_distribution_of_views(case: str) -> None:
    u2, u3, late = CASES[case]
    in_sum = [client for client in HONEST if client in u3]
    tables: dict[int, np.ndarray] = {}
    for inputs in itertools.product(range(MODULUS), repeat=len(HONEST)):
        total = sum(inputs[client] for client in in_sum) % MODULUS
        seen = view(inputs, u2, u3, late=late)
        same = np.array_equal(tables.setdefault(total, seen), seen)
        assert same, f"inputs {inputs} are told apart from others of sum {total}"
    # The sum itself is learnt, or the protocol would be useless.
    assert len(tables) == MODULUS
    for one, other in itertools.combinations(tables.values(), 2):
        assert np.intersect1d(one, other).size == 0


def test_opening_both_secrets_of_one_client_would_reveal_its_input() -> None:
    """Why R4 never gives b-shares and key-shares of the same member: the toy shows the leak."""

    def leaky(inputs: tuple[int, ...]) -> np.ndarray:
        y = masked(inputs, 0, (0, 1, 2, 3)) - B[:, 0]
        for peer in (1, 2, 3):
            y = y - pair_sign(0, peer) * PAIR_MASKS[(0, peer)].astype(int)
        return y % MODULUS

    assert set(leaky((1, 2, 3))) == {1}
    assert set(leaky((2, 1, 3))) == {2}


def test_without_the_self_mask_a_late_vector_of_a_dropped_client_would_reveal_it() -> None:
    """Why every vector carries PRG(b) beside the pair masks (Bonawitz et al. 2017, section 4.0.2)."""
    y = masked((1, 0, 0), 0, (0, 1, 2, 3)) - B[:, 0]
    unmasked = y - sum(pair_sign(0, peer) * PAIR_MASKS[(0, peer)].astype(int) for peer in (1, 2, 3))
    assert set(unmasked % MODULUS) == {1}
