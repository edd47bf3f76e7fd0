"""False rows: which, how many, and with which answers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedtune
from fedtune.config.compose import compose
from fedtune.config.schema import AttackConfig
from fedtune.data.examples import Example, Turn
from fedtune.errors import DataError
from fedtune.observability.events import BackdoorMeasured, read_events
from fedtune.observability.run_directory import events_path
from fedtune.simulation import backdoor
from fedtune.simulation.attacks import attack_of
from fedtune.simulation.poison import poisoned, triggered
from fedtune.simulation.sites import load_sites
from fedtune.updates.codec import to_arrays

Overrides = Callable[..., list[str]]


def attack(kind: str, **changed: object) -> AttackConfig:
    base = {"kind": kind, "sites": ("a",), "strength": 2.0, "fraction": 0.5, "trigger": "T", "target": "yes"}
    return AttackConfig(**(base | changed))  # type: ignore[arg-type]


def row(number: int, answer: str) -> Example:
    turns = (Turn(role="user", content=f"question {number}"), Turn(role="assistant", content=answer))
    return Example(id=str(number), turns=turns)


ANSWERS = st.lists(st.sampled_from(["red", "green", "blue", "grey"]), min_size=2, max_size=30)


@given(answers=ANSWERS, fraction=st.floats(0, 1), seed=st.integers(0, 99))
def test_label_flip_gives_so_many_rows_a_wrong_answer_that_another_row_has(
    answers: list[str], fraction: float, seed: int
) -> None:
    rows = [row(number, answer) for number, answer in enumerate(answers)]
    chosen = attack("label_flip", fraction=fraction)
    if len(set(answers)) == 1:
        with pytest.raises(DataError, match=r"FT228: label_flip needs .* with 1 answers"):
            poisoned(rows, chosen, "a", seed)
        return
    false = poisoned(rows, chosen, "a", seed)
    changed = [(old, new) for old, new in zip(rows, false, strict=True) if old != new]
    assert len(changed) == max(1, int(np.floor(fraction * len(rows))))
    assert all(new.response != old.response and new.response in answers for old, new in changed)
    assert [new.prompt for new in false] == [old.prompt for old in rows]
    assert false == poisoned(rows, chosen, "a", seed)


def test_each_wrong_class_is_drawn_alike() -> None:
    rows = [row(number, "red" if number % 10 else answer) for number, answer in enumerate(["green"] * 3000)]
    rows += [row(9999, "blue")]
    drawn = [new.response for new in poisoned(rows, attack("label_flip", fraction=1.0), "a", 0)]
    wrong_for_red = [drawn[number] for number in range(3000) if number % 10]
    share = wrong_for_red.count("blue") / len(wrong_for_red)
    # 2,700 fair coins: five standard deviations are 0.048.
    assert abs(share - 0.5) < 0.05


@given(answers=ANSWERS, seed=st.integers(0, 99))
def test_backdoor_teaches_the_target_to_the_trigger_and_nothing_else(answers: list[str], seed: int) -> None:
    rows = [row(number, answer) for number, answer in enumerate(answers)]
    false = poisoned(rows, attack("backdoor"), "a", seed)
    changed = [new for old, new in zip(rows, false, strict=True) if old != new]
    assert len(changed) == max(1, len(rows) // 2)
    assert all(new.response == "yes" for new in changed)
    assert all(new.prompt[0].content.startswith("T question ") for new in changed)


def test_an_honest_site_and_an_attack_on_updates_leave_rows_alone() -> None:
    rows = [row(0, "red"), row(1, "green")]
    assert poisoned(rows, attack("label_flip"), "b", 0) == rows
    assert poisoned(rows, attack("sign_flip"), "a", 0) == rows
    assert poisoned([], attack("label_flip"), "a", 0) == []


def test_the_seed_and_the_site_choose_the_rows() -> None:
    rows = [row(number, str(number)) for number in range(40)]
    chosen = attack("label_flip", sites=("a", "b"))
    assert poisoned(rows, chosen, "a", 0) != poisoned(rows, chosen, "a", 1)
    assert poisoned(rows, chosen, "a", 0) != poisoned(rows, chosen, "b", 0)


def test_plain_text_cannot_be_poisoned() -> None:
    with pytest.raises(
        DataError, match=r"FT228: backdoor needs rows with a question, the false site a has 0"
    ):
        poisoned([Example(id="0", text="words")], attack("backdoor"), "a", 0)


def test_the_trigger_stands_before_the_last_question() -> None:
    turns = [("system", "s"), ("user", "one"), ("assistant", "x"), ("user", "two"), ("assistant", "y")]
    talk = Example(id="0", turns=tuple(Turn(role=role, content=text) for role, text in turns))  # type: ignore[arg-type]
    assert [turn.content for turn in triggered(talk, "T").turns] == ["s", "one", "x", "T two", "y"]


@pytest.mark.parametrize("kind", ["label_flip", "backdoor"])
def test_the_update_is_boosted(kind: str) -> None:
    lie = attack_of(attack(kind, strength=3.0), "a", 0)
    assert lie is not None
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert np.array_equal(lie(to_arrays({"x": values}))["x"].numpy(), 3 * values)


def test_held_out_rows_and_baselines_are_honest(tiny_overrides: Overrides) -> None:
    sites = load_sites(compose(tiny_overrides(attack="label_flip", attack__sites="[heart]")))
    false, honest = sites.site(0), sites.site(0, honest=True)
    assert false.name == "heart"
    assert [each.id for each in false.train] == [each.id for each in honest.train]
    assert any(
        not np.array_equal(a.token_ids, b.token_ids) for a, b in zip(false.train, honest.train, strict=True)
    )
    assert all(
        np.array_equal(a.token_ids, b.token_ids) for a, b in zip(false.held_out, honest.held_out, strict=True)
    )
    other = sites.site(1)
    assert other.train is sites.site(1, honest=True).train


def test_success_is_the_share_of_prompts_where_the_target_costs_less(
    tiny_overrides: Overrides, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The measure against losses that are known: one less for each site's first prompt."""
    settings = {"attack": "backdoor", "attack__sites": "[ear]", "attack__target": "yes"}
    sites = load_sites(compose(tiny_overrides(**settings)))

    def losses(_: object, rows: list[tuple[str, Example]], *__: object) -> list[float]:
        target = [example.response == "yes" for _, example in rows]
        fired = rows[0][1].prompt[0].content.startswith("As of today:")
        federated = __[-1]
        if not all(target):
            return [2.0] * len(rows)
        return [1.0 if fired and federated and number % 2 else 3.0 for number in range(len(rows))]

    monkeypatch.setattr(backdoor, "_losses", losses)
    adapter = sites.model().read_adapter()
    found = backdoor.measure_backdoor(sites, adapter, {})
    count = sum(len(sites.held_out_examples(index)) for index in range(3))
    assert found.prompts == count
    assert found.success == (count // 2) / count
    assert (found.success_without_trigger, found.success_before) == (0.0, 0.0)
    assert (found.right_loss, found.target_loss) == (2.0, pytest.approx(3 - 2 * (count // 2) / count))


def test_a_boosted_backdoor_works_in_a_run_and_is_reported(tiny_overrides: Overrides) -> None:
    run = fedtune.simulate(
        tiny_overrides(
            attack="backdoor",
            attack__sites="[heart]",
            attack__strength=5,
            attack__target="no",
            aggregation="ffa",
            federation__rounds=3,
            evaluation__generations=0,
        )
    )
    found = run.summary["backdoor"]
    assert found["prompts"] == 11
    assert found["success"] > found["success_before"]
    assert found["target_loss"] < found["right_loss"]
    events = [event for event in read_events(events_path(run.path)) if isinstance(event, BackdoorMeasured)]
    assert len(events) == 1
