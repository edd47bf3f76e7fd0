"""Secret sharing against the PyPI package `shamirs` as an independent implementation."""

from __future__ import annotations

import secrets

import pytest
import shamirs
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtune.secagg.shamir import PRIME, deal, reconstruct

field_elements = st.integers(0, PRIME - 1).map(lambda value: value.to_bytes(32, "big"))


@settings(max_examples=30, deadline=None)
@given(secret=field_elements, data=st.data())
def test_any_threshold_shares_give_the_secret_back(secret: bytes, data: st.DataObject) -> None:
    coordinates = data.draw(st.sets(st.integers(1, 1000), min_size=1, max_size=20))
    threshold = data.draw(st.integers(1, len(coordinates)))
    shares = deal(secret, threshold=threshold, coordinates=sorted(coordinates))
    chosen = data.draw(st.permutations(sorted(shares)))[:threshold]
    assert reconstruct({x: shares[x] for x in chosen}, threshold=threshold) == secret


@settings(max_examples=10, deadline=None)
@given(secret=st.integers(0, PRIME - 1))
def test_shamirs_reconstructs_what_we_deal(secret: int) -> None:
    dealt = deal(secret.to_bytes(32, "big"), threshold=4, coordinates=range(1, 8))
    theirs = [shamirs.share(x, int.from_bytes(dealt[x], "big"), PRIME) for x in (2, 3, 5, 7)]
    assert shamirs.interpolate(theirs) == secret


@settings(max_examples=10, deadline=None)
@given(secret=st.integers(0, PRIME - 1))
def test_we_reconstruct_what_shamirs_deals(secret: int) -> None:
    theirs = shamirs.shares(secret, quantity=7, modulus=PRIME, threshold=4)
    ours = {share.index: share.value.to_bytes(32, "big") for share in theirs[2:6]}
    assert reconstruct(ours, threshold=4) == secret.to_bytes(32, "big")


def test_fewer_shares_than_the_threshold_are_refused() -> None:
    secret = secrets.randbelow(PRIME)
    shares = deal(secret.to_bytes(32, "big"), threshold=3, coordinates=[1, 2])
    with pytest.raises(ValueError, match="3 shares are needed, got 2"):
        reconstruct(shares, threshold=3)


def test_the_polynomial_has_full_degree_and_fresh_coefficients() -> None:
    secret = secrets.randbelow(PRIME).to_bytes(32, "big")
    first = deal(secret, threshold=3, coordinates=[1, 2, 3, 4])
    second = deal(secret, threshold=3, coordinates=[1, 2, 3, 4])
    assert set(first.values()).isdisjoint(second.values())
    assert reconstruct({1: first[1], 2: first[2]}, threshold=2) != secret


def test_every_secret_explains_the_shares_that_fewer_than_the_threshold_hold() -> None:
    # Perfect secrecy: t - 1 shares and any guess of the secret (the value at 0) lie on one polynomial.
    # Over coordinates 1, 2 and a third point, each guess therefore gives a third share, all different.
    shares = deal(bytes(32), threshold=3, coordinates=[1, 2])
    thirds = set()
    for guess in range(50):
        # Value at 3 of the parabola through (0, guess), (1, s1), (2, s2).
        s1, s2 = (int.from_bytes(shares[x], "big") for x in (1, 2))
        third = (guess - 3 * s1 + 3 * s2) % PRIME
        full = {**shares, 3: third.to_bytes(32, "big")}
        assert reconstruct(full, threshold=3) == guess.to_bytes(32, "big")
        thirds.add(third)
    assert len(thirds) == 50


@pytest.mark.parametrize("coordinates", [[0, 1], [1, 1], [PRIME]])
def test_impossible_coordinates_are_refused(coordinates: list[int]) -> None:
    with pytest.raises(ValueError, match="coordinates"):
        deal(bytes(32), threshold=1, coordinates=coordinates)


def test_a_secret_outside_the_field_is_refused() -> None:
    with pytest.raises(ValueError, match="field"):
        deal(b"\xff" * 32, threshold=2, coordinates=[1, 2])
