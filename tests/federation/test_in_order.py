"""Whatever the order of arrival, the order of the names; and nothing is held without a reason."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fedtune.federation.in_order import InOrder

names = st.lists(st.text("abcdef", min_size=1, max_size=3), unique=True, min_size=1, max_size=8)


@given(names, st.randoms(use_true_random=False), st.data())
def test_what_comes_is_passed_on_once_by_name(expected: list[str], random: Any, data: st.DataObject) -> None:
    coming = data.draw(st.lists(st.sampled_from(expected), unique=True))
    random.shuffle(coming)
    gone, passed = set(expected) - set(coming), list[tuple[str, str]]()
    told = data.draw(st.sampled_from([gone, set()]))
    in_order = InOrder[str](lambda name, thing: passed.append((name, thing)))
    in_order.expect(expected)
    for name in coming:
        in_order.arrived(name, f"of {name}", gone=told)
    if told == gone and coming:
        assert len(passed) == len(coming), "nothing waits for what will not come"
    in_order.finish()
    assert passed == [(name, f"of {name}") for name in sorted(coming)]


def test_what_comes_in_order_is_not_held() -> None:
    passed: list[str] = []
    in_order = InOrder[int](lambda name, _: passed.append(name))
    in_order.expect(["b", "a", "c"])
    for number, name in enumerate("abc", start=1):
        in_order.arrived(name, number)
        assert len(passed) == number


def test_what_is_held_waits_for_another_attempt_and_what_is_new_comes_last() -> None:
    passed: list[str] = []
    in_order = InOrder[int](lambda name, _: passed.append(name))
    in_order.expect("bcd")
    in_order.arrived("b", 1)
    in_order.arrived("d", 2)
    assert passed == ["b"], "c may still come"
    in_order.expect("abd")
    in_order.arrived("a", 3)
    assert passed == ["b", "a", "d"]
    in_order.finish()
    assert passed == ["b", "a", "d"]
