"""client.yaml: what is written is read back, whatever the names are, and what else stands there is named."""

from __future__ import annotations

import dataclasses
import os
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from support.asking import AskedSite

from fedtune.config.compose import compose
from fedtune.errors import FedtuneError, MachineError
from fedtune.site.settings import SETTINGS, here, load_settings, local_model, quoted, written
from fedtune.site.setup import initialise

TEXT = written(model="tiny", place=None)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)


def codes(text: str) -> list[str]:
    with pytest.raises(MachineError) as caught:
        SETTINGS.parse(text, where="client.yaml")
    for problem in caught.value.problems:
        assert all(part and "\n" not in part for part in (problem.what, problem.where, problem.fix))
        assert len(problem.what) < 400
    return [problem.code for problem in caught.value.problems]


def test_what_init_writes_is_read_with_the_documented_values() -> None:
    found = SETTINGS.parse(TEXT, where="client.yaml")
    assert found.models == {"tiny": None}
    assert (found.health, found.threads, found.node_port) == ("127.0.0.1:9465", None, None)


@given(NAMES, st.none() | NAMES)
def test_any_name_and_any_place_are_read_as_they_were_written(model: str, place: str | None) -> None:
    assert SETTINGS.parse(written(model=model, place=place), where="x").models == {model: place}


@given(NAMES)
def test_a_quoted_text_is_one_line_of_yaml(text: str) -> None:
    assert yaml.safe_load(quoted(text)) == text
    assert len(quoted(text).splitlines()) == 1


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("version: 1", "version: 2", ["FT682"]),
        ("device: auto", "device: tpu", ["FT682"]),
        ("\nthreads: null", "\nthreads: 0", ["FT682"]),
        ("\nthreads: null", "\nthreads: '4'", ["FT682"]),
        ("\nthreads: null", "\n", ["FT683"]),
        ("node_port: null", "node_port: 65536", ["FT682"]),
        ("health: 127.0.0.1:9465", "health: 0.0.0.0:9465", ["FT682"]),
        ("health: 127.0.0.1:9465", "health: example.org:9465", ["FT682"]),
        ("health: 127.0.0.1:9465", "health: 127.0.0.1:0", ["FT682"]),
        ("health: 127.0.0.1:9465", "health: '[::1]:9465'", []),
        ("health: 127.0.0.1:9465", "health: null", []),
        ("syslog: null", "syslog: logs", ["FT682"]),
        ("syslog: null", "syslog: null\nsyslog: null", ["FT680"]),
        ("log_mib: 100", "log_mib: 100\nlog_mb: 4", ["FT681"]),
        ("log_mib: 100", "log_mib: 100\nfoo.bar: 4", ["FT681"]),
        ('"tiny": null', '"tiny": 4', ["FT682"]),
        ('"tiny": null', "~: a\n  null: b", []),
        ('"tiny": null', "1e3: a", []),
        ('"tiny": null', '"": a', ["FT682"]),
        ('"tiny": null', "[a]: b", ["FT680"]),
    ],
)
def test_every_value_that_a_key_does_not_take_is_named(old: str, new: str, found: list[str]) -> None:
    assert TEXT.count(old) == 1
    text = TEXT.replace(old, new)
    if found:
        assert codes(text) == found
    else:
        SETTINGS.parse(text, where="x")


def test_keys_are_texts_as_they_stand() -> None:
    found = SETTINGS.parse(TEXT.replace('"tiny": null', "1e3: a\n  ~: b\n  0x10: c"), where="x")
    assert found.models == {"1e3": "a", "~": "b", "0x10": "c"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "4",
        "- a",
        "a: [",
        "a: !!int ''",
        "a: !!float ''",
        "a: !!bool x",
        "a: !!timestamp x",
        "a: !!binary x",
        "a: !!set {b}",
        "a: 2026-11-22",
        "a: !!python/object/apply:os.system [ls]",
        "a: " + "9" * 5000,
        "[" * 100_000,
        "{" * 100_000,
        "a: \x00",
        "--- 1\n--- 2",
        "a: &x [*x]",
        "a: &a [1]\nb: &b [*a, *a]\nc: [*b, *b]",
        "<<: {version: 1}",
        "? {a: b}\n: c",
    ],
)
def test_a_text_that_is_no_settings_is_refused_in_words(text: str) -> None:
    assert set(codes(text)) <= {"FT680", "FT681", "FT683"}


def test_lines_of_aliases_make_no_value_of_any_size() -> None:
    lines = ["a0: &a0 [x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    assert codes("\n".join(lines)) == ["FT680"]


MARKS = ("a", "version", "models", "null", "1", "~", "<<", ".", "#", "%", "\t", "\n", "  ", "'", '"', "---\n")
SIGNS = (": ", "- ", "? ", "[", "]", "{", "}", "|\n", ">\n", "!!int ", "!!str ", "!!set ", "&a ", "*a")
STRANGE = ("\ud800", "\u2028", "\ufeff", "\x00")
YAML_BITS = st.sampled_from((*MARKS, *SIGNS, *STRANGE))


@given(st.one_of(st.text(max_size=200), st.lists(YAML_BITS, max_size=30).map("".join)))
def test_any_text_is_settings_or_a_list_of_problems(text: str) -> None:
    with suppress(MachineError):
        SETTINGS.parse(text, where="x")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(sorted(SETTINGS.keys)), VALUES))
