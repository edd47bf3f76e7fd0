"""What is enrolled and what the SuperLink lets in are kept the same, and nothing else is touched."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_control import FakeControl

from fedtune.coordinator.nodes import enrolled_keys, read_names, synchronise
from fedtune.errors import RunError
from fedtune.keys.private import new_key, node_public_line

SITES = ("ear", "eye", "heart", "skin")


@cache
def line(name: str) -> bytes:
    return node_public_line(new_key().public_key(), name)


def enrol(folder: Path, lines: Mapping[str, bytes]) -> None:
    folder.mkdir(exist_ok=True)
    for path in folder.glob("*.pub"):
        path.unlink()
    for name, content in lines.items():
        (folder / f"{name}.pub").write_bytes(content)


def follow(folder: Path, control: FakeControl) -> dict[str, int]:
    keys = enrolled_keys(folder / "nodes")
    found = synchronise(control, keys, folder / "nodes.json")  # type: ignore[arg-type]
    return {each.site: each.node.node_id for each in found}


@settings(max_examples=40, deadline=None)
@given(steps=st.lists(st.frozensets(st.sampled_from(SITES)), max_size=6), data=st.data())
def test_the_superlink_lets_in_who_is_enrolled_whatever_happened_before(
    steps: list[frozenset[str]], data: st.DataObject
) -> None:
    control, keys_of = FakeControl(), dict.fromkeys(SITES, 0)
    with TemporaryDirectory() as name:
        folder = Path(name)
        before: dict[str, int] = {}
        for sites in steps:
            for site in sites - before.keys():
                keys_of[site] += 1  # a key that was removed is refused for ever
            enrol(folder / "nodes", {site: line(f"{site}{keys_of[site]}") for site in sites})
            control.calls.clear()
            now = follow(folder, control)
            assert now.keys() == sites
            assert {node.node_id for node in control.known.values()} == set(now.values())
            assert read_names(folder / "nodes.json") == {number: site for site, number in now.items()}
            assert {site: now[site] for site in sites & before.keys()} == {
                site: before[site] for site in sites & before.keys()
            }
            assert control.calls.count("register") == len(sites - before.keys())
            assert control.calls.count("unregister") == len(before.keys() - sites)
            before = now


@pytest.mark.parametrize("damage", [b"", b"ssh-rsa AAAA", b"\xff" * 99, line("ear0")[:40]])
def test_the_node_of_a_damaged_file_stays_as_it_was(tmp_path: Path, damage: bytes) -> None:
    control, lines = FakeControl(), {name: line(f"{name}0") for name in ("ear", "eye")}
    enrol(tmp_path / "nodes", lines)
    before = follow(tmp_path, control)
    enrol(tmp_path / "nodes", lines | {"ear": damage})
    assert list(enrolled_keys(tmp_path / "nodes").damaged) == ["ear"]
    assert follow(tmp_path, control) == before
    enrol(tmp_path / "nodes", lines)
    assert follow(tmp_path, control) == before
    assert control.burnt == set()


def test_a_key_that_the_superlink_refuses_blocks_nobody_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    control = FakeControl()
    enrol(tmp_path / "nodes", {"ear": line("ear0")})
    follow(tmp_path, control)
    enrol(tmp_path / "nodes", {})
    follow(tmp_path, control)
    enrol(tmp_path / "nodes", {"ear": line("ear0"), "eye": line("eye0")})
    assert list(follow(tmp_path, control)) == ["eye"]
    assert "ear: the SuperLink does not take its node key" in caplog.text


def test_a_node_with_a_key_of_another_kind_is_unregistered(tmp_path: Path) -> None:
    control = FakeControl()
    control.register(b"no key at all")
    enrol(tmp_path / "nodes", {"ear": line("ear0")})
    assert list(follow(tmp_path, control)) == ["ear"]
    assert len(control.known) == 1


@pytest.mark.parametrize("content", [b"", b"[]", b'{"a": "ear"}', b"\xff", b"[" * 100_000])
def test_a_damaged_record_of_names_is_named_and_written_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "nodes.json").write_bytes(content)
    with pytest.raises(RunError, match="FT666: the record of which node is whose is damaged"):
        read_names(tmp_path / "nodes.json")
    enrol(tmp_path / "nodes", {"ear": line("ear0")})
    now = follow(tmp_path, FakeControl())
    assert read_names(tmp_path / "nodes.json") == {now["ear"]: "ear"}


def test_before_the_server_has_written_it_there_are_no_names(tmp_path: Path) -> None:
    assert read_names(tmp_path / "nodes.json") == {}
