"""A site's policy file: read strictly, every problem at once, and explained by a page that matches it."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fedtune.config.schema import Metric
from fedtune.errors import MachineError, Problem
from fedtune.secagg.entry import fingerprint
from fedtune.site.policy_file import POLICY, example_path, load_policy, parse_policy
from fedtune.site.policy_reference import reference_page
from fedtune.site.policy_schema import Hours, PrivacyBudget, SitePolicy

ROOT = Path(__file__).parents[2]
EXAMPLE = (ROOT / "client" / "site.example.yaml").read_text(encoding="utf-8")
VALUES: dict[str, Any] = yaml.safe_load(EXAMPLE.replace("20:00", '"20:00"'))
LEAVES = [name for name, key in POLICY.keys.items() if not (key.is_mapping or name.startswith("privacy."))]


def changed(**keys: Any) -> str:
    """The example with some keys (``peft__max_rank``) set to other values."""
    values = yaml.safe_load(yaml.safe_dump(VALUES))
    for name, value in keys.items():
        *sections, last = name.split("__")
        section = values
        for part in sections:
            section = section[part]
        section[last] = value
    return str(yaml.safe_dump(values))


def parsed(text: str) -> SitePolicy:
    return parse_policy(text, where="site.yaml")


def problems_of(text: str) -> tuple[Problem, ...]:
    with pytest.raises(MachineError) as caught:
        parsed(text)
    return caught.value.problems


def test_the_example_is_a_policy_and_is_where_the_site_looks_for_it() -> None:
    assert example_path() == ROOT / "client" / "site.example.yaml"
    policy = parsed(EXAMPLE)
    assert policy == parsed(changed())
    assert policy.hours == Hours(start="20:00", end="06:00")
    assert policy.limits.seconds_per_round == 7200


def test_every_key_of_the_example_has_a_comment_or_says_what_it_is() -> None:
    assert sum(line.lstrip().startswith("#") for line in EXAMPLE.splitlines()) >= 20


def test_the_page_is_what_the_command_writes() -> None:
    page = (ROOT / "docs" / "reference" / "site-policy.md").read_text(encoding="utf-8")
    # To renew it: python -m fedtune.site.policy_reference > docs/reference/site-policy.md
    assert page == reference_page()
    assert all(f"| `{name}` |" in page for name in POLICY.keys)
    assert all(key.description for key in POLICY.keys.values())


@pytest.mark.parametrize("name", LEAVES)
def test_a_key_that_is_missing_is_named_in_full(name: str) -> None:
    values = yaml.safe_load(changed())
    *sections, last = name.split(".")
    section = values
    for part in sections:
        section = section[part]
    del section[last]
    (problem,) = problems_of(yaml.safe_dump(values))
    assert problem.code == "FT823"
    assert problem.what == f"{name} has no value"
    assert problem.where == f"site.yaml, key {name}"
    assert problem.fix == f"set {name} to {POLICY.keys[name].values}"


@pytest.mark.parametrize("name", LEAVES)
def test_a_value_of_another_type_is_refused_with_the_values_that_are_taken(name: str) -> None:
    (problem,) = problems_of(changed(**{name.replace(".", "__"): {"a": [1]}}))
    assert problem.code == "FT822"
    assert name in problem.where
    assert POLICY.keys[name].values in problem.what


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("limits__rounds", "limits.rounds_per_day"),
        ("limits__round_per_day", "limits.rounds_per_day"),
        ("max_rank", "peft.max_rank"),
        ("limits__kmin", "secure_aggregation.k_min"),
        ("secureaggregation", "secure_aggregation"),
        ("hours__begin", None),
        ("peft__zzzz", None),
    ],
)
def test_an_unknown_key_is_refused_with_the_one_that_may_be_meant(name: str, meant: str | None) -> None:
    (problem,) = problems_of(changed(**{name: 1}))
    full = name.replace("__", ".")
    assert (problem.code, problem.what) == ("FT821", f"there is no key {full}")
    section = full.rpartition(".")[0]
    assert problem.fix.startswith(
        f"did you mean {meant}? It takes " if meant else f"the keys of {section} are "
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("version", 2),
        ("timezone", "Europe/Berln"),
        ("timezone", "/etc/passwd"),
        ("timezone", "Europe"),
        ("coordinators", {"x": "abcd"}),
        ("coordinators", {"x": "ABCD-efgh-ijkl-mnop-qrst-uvwx-yz23-4567"}),
        ("coordinators", {"": "abcd-efgh-ijkl-mnop-qrst-uvwx-yz23-4567"}),
        ("bundles", ["INSTALLED"]),
        ("bundles", ["a" * 63]),
        ("base_models", ["A" * 64]),
        ("base_models", ["installed"]),
        ("preapproved", ["ANY"]),
        ("preapproved", ["installed"]),
        ("preapproved", "any"),
        ("metrics", ["rows"]),
        ("hours__start", "24:00"),
        ("hours__start", 1200),
        ("hours__end", "6:00"),
        ("peft__methods", ["full"]),
        ("peft__max_rank", -1),
        ("peft__max_rank", "16"),
        ("peft__max_rank", True),
        ("data__files", ""),
        ("data__files", [""]),
        ("limits__memory_mib", float("inf")),
        ("limits__memory_mib", "lots"),
        ("secure_aggregation__required", "no"),
        ("secure_aggregation__required", 1),
        ("secure_aggregation__k_min", 2),
        ("secure_aggregation__max_clip_bound", 0),
        ("privacy", {"epsilon": 0.0, "delta": 0.5}),
        ("privacy", {"epsilon": 1.0, "delta": 1.0}),
    ],
)
def test_a_value_out_of_range_or_form_is_refused(name: str, value: Any) -> None:
    (problem,) = problems_of(changed(**{name: value}))
    assert problem.code == "FT822"
    assert name.replace("__", ".") in problem.where


def test_a_misspelled_zone_is_told_what_was_meant() -> None:
    assert problems_of(changed(timezone="Europe/Berln"))[0].fix == "did you mean Europe/Berlin?"


def test_every_problem_is_told_at_once() -> None:
    text = changed(timezone="Mars", limits__rounds=1, peft__max_rank=-1, metrics=["rows"]) + "peft: {}\n"
    codes = sorted(problem.code for problem in problems_of(text.replace("version: 1\n", "")))
    # `peft` stands twice, and what counts of it lacks both its keys.
    assert codes == ["FT820", "FT821", "FT822", "FT822", "FT823", "FT823", "FT823"]


def test_a_key_that_stands_twice_is_refused_with_its_line() -> None:
    text = EXAMPLE.replace("  k_min: 5\n", "  k_min: 5\n  k_min: 3\n")
    (problem,) = problems_of(text)
    line = text.splitlines().index("  k_min: 3") + 1
    assert (problem.code, problem.what) == ("FT820", "the key k_min stands twice")
    assert problem.where == f"site.yaml, line {line}"


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"hours": {"start": "08:00", "end": "08:00"}}, "hours.start, hours.end"),
        ({"data__sources": ["hpo"]}, "data.files, data.sources"),
    ],
)
def test_values_that_contradict_each_other_are_refused(keys: dict[str, Any], named: str) -> None:
    (problem,) = problems_of(changed(**keys))
    assert problem.code == "FT824"
    assert problem.where == f"site.yaml, keys {named}"


@pytest.mark.parametrize(
    "text",
    ["", "null", "[1]", "a: [", "3", "a: !!python/object:os.system {}", "? [1]\n: 2", "a: 1\n---\nb: 2"],
)
def test_what_is_no_mapping_of_keys_is_refused(text: str) -> None:
    assert problems_of(text)[0].code == "FT820"


def test_scalars_are_those_of_yaml_1_2() -> None:
    text = EXAMPLE.replace("privacy: null", "privacy: {epsilon: 8, delta: 1e-6}")
    text = text.replace("start: 20:00", "start: 12:30")
    policy = parsed(text)
    assert policy.privacy == PrivacyBudget(epsilon=8.0, delta=1e-6)
    assert policy.hours is not None
    assert policy.hours.start == "12:30", "YAML 1.1 would read 750"
    for octal_or_truth in ("peft:\n  methods: [lora]\n  max_rank: 010", "version: yes"):
        key = octal_or_truth.partition(":")[0]
        broken = EXAMPLE.replace(
            {"peft": "peft:\n  methods: [lora]\n  max_rank: 16", "version": "version: 1"}[key], octal_or_truth
        )
        assert broken != EXAMPLE
        assert problems_of(broken)[0].code == "FT822"


@given(st.text(max_size=60) | st.text("{}[]:,-?!&*#|>'\"% \n\tab01.~", max_size=60))
def test_no_text_does_anything_but_parse_or_be_refused(text: str) -> None:
    for whole in (text, f"{EXAMPLE}\n{text}"):
        with suppress(MachineError):
            parsed(whole)


def test_a_fingerprint_is_written_as_the_commands_print_it() -> None:
    shown = fingerprint(bytes(range(32)))
    assert parsed(changed(coordinators={"hub": shown})).coordinators == {"hub": shown}


def test_all_metrics_of_the_configuration_can_be_allowed() -> None:
    assert parsed(changed(metrics=list(get_args(Metric)))).metrics == get_args(Metric)


def test_a_file_is_read_with_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(EXAMPLE, encoding="utf-8")
    path.chmod(0o600)
    read = load_policy(path)
    assert read.policy == parsed(EXAMPLE)
    assert read.sha256 == hashlib.sha256(EXAMPLE.encode()).hexdigest()


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_can_change_is_no_policy(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(EXAMPLE, encoding="utf-8")
    path.chmod(mode)
    with pytest.raises(MachineError, match=f"FT820: the policy can be changed by others .*mode {mode:o}"):
        load_policy(path)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, "cannot be read: No such file"),
        (b"\xff", "is not UTF-8 at byte 0"),
        (b"#" * 2**21, "more than"),
    ],
)
def test_a_file_that_cannot_be_read_says_so(tmp_path: Path, content: bytes | None, what: str) -> None:
    path = tmp_path / "site.yaml"
    if content is not None:
        path.write_bytes(content)
        path.chmod(0o600)
    with pytest.raises(MachineError, match=f"FT820: the policy .*{what}"):
        load_policy(path)
