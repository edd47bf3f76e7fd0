"""A finished run, opened for reading: its configuration, its adapter, its model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fedtune.config.methods import method
from fedtune.config.schema import Config
from fedtune.config.wire import config_from_yaml
from fedtune.errors import Problem, RunError
from fedtune.observability.run_directory import events_path

if TYPE_CHECKING:
    from fedtune.models.adapted import AdaptedModel
    from fedtune.models.adapter import Adapter

__all__ = ["OpenRun", "find_run", "open_run"]


@dataclass(frozen=True, kw_only=True)
class OpenRun:
    """A run directory to read from.

    Attributes:
        path: The folder.
        config: The configuration it was made with.
    """

    path: Path
    config: Config

    def adapter_dir(self) -> Path:
        """The adapter in PEFT format.

        Raises:
            RunError: FT730, the run did not get as far as an adapter; FT733, each site has its own.
        """
        if method(self.config.aggregation.method).kept:
            raise RunError(
                Problem(
                    code="FT733",
                    what=f"this run has no one model: under {self.config.aggregation.method} "
                    "each site has its own",
                    where=str(self.path),
                    fix=f"take a site's own adapter in PEFT format, a folder under {self.path / 'personal'}",
                )
            )
        folder = self.path / "adapter"
        if not (folder / "adapter_model.safetensors").is_file():
            raise RunError(
                Problem(
                    code="FT730",
                    what="this run has no adapter yet: it was not completed",
                    where=str(folder),
                    fix=f"complete it: fedtune simulate … name={self.config.name} resume=true",
                )
            )
        return folder

    def adapter(self) -> Adapter:
        """The federated adapter's tensors.

        Raises:
            RunError: FT730, there is none; FT731, its file is damaged.
        """
        from safetensors import SafetensorError  # noqa: PLC0415
        from safetensors.numpy import load_file  # noqa: PLC0415

        path = self.adapter_dir() / "adapter_model.safetensors"
        try:
            return dict(load_file(path))
        except (SafetensorError, OSError) as error:
            raise RunError(
                Problem(
                    code="FT731",
                    what=f"the adapter cannot be read: {error}",
                    where=str(path),
                    fix=f"write it again: fedtune simulate … name={self.config.name} resume=true",
                )
            ) from error

    def model(self, *, rank: int | None = None) -> AdaptedModel:
        """The base model with an adapter on it that still holds nothing; takes seconds.

        Args:
            rank: Of the adapter, if another than the configured one: a run's side-car is part of its adapter.
        """
        from fedtune.models.adapted import load_adapted_model  # noqa: PLC0415

        # A run's own adapter is LoRA, whatever was trained.
        peft = replace(self.config.peft, method="lora")
        model = load_adapted_model(self.config.model, peft, gradient_checkpointing=False)
        if rank is not None:
            model.set_rank(rank)
        return model


def find_run(text: str) -> Path:
    """The folder of a run that is given as a path, or as a name under ``runs``.

    Raises:
        RunError: FT706, there is no run.
    """
    path = Path(text)
    if not path.exists() and (Path("runs") / text).is_dir():
        path = Path("runs") / text
    events_path(path)
    return path


def open_run(text: str) -> OpenRun:
    """Open a run for reading; nothing is locked, so a run that goes on can be looked at.

    Args:
        text: The folder of a run, or the name of one under ``runs``.

    Raises:
        RunError: FT706, there is no run; FT732, its configuration cannot be read.
        ConfigError: FT107, its configuration is damaged.
    """
    path = find_run(text)
    file = path / "config.yaml"
    try:
        written = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(
            Problem(
                code="FT732",
                what=f"the configuration of the run cannot be read: {error}",
                where=str(file),
                fix="restore config.yaml from a copy of the run",
            )
        ) from error
    return OpenRun(path=path, config=config_from_yaml(written, where=str(file)))
