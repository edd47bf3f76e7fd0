"""Shamir's secret sharing over the prime field of p = 2^256 − 189.

Shamir 1979 (CACM 22(11), "How to share a secret"). The field is the largest below 2^256, so a 32-byte key
is one element. Interpolation inverts all denominators with one exponentiation (Montgomery's trick), and
evaluation reduces late: Python's integers multiply by a small coordinate much faster than they divide.
"""

from __future__ import annotations

import functools
import secrets
from collections.abc import Mapping, Sequence
from typing import Final

__all__ = ["PRIME", "SHARE_BYTES", "deal", "reconstruct"]

PRIME: Final = 2**256 - 189
SHARE_BYTES: Final = 32
_LAZY_STEPS: Final = 16


def deal(secret: bytes, *, threshold: int, coordinates: Sequence[int]) -> dict[int, bytes]:
    """Shares (32 bytes each) of a 32-byte secret, any `threshold` of which give it back.

    Args:
        secret: 32 bytes whose big-endian value is below PRIME.
        threshold: Number of shares that reconstruct; the polynomial has degree threshold − 1.
        coordinates: Distinct points in [1, p); `threshold` may exceed their number, and then nobody
            can ever reconstruct.

    Raises:
        ValueError: The secret is not a field element, or a coordinate is 0 or occurs twice.
    """
    value = int.from_bytes(secret, "big")
    if len(secret) != SHARE_BYTES or value >= PRIME:
        raise ValueError("the secret is not an element of the field")
    if (
        threshold < 1
        or len(set(coordinates)) != len(coordinates)
        or any(not 0 < x < PRIME for x in coordinates)
    ):
        raise ValueError("coordinates are distinct and not 0, and the threshold is at least 1")
    highest_first = [secrets.randbelow(PRIME) for _ in range(threshold - 1)] + [value]
    shares = {}
    for x in coordinates:
        total = 0
        for step, coefficient in enumerate(highest_first):
            total = total * x + coefficient
            if step % _LAZY_STEPS == 0:
                total %= PRIME
        shares[x] = (total % PRIME).to_bytes(SHARE_BYTES, "big")
    return shares


@functools.lru_cache(maxsize=64)
def _weights_at_zero(points: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange coefficients at 0: product over m ≠ j of x_m / (x_m − x_j), all in one inversion.

    Cached, because the same survivors usually reconstruct many secrets.
    """
    denominators = []
    everything = 1
    for x in points:
        everything = everything * x % PRIME
    for j, x_j in enumerate(points):
        product = x_j  # divides x_j out of `everything`, the numerator that all share
        for m, x_m in enumerate(points):
            if m != j:
                product *= x_m - x_j
                if m % _LAZY_STEPS == 0:
                    product %= PRIME
        denominators.append(product % PRIME)
    prefixes = [1]
    for value in denominators:
        prefixes.append(prefixes[-1] * value % PRIME)
    inverse = pow(prefixes[-1], -1, PRIME)
    weights = [0] * len(points)
    for j in range(len(points) - 1, -1, -1):
        weights[j] = everything * prefixes[j] % PRIME * inverse % PRIME
        inverse = inverse * denominators[j] % PRIME
    return tuple(weights)


def reconstruct(shares: Mapping[int, bytes], *, threshold: int) -> bytes:
    """The 32-byte secret from at least `threshold` shares, by coordinate.

    The `threshold` lowest coordinates are used. A wrong share gives a wrong secret, not an error: the
    caller checks the result against a public key or a commitment.

    Raises:
        ValueError: There are fewer than `threshold` shares.
    """
    if len(shares) < threshold:
        raise ValueError(f"{threshold} shares are needed, got {len(shares)}")
    points = tuple(sorted(shares))[:threshold]
    value = sum(
        weight * int.from_bytes(shares[x], "big")
        for x, weight in zip(points, _weights_at_zero(points), strict=True)
    )
    return (value % PRIME).to_bytes(SHARE_BYTES, "big")