def test_any_values_are_taken_as_they_are_or_named(values: dict[str, object]) -> None:
    text = yaml.safe_dump(yaml.safe_load(TEXT) | values)
    try:
        SETTINGS.parse(text, where="x")
    except MachineError as error:
        named = {problem.where.partition("key ")[2].split(".")[0] for problem in error.problems}
        assert named <= {*values, ""}


def test_a_file_that_others_may_change_or_nobody_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "client.yaml"
    with pytest.raises(MachineError, match="FT680"):
        load_settings(path)
    path.write_text(TEXT)
    for mode in (0o620, 0o602, 0o666):
        path.chmod(mode)
        with pytest.raises(MachineError, match="by others"):
            load_settings(path)
    path.chmod(0o600)
    assert load_settings(path).version == 1
    path.write_bytes(TEXT.encode() + b"# \xff")
    with pytest.raises(MachineError, match="UTF-8"):
        load_settings(path)
    path.write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(MachineError, match="more than"):
        load_settings(path)


@pytest.mark.skipif(os.name != "posix", reason="a named pipe")
def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "client.yaml", 0o600)
    with pytest.raises(MachineError, match="FT680"):
        load_settings(tmp_path / "client.yaml")


# What a run's configuration is on this machine


def test_of_a_configuration_the_model_the_rows_the_folders_and_the_threads_are_the_sites_own() -> None:
    settings = SETTINGS.parse(TEXT.replace('"tiny": null', '"tiny": "/srv/model"'), where="x")
    asked = dataclasses.replace(compose(["name=run"]), runs_dir="/etc")
    asked = dataclasses.replace(asked, model=dataclasses.replace(asked.model, name="tiny", cache_dir="/etc"))
    found = here(asked, settings, files=("/srv/rows.jsonl",), runs_dir=Path("/srv/state"))
    assert (found.model.name, found.model.cache_dir, found.runs_dir) == ("/srv/model", None, "/srv/state")
    assert (found.data.source, found.data.files) == ("files", ("/srv/rows.jsonl",))
    assert found.training.threads == asked.training.threads
    four = dataclasses.replace(settings, threads=4)
    assert here(asked, four, files=(), runs_dir=Path()).training.threads == 4
    same = dataclasses.replace(found, model=asked.model, data=asked.data, runs_dir=asked.runs_dir)
    assert dataclasses.replace(same, training=asked.training) == asked


def test_a_model_that_is_not_named_is_not_looked_for() -> None:
    settings = SETTINGS.parse(TEXT, where="x")
    with pytest.raises(MachineError) as caught:
        local_model(compose(["name=run", "model.name=/etc"]).model, settings)
    assert caught.value.problems[0].code == "FT644"


# A new site's folder


def test_a_new_folder_is_its_owners_and_is_not_written_over(tmp_path: Path, tiny_model_dir: Path) -> None:
    site = AskedSite(root=tmp_path, model=tiny_model_dir)
    for path in (site.folder.policy, site.folder.settings, site.folder.audit_key, site.folder.node_key):
        assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FedtuneError, match="FT634"):
        AskedSite(root=tmp_path, model=tiny_model_dir)


@pytest.mark.parametrize(
    "changed", [{"site": "../ear"}, {"data": [Path("none.jsonl")]}, {"timezone": "Mars/Base"}, {"k_min": 1}]
)
def test_nothing_is_written_of_a_folder_that_would_be_wrong(
    tmp_path: Path, tiny_model_dir: Path, changed: dict[str, object]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}")
    values: dict[str, object] = {
        "site": "ear",
        "federation": "lungs",
        "coordinator": "-".join(["abcd"] * 8),
        "data": [rows],
        "model": str(tiny_model_dir),
    }
    with pytest.raises(FedtuneError):
        initialise(tmp_path / "ear", **(values | changed))  # type: ignore[arg-type]
    assert not list((tmp_path / "ear").glob("*"))


def test_names_that_yaml_would_read_otherwise_are_kept(tmp_path: Path, tiny_model_dir: Path) -> None:
    rows = tmp_path / 'rows: "#1" \\ é.jsonl'
    rows.write_text("{}")
    made = initialise(
        tmp_path / "ear",
        site="ear",
        federation="lungs",
        coordinator="ABCD " * 8,
        data=[rows],
        model="yes: no # model",
        place=str(tiny_model_dir),
    )
    assert load_settings(made.folder.settings).models == {"yes: no # model": str(tiny_model_dir)}
    policy = yaml.safe_load(made.folder.policy.read_text(encoding="utf-8"))
    assert policy["data"]["files"] == [str(rows)]
    assert policy["coordinators"] == {"lungs": "-".join(["abcd"] * 8)}
    assert policy["base_models"] == [made.base_model]
