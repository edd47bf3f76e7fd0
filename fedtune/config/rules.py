"""Combinations that cannot work, refused before anything is loaded, each with its reason and the nearest
one that can.

A rule looks at values that are each allowed and says why they do not go together. What depends on the data
(a site with too few rows) or on the weights (a target that matches nothing) is checked where it is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import entry_points

from fedtune.config.aggregation_rules import AGGREGATION_RULES, Finding
from fedtune.config.derived import clients_in_a_round
from fedtune.config.keys import similar
from fedtune.config.local_rules import LOCAL_RULES
from fedtune.config.methods import METHODS, method
from fedtune.config.pace_rules import PACE_RULES
from fedtune.config.schema import Config
from fedtune.config.validate import shown
from fedtune.errors import ConfigError, Problem

__all__ = ["BUILT_IN", "combination_problems", "plugin_problems", "require_simulated"]

BUILT_IN = {
    "data.source": ("fedtune.datasets", ("hpo", "files", "site")),
    "partition.method": (
        "fedtune.partitioners",
        ("natural", "iid", "dirichlet", "quantity", "shards", "site"),
    ),
    "aggregation.method": ("fedtune.aggregators", tuple(METHODS)),
}
"""Key of a choice that plugins extend -> (entry-point group, names that fedtune brings)."""

COLUMN_ROLES = ("instruction", "input", "output", "prompt", "response", "messages", "text", "id")
"""What a column of a file can be, the keys of ``data.columns``."""


def combination_problems(config: Config) -> tuple[Problem, ...]:
    """Every impossible combination in ``config``; empty when there is none."""
    return tuple(
        Problem(code="FT105", what=what, where=where, fix=fix)
        for rule in _RULES
        for what, where, fix in rule(config)
    )


def plugin_problems(config: Config) -> tuple[Problem, ...]:
    """Names of datasets, partitioners and aggregators that are neither built in nor installed here.

    Not part of :func:`combination_problems`: a client need not have the coordinator's plugins.
    """
    chosen = {
        "data.source": config.data.source,
        "partition.method": config.partition.method,
        "aggregation.method": config.aggregation.method,
    }
    problems = []
    for key, name in chosen.items():
        group, built_in = BUILT_IN[key]
        known = (*built_in, *sorted(plugin.name for plugin in entry_points(group=group)))
        if name in known:
            continue
        meant = similar(name, known)
        problems.append(
            Problem(
                code="FT103",
                what=f"{key} is {shown(name)}, which is neither built in nor installed",
                where=key,
                fix=(f"did you mean {meant}? " if meant else "")
                + f"There are {', '.join(known)}; a package adds others under the entry point {group}",
            )
        )
    return tuple(problems)


def _arithmetic(config: Config) -> Iterator[Finding]:
    model = config.model
    if model.compute_dtype == "float64" and model.quantization != "none":
        yield (
            f"{model.quantization} weights cannot be used in float64: bitsandbytes dequantizes to 32 bits",
            "model.compute_dtype, model.quantization",
            "set model.quantization=none for float64, or model.compute_dtype=float32",
        )
    if model.compute_dtype == "float16" and model.device == "cpu":
        yield (
            "float16 on a CPU overflows in the backward pass, and there is no loss scaling",
            "model.compute_dtype, model.device",
            "set model.compute_dtype=auto, which takes float32 or bfloat16 by the CPU",
        )
    if model.compute_dtype == "float64" and config.training.optimizer == "adamw8bit":
        yield (
            "8-bit AdamW keeps no states for float64 adapters",
            "training.optimizer, model.compute_dtype",
            "set training.optimizer=adamw",
        )


def _data(config: Config) -> Iterator[Finding]:
    data = config.data
    if data.source == "files" and not data.files:
        yield (
            "data.source is files, but data.files is empty",
            "data.source, data.files",
            "name the files: data.files=[rows.jsonl,more.csv]",
        )
    if data.source != "files" and data.files:
        yield (
            f"data.files would be ignored: data.source is {data.source}",
            "data.source, data.files",
            "set data=files to train on them",
        )
    for role in data.columns:
        if role not in COLUMN_ROLES:
            meant = similar(role, COLUMN_ROLES)
            yield (
                f"data.columns renames {shown(role)}, which is no role of a column",
                "data.columns",
                (f"did you mean {meant}? " if meant else "") + "The roles are " + ", ".join(COLUMN_ROLES),
            )
    if data.held_out_fraction == 1 and data.held_out_max_rows > 0:
        yield (
            "data.held_out_fraction is 1: small sites would hold out every row and train on none",
            "data.held_out_fraction",
            "set data.held_out_fraction below 1, such as 0.05",
        )
    elif data.held_out_fraction >= 0.5 and data.held_out_max_rows > 0 and data.validation_max_rows > 0:
        yield (
            f"data.held_out_fraction is {data.held_out_fraction} and bounds held-out and validation rows "
            "alike: together they would be every row of a small site",
            "data.held_out_fraction, data.validation_max_rows",
            "set data.held_out_fraction below 0.5, or data.validation_max_rows=0",
        )
    if config.evaluation.rows == "validation" and data.validation_max_rows == 0:
        yield (
            "evaluation.rows is validation, but data.validation_max_rows is 0: nothing would be tested",
            "evaluation.rows, data.validation_max_rows",
            "set data.validation_max_rows=40, or evaluation.rows=held_out",
        )
    for key, budget in (
        ("training.microbatch_tokens", config.training.microbatch_tokens),
        ("evaluation.microbatch_tokens", config.evaluation.microbatch_tokens),
    ):
        if budget < data.max_tokens:
            yield (
                f"a row of data.max_tokens={data.max_tokens} does not fit into {key}={budget}",
                f"{key}, data.max_tokens",
                f"set {key}={data.max_tokens} or more, or data.max_tokens={budget} or less",
            )


def _partition(config: Config) -> Iterator[Finding]:
    partition = config.partition
    method = partition.method
    if method == "natural":
        if partition.column is None:
            yield (
                "partition.method is natural, but partition.column does not say which column names the site",
                "partition.method, partition.column",
                "set partition.column=NAME, or partition=iid",
            )
        if partition.clients is not None:
            yield (
                f"partition.clients is {partition.clients}, but natural makes one client for each value",
                "partition.method, partition.clients",
                "set partition.clients=null; choose sites with partition.values=[…]",
            )
        if len(set(partition.values)) < len(partition.values):
            yield (
                "partition.values names a site twice: its rows would be shared out twice",
                "partition.values",
                "name each site once",
            )
        return
    if method == "site" or method not in BUILT_IN["partition.method"][1]:
        return
    if partition.clients is None:
        yield (
            f"partition.clients is null, but {method} has to know how many clients to make",
            "partition.method, partition.clients",
            "set partition.clients=6, or any number",
        )
    if partition.values:
        yield (
            f"partition.values would be ignored: partition.method is {method}",
            "partition.method, partition.values",
            "set partition.values=[], or partition=natural",
        )
    if method in ("dirichlet", "shards") and partition.column is None:
        yield (
            f"partition.method is {method}, but partition.column does not say which column holds the label",
            "partition.method, partition.column",
            "set partition.column=NAME; iid and quantity need none",
        )


def _targets(config: Config) -> Iterator[Finding]:
    targets = config.peft.target_modules
    if targets == ():
        yield (
            "peft.target_modules is empty: no layer would get an adapter",
            "peft.target_modules",
            "set peft.target_modules=all-linear, or name the modules",
        )
    if isinstance(targets, str) and targets != "all-linear":
        yield (
            f"peft.target_modules is the single string {shown(targets)}, which peft would read as a pattern",
            "peft.target_modules",
            f"set peft.target_modules=[{shown(targets, quoted=False)}], or all-linear",
        )


def _cohort(config: Config) -> Iterator[Finding]:
    federation = config.federation
    clients = config.partition.clients or len(config.partition.values) or None
    drawn = federation.clients_per_round
    if clients is not None and drawn is not None and drawn > clients:
        yield (
            f"federation.clients_per_round is {drawn}, but there are only {clients} clients",
            "federation.clients_per_round, partition",
            "set federation.clients_per_round=null to take all",
        )
    in_round = clients_in_a_round(config)
    if federation.min_replies is not None and in_round is not None and federation.min_replies > in_round:
        yield (
            f"federation.min_replies is {federation.min_replies}, but only {in_round} clients take part in a "
            "round: none could ever count",
            "federation.min_replies, federation.clients_per_round",
            f"set federation.min_replies={in_round} or less; null demands every drawn client",
        )


def _secagg(config: Config) -> Iterator[Finding]:
    secagg, aggregation = config.secagg, config.aggregation
    if not secagg.enabled:
        if secagg.groups > 1:
            yield (
                "secagg.groups would be ignored: secagg.enabled is false",
                "secagg.groups, secagg.enabled",
                "set secagg=on, or defence=median, which needs no groups",
            )
        return
    if not method(aggregation.method).secure:
        possible = [name for name, known in METHODS.items() if known.secure]
        yield (
            f"aggregation.method={shown(aggregation.method)} {method(aggregation.method).why_not_secure}",
            "secagg.enabled, aggregation.method",
            f"choose one of {', '.join(possible)}, or secagg=off",
        )
    if aggregation.error_meter:
        yield (
            "the error meter needs each site's own update, and secure aggregation shows their sum alone",
            "secagg.enabled, aggregation.error_meter",
            "set aggregation.error_meter=false",
        )
    if aggregation.weighting == "tokens":
        yield (
            "weights by tokens would tell the server each site's exact number: two sums can be subtracted",
            "secagg.enabled, aggregation.weighting",
            "set aggregation.weighting=uniform, or examples, declared as a power of two",
        )
    replies = config.federation.min_replies
    if replies is not None and replies < secagg.k_min:
        yield (
            f"a quorum of federation.min_replies={replies} is smaller than the cohort that sites demand, "
            f"secagg.k_min={secagg.k_min}: such a round would never be opened",
            "federation.min_replies, secagg.k_min",
            f"set federation.min_replies={secagg.k_min} or more",
        )
    yield from _groups(config)
    in_round = clients_in_a_round(config)
    if secagg.groups == 1 and in_round is not None and in_round < secagg.k_min:
        yield (
            f"a round has {in_round} clients, but sites demand a cohort of secagg.k_min={secagg.k_min}",
            "secagg.k_min, partition, federation.clients_per_round",
            f"set secagg.k_min={in_round}"
            if in_round >= 3
            else "use three or more clients in a round, or secagg=off",
        )


def _groups(config: Config) -> Iterator[Finding]:
    secagg, clients = config.secagg, config.partition.clients or len(config.partition.values) or None
    if secagg.groups == 1:
        return
    if secagg.groups == 2:
        yield (
            "secagg.groups is 2, and the median of two means is their mean: one false group moves it at will",
            "secagg.groups",
            "set secagg.groups=3 or more, or 1 for one sum over all",
        )
    if config.federation.clients_per_round is not None:
        yield (
            "secagg.groups keeps the groups as they are, and federation.clients_per_round draws some sites",
            "secagg.groups, federation.clients_per_round",
            "set federation.clients_per_round=null: a group takes part whole, or not at all",
        )
    if clients is not None and clients // secagg.groups < secagg.k_min:
        bearable = clients // secagg.k_min
        yield (
            f"{clients} sites in {secagg.groups} groups are {clients // secagg.groups} in the smallest, and "
            f"sites demand secagg.k_min={secagg.k_min}",
            "secagg.groups, secagg.k_min, partition",
            f"set secagg.groups={bearable}" if bearable >= 3 else "use more sites, or secagg.groups=1",
        )


def _updates(config: Config) -> Iterator[Finding]:
    updates = config.updates
    if updates.quantization == "none":
        if updates.error_feedback:
            yield (
                "updates.error_feedback has nothing to feed back: updates.quantization is none",
                "updates.error_feedback, updates.quantization",
                "set updates.error_feedback=false, or updates=int8",
            )
        return
    if config.secagg.enabled:
        yield (
            f"updates.quantization={updates.quantization} gives each site scales of its own, and masked "
            "updates can only be summed on one grid that all share",
            "updates.quantization, secagg.enabled",
            "set updates=exact and secagg.ring_bits=16, which sends half the bytes, or secagg=off",
        )
    if config.model.compute_dtype == "float64":
        yield (
            f"updates.quantization={updates.quantization} takes updates of 32 bits, and model.compute_dtype "
            "is float64",
            "updates.quantization, model.compute_dtype",
            "set updates=exact, or model.compute_dtype=float32",
        )


def _metrics(config: Config) -> Iterator[Finding]:
    weighting, metrics = config.aggregation.weighting, config.federation.metrics
    if weighting != "uniform" and weighting not in metrics and not config.secagg.enabled:
        yield (
            f"aggregation.weighting is {weighting}, but federation.metrics does not let sites say it",
            "aggregation.weighting, federation.metrics",
            f"add {weighting} to federation.metrics, or set aggregation.weighting=uniform",
        )


def _backend(config: Config) -> Iterator[Finding]:
    if config.backend.name != "ray" and config.backend.address is not None:
        yield (
            f"backend.address is {shown(config.backend.address)}, but backend.name is {config.backend.name}",
            "backend.name, backend.address",
            "set backend=ray for a cluster, or backend.address=null",
        )
    if config.backend.name == "inprocess" and config.backend.actors > 1:
        yield (
            f"backend.actors is {config.backend.actors}, but inprocess trains one client at a time",
            "backend.name, backend.actors",
            "set backend=ray for several at once, or backend.actors=1",
        )
    if len(set(config.baselines)) < len(config.baselines):
        yield (
            "baselines names the same baseline twice",
            "baselines",
            "name each once: baselines=[local,centralized]",
        )
    for kind in sorted(set(config.baseline_learning_rates) - set(config.baselines)):
        yield (
            f"baseline_learning_rates.{kind} would be ignored: baselines does not name {kind}",
            "baseline_learning_rates, baselines",
            f"add {kind} to baselines, or leave its rate out",
        )


def require_simulated(config: Config) -> None:
    """Refuse a configuration that takes real sites.

    Raises:
        ConfigError: FT105, ``backend.name`` is ``deployment``.
    """
    if config.backend.name == "deployment":
        raise ConfigError(
            Problem(
                code="FT105",
                what="backend.name is deployment, and a simulation has no sites to ask",
                where="backend.name",
                fix="run it with the sites that are enrolled: fedtune server run FOLDER …; or leave "
                "backend=deployment out",
            )
        )


def _deployment(config: Config) -> Iterator[Finding]:
    deployed = config.backend.name == "deployment"
    for key, value in (("data.source", config.data.source), ("partition.method", config.partition.method)):
        if (value == "site") != deployed:
            yield (
                f"{key} is {value}, but in a deployment each site has its own rows"
                if deployed
                else f"{key} is site, but there are no sites with rows of their own in a simulation",
                f"{key}, backend.name",
                "set backend=deployment alone, after any experiment; it sets data.source and partition.method"
                if deployed
                else "simulate with data=files or data=hpo; `fedtune server run` sets backend=deployment",
            )
    if deployed and config.baselines:
        yield (
            "baselines need rows, and the coordinator of a deployment has none",
            "baselines, backend.name",
            "set baselines=[]",
        )
    if deployed and config.evaluation.generations > 0:
        yield (
            "generations need held-out prompts, and the coordinator of a deployment has none",
            "evaluation.generations, backend.name",
            "set evaluation.generations=0",
        )


_RULES: tuple[Callable[[Config], Iterator[Finding]], ...] = (
    _arithmetic,
    _data,
    _partition,
    _targets,
    _cohort,
    _metrics,
    *AGGREGATION_RULES,
    *PACE_RULES,
    *LOCAL_RULES,
    _secagg,
    _updates,
    _backend,
    _deployment,
)
