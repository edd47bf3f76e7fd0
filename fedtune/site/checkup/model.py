"""A base model at this site: whether it is there, what its hash is, and what training on it takes."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fedtune.config.schema import Config, ModelConfig
from fedtune.errors import ModelError, Problem
from fedtune.observability import wording
from fedtune.site.findings import Finding, failed, ok, warning
from fedtune.site.policy_schema import SitePolicy

if TYPE_CHECKING:
    from fedtune.models.estimate import Estimate

__all__ = ["BaseModel", "threads", "without_download"]

_MIB: Final = 2**20


def without_download(model: ModelConfig) -> ModelConfig:
    """The same model, found on this machine's disk: a Hugging Face id becomes the folder of its snapshot.

    Raises:
        ModelError: FT301, it is not on this machine, or only in part.
    """
    from huggingface_hub import snapshot_download  # noqa: PLC0415
    from huggingface_hub.errors import LocalEntryNotFoundError  # noqa: PLC0415

    name = model.name
    if name.startswith("package:") or name.endswith(".gguf") or Path(name).expanduser().exists():
        return model
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        return model  # a path, of which `resolve` says that it is not there
    try:
        folder = snapshot_download(name, local_files_only=True)
    except (LocalEntryNotFoundError, ValueError):
        raise ModelError(
            Problem(
                code="FT301",
                what=f"the base model {name} is not on this machine",
                where="models in client.yaml",
                fix=f"where there is a network, run `hf download {name} --local-dir FOLDER`, copy FOLDER "
                "here and give its place in client.yaml",
            )
        ) from None
    return dataclasses.replace(model, name=str(folder))


@dataclass(kw_only=True)
class BaseModel:
    """A base model, looked at check by check.

    Attributes:
        name: What the federation calls it.
        model: What it is called on this machine.
        config: A coordinator's configuration as it holds here; None where there is none.
        found: The model without any name to look up; None as long as it was not found.
        hash: What `fedtune.models.base.base_hash` gives, likewise.
        estimate: What training takes, likewise.
    """

    name: str
    model: ModelConfig
    config: Config | None
    found: ModelConfig | None = None
    hash: str | None = None
    estimate: Estimate | None = None

    def present(self) -> Finding:
        """Whether its files are on this machine; nothing is downloaded."""
        from fedtune.models.resolve import resolve  # noqa: PLC0415

        found = without_download(self.model)
        source = resolve(found)
        self.found = found
        files = [source.path] if source.kind == "gguf" else sorted(source.path.glob("*.safetensors"))
        size = sum(file.stat().st_size for file in files)
        return ok(f"{wording.bytes_(size)} of weights in {source.path}")

    def allowed(self, policy: SitePolicy | None) -> Finding:
        """Its hash, which takes a while for large files the first time, and whether the policy allows it."""
        from fedtune.models.base_hash import base_hash  # noqa: PLC0415

        if self.found is None:
            return _unknown()
        started = time.perf_counter()
        self.hash = base_hash(self.found)
        text = f"SHA-256 {self.hash}, computed in {time.perf_counter() - started:.1f} s"
        if policy is None:
            return warning(f"{text}; the policy could not be read", fix="mend site.yaml first")
        if self.hash in policy.base_models:
            return ok(f"{text}, which the policy allows")
        return failed(
            "FT854",
            f"{text}, is not among the policy's base_models",
            fix=f"if the site agrees to train this model, add {self.hash} to base_models in site.yaml; else "
            "give the place of an allowed one in client.yaml",
        )

    def memory(self, policy: SitePolicy | None) -> Finding:
        """Free memory against the estimate of training, or against the policy's limit without one."""
        import psutil  # noqa: PLC0415

        from fedtune.models.estimate import estimate  # noqa: PLC0415

        limit = policy.limits.memory_mib if policy is not None else None
        free = psutil.virtual_memory().available / _MIB
        if self.config is None:
            text = f"{free:,.0f} MiB free; what training takes depends on the configuration: --config FILE"
            if limit is not None and free < limit:
                return warning(
                    f"{text}; the policy allows {limit:,.0f} MiB",
                    fix="set limits.memory_mib to what this machine has to spare, or end other programs",
                )
            return ok(text)
        if self.found is None:
            return _unknown()
        self.estimate = found = estimate(dataclasses.replace(self.config, model=self.found))
        # What this process holds is free again when it has ended.
        free += found.libraries_mib
        text = f"{free:,.0f} MiB free, training is estimated to take {found.total_mib:,.0f} MiB"
        if limit is not None:
            text += f", the policy allows {limit:,.0f} MiB"
        if free < found.total_mib:
            return failed(
                "FT805",
                text,
                fix="end other programs, or ask the coordinator for training=low_memory or a smaller "
                "training.microbatch_tokens",
            )
        return ok(text)

    def tokenizer(self) -> Any:
        """Its tokenizer; None where model or configuration are unknown, or a GGUF file is unconverted."""
        from fedtune.models.base import read_tokenizer  # noqa: PLC0415
        from fedtune.models.cache import cache_folder  # noqa: PLC0415
        from fedtune.models.gguf import is_converted  # noqa: PLC0415
        from fedtune.models.resolve import resolve  # noqa: PLC0415

        if self.found is None or self.config is None:
            return None
        source = resolve(self.found)
        if source.kind == "gguf" and not is_converted(source.path, cache_folder(self.found)):
            return None
        return read_tokenizer(self.found)


def threads(asked: int | None) -> Finding:
    """How many threads train, against the cores that there are.

    Args:
        asked: What client.yaml says, else the configuration; None takes the physical cores.
    """
    from fedtune.models.hardware import physical_cores  # noqa: PLC0415

    cores = physical_cores()
    if asked is None:
        return ok(f"training takes the {cores} physical cores")
    if asked > cores:
        return warning(
            f"training would take {asked} threads, this machine has {cores} physical cores",
            fix=f"set threads in client.yaml to at most {cores}: more are slower",
        )
    return ok(f"training takes {asked} of {cores} physical cores")


def _unknown() -> Finding:
    return warning("not checked: the base model was not found", fix="mend what is said of the base model")
