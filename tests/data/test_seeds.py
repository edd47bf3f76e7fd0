from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtune.data.seeds import derive_seed

PART = st.one_of(st.text(), st.integers())


def test_a_seed_is_the_first_63_bits_of_the_documented_hash() -> None:
    expected = int(hashlib.sha256(b"i1:7s7:adapters3:q.A").hexdigest()[:16], 16) // 2
    assert derive_seed(7, "adapter", "q.A") == expected


@given(st.lists(PART, min_size=1, max_size=4), st.lists(PART, min_size=1, max_size=4))
def test_different_parts_give_different_seeds(left: list[str | int], right: list[str | int]) -> None:
    same = [(type(p), p) for p in left] == [(type(p), p) for p in right]
    assert (derive_seed(*left) == derive_seed(*right)) == same


@given(st.lists(PART, min_size=1, max_size=4))
def test_a_seed_fits_a_signed_64_bit_integer(parts: list[str | int]) -> None:
    assert 0 <= derive_seed(*parts) < 2**63


def test_parts_that_run_together_or_change_type_do_not_collide() -> None:
    assert len({derive_seed("ab", "c"), derive_seed("a", "bc"), derive_seed("abc")}) == 3
    assert derive_seed(1) != derive_seed("1")


@pytest.mark.parametrize("parts", [(True,), (1.5,), (None,), (b"x",)])
def test_a_part_of_another_type_is_refused(parts: tuple[object, ...]) -> None:
    with pytest.raises(TypeError, match="strings and integers"):
        derive_seed(*parts)  # type: ignore[arg-type]


def test_no_parts_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one part"):
        derive_seed()
