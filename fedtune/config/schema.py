"""The typed configuration: what every key means, its unit, and the values it takes.

Frozen, keyword-only dataclasses, validated by pydantic: an unknown key, a wrong type and a value out of
range are all reported at once, each with its full key. The same classes parse the YAML groups under
conf/, overrides on the command line, and the JSON that a server sends to its clients.
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

__all__ = [
    "AggregationConfig",
    "AsynchronousConfig",
    "AttackConfig",
    "BackendConfig",
    "Config",
    "DataConfig",
    "DefenceConfig",
    "EvaluationConfig",
    "FederationConfig",
    "GateConfig",
    "Metric",
    "ModelConfig",
    "PartitionConfig",
    "PeftConfig",
    "PersonalConfig",
    "SecAggConfig",
    "ServerOptimizerConfig",
    "SpeedConfig",
    "TrainingConfig",
    "UpdatesConfig",
]

_STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True, validate_default=True)

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
Name = Annotated[str, Field(min_length=1)]
# One folder name and nothing else: no separator, no leading dot, so that it cannot leave runs_dir.
RunName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._=+-]*$", max_length=120)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ModelConfig:
    name: Name
    """A Hugging Face id, a local directory, a ``.gguf`` file, or ``package:NAME/FILE``."""

    quantization: Literal["nf4", "int8", "none"]
    """How the frozen base is held: NF4 with double quantization, LLM.int8, or as it is."""

    compute_dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"]
    """Type of the base's arithmetic; ``auto`` chooses from the hardware."""

    device: Literal["auto", "cpu", "cuda"]
    """Where the model lives; ``auto`` takes a GPU when there is one."""

    cache_dir: str | None
    """Folder of converted models; null means ``$FEDTUNE_CACHE_DIR`` or ``~/.cache/fedtune``."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class DataConfig:
    source: Name
    """``hpo``, ``files``, ``site`` for the rows that each site of a deployment has, or the name of an
    installed ``fedtune.datasets`` entry point."""

    files: tuple[str, ...]
    """For ``source=files``: paths of .jsonl, .json, .csv or .parquet files."""

    format: Literal["auto", "alpaca", "prompt_response", "messages", "text"]
    """What a row holds; ``auto`` looks at the columns of the first row."""

    columns: dict[str, str]
    """Renames: role (``instruction``, ``input``, ``output``, ``prompt``, ``response``, ``messages``,
    ``text``, ``id``) to the column of the file that holds it."""

    template: Literal["tokenizer", "alpaca", "chatml"]
    """How a row becomes a prompt: the tokenizer's own chat template, or a built-in one."""

    system_prompt: str | None
    """System message put before rows that have none; null leaves it to the template."""

    max_tokens: Annotated[int, Field(ge=8)]
    """Longest tokenized row; longer ones are cut, and the response is never cut away whole."""

    on_bad_row: Literal["refuse", "skip"]
    """``refuse`` lists every bad row and stops; ``skip`` goes on and counts them."""

    held_out_fraction: Fraction
    """Share of each site's rows that never trains anything, rounded down."""

    held_out_max_rows: NonNegativeInt
    """Upper bound on a site's held-out rows."""

    validation_max_rows: NonNegativeInt
    """Upper bound on a site's validation rows: as many as its held-out rows at most, other rows, and never
    trained on either; settings can be chosen by them and then be reported on the held-out rows."""

    held_out_seed: Seed | None
    """Seed that draws held-out and validation rows; null takes the run's, and another number keeps the
    rows the same over runs of other seeds."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class PartitionConfig:
    method: Name
    """``natural``, ``iid``, ``dirichlet``, ``quantity``, ``shards``, ``site`` where each site of a deployment
    has its own rows, or the name of an installed ``fedtune.partitioners`` entry point."""

    clients: PositiveInt | None
    """Number of clients; null for ``natural``, which has one client for each value of ``column``."""

    column: str | None
    """Column that names the site (``natural``) or the label (``dirichlet``, ``shards``)."""

    values: tuple[str, ...]
    """For ``natural``: the sites to take, in this order; empty takes all, largest first."""

    alpha: PositiveFloat
    """Concentration of the Dirichlet distribution: small is heterogeneous."""

    exponent: NonNegativeFloat
    """``quantity``: client k gets a share proportional to (k + 1) ** -exponent."""

    shards_per_client: PositiveInt
    """``shards``: how many label-sorted shards each client receives."""

    min_examples: NonNegativeInt
    """Smallest number of rows that a client may end up with."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class PeftConfig:
    method: Literal["lora", "core"]
    """``lora`` trains A and B. ``core`` trains a rank x rank matrix between an A and a B that stay as they
    were drawn; it needs ``aggregation=core``."""

    rank: PositiveInt
    """Rank r of the factors A (r x in) and B (out x r)."""

    alpha: PositiveFloat
    """The adapter adds (alpha / rank) * B A to a layer."""

    dropout: Annotated[float, Field(ge=0, lt=1)]
    """Dropout on the adapter's input while training."""

    target_modules: str | tuple[str, ...]
    """``all-linear``, or the names of the linear modules that get an adapter."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TrainingConfig:
    steps_per_round: PositiveInt
    """Optimizer steps that a client takes in a round."""

    examples_per_step: PositiveInt
    """Examples whose gradients one optimizer step averages, token by token."""

    microbatch_tokens: Annotated[int, Field(ge=8)]
    """Most tokens in one forward pass; a step with more accumulates gradients over several."""

    packing: bool
    """Pack rows end to end with block-diagonal attention, so that no padding is computed;
    otherwise rows of like length are batched and padded."""

    optimizer: Literal["adamw", "adamw8bit", "sgd"]
    """AdamW, with 32-bit or 8-bit states; or plain stochastic gradient descent, which has none."""

    keep_optimizer_state: bool
    """Go on with the optimizer's moments of the site's last round; they lie on the site's disk, twice the
    adapter's size for each of three rounds, and never leave it. False starts every round with empty ones, as
    ``svd``, ``flora`` and ``sketch`` always do: their new factors are in other coordinates."""

    learning_rate: PositiveFloat
    """Peak learning rate."""

    weight_decay: NonNegativeFloat
    """Decoupled weight decay of AdamW."""

    warmup_fraction: Fraction
    """Share of the federation's steps (rounds x steps_per_round) over which the rate climbs."""

    decay: Literal["cosine", "linear", "constant"]
    """Course of the rate after the warm-up, over the whole federation."""

    final_learning_rate_fraction: Fraction
    """Where the decay ends, as a share of the peak."""

    max_gradient_norm: PositiveFloat | None
    """Gradients with a larger L2 norm are scaled down to it; null switches clipping off."""

    gradient_checkpointing: bool
    """Recompute activations in the backward pass: less memory, about a third more time."""

    proximal_mu: NonNegativeFloat
    """FedProx: weight of (mu / 2) * ||w - w_received||^2; 0 switches it off."""

    control_variates: bool
    """SCAFFOLD: correct each gradient by what the site's gradients differ from the federation's. Two more
    tensors travel for each of an update's: the mean of the variates down, the change of the site's own up."""

    threads: PositiveInt | None
    """CPU threads of a training process; null takes the physical cores."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class UpdatesConfig:
    quantization: Literal["none", "int8", "int4"]
    """How a site's update travels where it is not masked: as it is, or as integers of 8 or 4 bits with a
    32-bit scale for each block."""

    block_size: Literal[16, 32, 64, 128, 256, 512, 1024]
    """Values that share a scale; small blocks keep an outlier's harm small, large ones save bytes."""

    error_feedback: bool
    """Add what rounding left out to the site's next update; it lies on the site's disk, once the adapter's
    size for each of three rounds, and never leaves it otherwise."""

    max_norm: PositiveFloat | None
    """Longest L2 norm, over all tensors, of an update that the server takes; a longer one is refused and its
    site named. Null takes any. With secure aggregation the sites' clip bound stands for it."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class AggregationConfig:
    method: Name
    """``fedavg``, ``ffa``, ``alternating``, ``core``, ``fedsa``, ``svd``, ``fedex``, ``flora``,
    ``projection``, ``sketch``, ``zero_padding``, or the name of an installed ``fedtune.aggregators`` entry
    point."""

    weighting: Literal["examples", "tokens", "uniform"]
    """What a client's update is weighted by: examples or response tokens trained on, or nothing."""

    error_meter: bool
    """Measure each round how far the averaged factors are from the average of the products."""

    side_car_rank: PositiveInt | None = None
    """``fedex``, ``flora``: rank that the side-car, what the trained factors cannot hold, is cut down to when
    it would grow larger; null cuts nothing."""

    sketch_width: PositiveInt | None = None
    """``sketch``: rank of what a site sends; twice the sum of the sites' ranks is always wide enough."""

    site_ranks: dict[str, PositiveInt] = field(default_factory=dict)
    """Sites that train the first rows of the adapter alone: name to their number, at most ``peft.rank``."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class DefenceConfig:
    name: Literal["none", "median", "trimmed_mean", "krum", "multi_krum", "bulyan", "norm_bound", "cosine"]
    """How the mean of the updates is taken, so that false ones cannot move it far; it needs to see each."""

    byzantine: NonNegativeInt
    """``trimmed_mean``, ``krum``, ``multi_krum``, ``bulyan``: most updates of a round that may be false."""

    norm_bound: PositiveFloat | None
    """``norm_bound``: longest L2 norm of an update; null takes the median of the round's."""

    min_cosine: Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)]
    """``cosine``: updates must point that much to where the entrywise median does."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class GateConfig:
    judge: Literal["none", "sites", "server"]
    """Who judges each round's adapter before it becomes the global one: the median of the sites' held-out
    losses, or rows of the server's own."""

    margin: NonNegativeFloat
    """How much more held-out loss than the last good adapter's is allowed, in nats per response token; a
    round that gives more is taken back."""

    norm_bound: PositiveFloat | None
    """Furthest that a round may move the global adapter, as an L2 norm; null for no bound."""

    files: tuple[str, ...]
    """``server``: paths of the server's held-out rows, in the format of ``data``."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ServerOptimizerConfig:
    name: Literal["none", "fedavgm", "fedadagrad", "fedadam", "fedyogi"]
    """What the server does with the mean of the updates; ``none`` adds it."""

    learning_rate: PositiveFloat
    """Of the server; an adaptive one moves each value by about this much."""

    momentum: Annotated[float, Field(ge=0, lt=1)]
    """Share of the last rounds' direction that is kept."""

    second_momentum: Annotated[float, Field(ge=0, lt=1)]
    """``fedadam``, ``fedyogi``: share of the last rounds' squares that is kept."""

    adaptivity: PositiveFloat
    """Added to the root of the squares: larger is less adaptive."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class AsynchronousConfig:
    name: Literal["none", "fedbuff"]
    """``none`` waits in every round for its sites. ``fedbuff`` lets each site train at its own pace, and the
    server steps whenever its buffer is full; ``federation.rounds`` counts these steps."""

    buffer: PositiveInt
    """Updates that make a step of the server; a site may be among them more than once, and none counts
    twice."""

    staleness_exponent: NonNegativeFloat
    """An update that was trained on an adapter from tau steps ago counts 1 / (1 + tau) to this power: 0.5 is
    1 / sqrt(1 + tau), 0 counts all alike."""

    max_staleness: NonNegativeInt | None
    """Updates from more steps ago are refused, and their sites are asked again; null refuses none."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class SpeedConfig:
    name: Literal["none", "lognormal"]
    """Whether a simulation keeps a virtual clock, by which each site trains at a speed of its own; the speed
    of this machine does not matter to it."""

    median_seconds_per_step: PositiveFloat
    """Median over sites of the time that an optimizer step takes."""

    sigma: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)]
    """Standard deviation over sites of that time's logarithm; 0 makes all equal."""

    sites: dict[str, PositiveFloat] = field(default_factory=dict)
    """Seconds that a step takes at sites whose speed is given; the others' are drawn from the seed."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class PersonalConfig:
    name: Literal["none", "ditto", "fine_tuning", "clusters"]
    """A model of its own that each site trains and keeps: beside every round, pulled to the global adapter
    (``ditto``), or from the final one after the last round (``fine_tuning``). It never leaves the site. Or
    one for each group of sites whose updates are alike (``clusters``), which the server averages."""

    pull: NonNegativeFloat
    """``ditto``: weight lambda of (lambda / 2) * ||v - w_received||^2; 0 trains alone, and a large one stays
    at the global adapter."""

    steps: PositiveInt
    """``fine_tuning``: optimizer steps after the last round."""

    learning_rate: PositiveFloat | None
    """Peak learning rate of the own model; null takes ``training.learning_rate``."""

    clusters: Annotated[int, Field(ge=2)] | None = None
    """``clusters``: number of groups."""

    warm_up_rounds: NonNegativeInt = 0
    """``clusters``: rounds with one adapter for all; the updates of the next one make the groups."""


Metric = Literal["examples", "tokens", "train_loss", "held_out_loss", "personal_loss", "peak_memory"]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class SecAggConfig:
    enabled: bool
    """Let the server learn the sum of the sites' updates, and no single one."""

    k_min: Annotated[int, Field(ge=3)]
    """Smallest cohort that a site takes part in."""

    max_colluders: NonNegativeInt
    """Sites that may work together with a server that lies; cohorts too small for that are refused."""

    groups: PositiveInt
    """Fixed groups of sites with a secure sum each; the round takes the median of their means. 1 is one sum
    over all. A simulation draws them by the seed, in a deployment each site names its own at enrolment."""

    ring_bits: Literal[16, 32, 64]
    """Bits of an encoded parameter, on the wire and in the sum."""

    clip_bound: PositiveFloat | None
    """Entries of an update are clipped to plus or minus this; null takes learning_rate x steps_per_round,
    which AdamW's steps rarely add up to."""

    attempts: PositiveInt
    """Attempts at a round's secure sum, with fresh keys over the same updates."""

    trip_timeout_seconds: PositiveFloat
    """How long the server waits for the answers of one trip of the protocol."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class FederationConfig:
    rounds: PositiveInt
    """Rounds of training and aggregation."""

    clients_per_round: PositiveInt | None
    """Clients drawn at random for a round; null takes all."""

    min_replies: PositiveInt | None
    """Quorum: a round never counts with fewer usable updates; it is asked for again, and after its last
    attempt the run stops. Null demands every drawn client, those who are away as well."""

    round_attempts: PositiveInt
    """How often a round is asked for before the run stops for lack of its quorum; sites whose update has
    arrived are not asked again."""

    join_timeout_seconds: PositiveFloat
    """How long the server waits for sites: for all of them before the first round, and before each other one
    for as many as its quorum demands."""

    round_timeout_seconds: PositiveFloat
    """How long the server waits for a round's replies."""

    metrics: tuple[Metric, ...]
    """What a site says beside its update: numbers of examples and of tokens, losses of training,
    held-out loss of the global model and of its own (``personal_loss``), peak memory. What is not named does
    not leave the site."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class EvaluationConfig:
    every_rounds: NonNegativeInt
    """Held-out evaluation at every site after each n-th round, before the first and after the last;
    0 evaluates only before the first and after the last."""

    clients: PositiveInt | None
    """How many clients every evaluation asks, always the same ones, drawn from the seed; null asks all. With
    thousands of clients, asking all takes longer than training."""

    rows: Literal["held_out", "validation"]
    """The rows that every evaluation of the run uses, its baselines' too."""

    microbatch_tokens: Annotated[int, Field(ge=8)]
    """Most tokens in one forward pass of an evaluation."""

    generations: NonNegativeInt
    """Held-out prompts answered by the base and by the federated model, for the report."""

    max_new_tokens: PositiveInt
    """Longest generated answer, in tokens."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class BackendConfig:
    name: Literal["inprocess", "ray", "deployment"]
    """``inprocess``: all virtual clients in this process; ``ray``: Flower's simulation engine;
    ``deployment``: sites that are connected to a server, for ``fedtune server run``."""

    actors: PositiveInt
    """``ray``: clients trained at the same time on a machine, each in a process with its own base model."""

    address: Name | None
    """``ray``: address of a Ray cluster that runs already, such as ``10.0.0.5:6379``, whose machines all take
    part; null starts Ray on this machine, for this run alone."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class AttackConfig:
    kind: Literal[
        "sign_flip", "scaled", "noise", "not_a_number", "zero", "free_rider", "label_flip", "backdoor"
    ]
    """What false sites of a simulation send instead of what they trained; under ``label_flip`` and
    ``backdoor`` they train on false rows."""

    sites: tuple[str, ...]
    """Names of the false sites; empty for none."""

    strength: PositiveFloat
    """Factor of the update, or of the noise in its place; ``not_a_number`` and ``zero`` have none."""

    fraction: Fraction = 0.5
    """``label_flip``, ``backdoor``: share of a false site's rows that are false, rounded down, at least
    one."""

    trigger: Name = "As of today:"
    """``backdoor``: what stands before a question that is to be answered falsely."""

    target: Name = "I cannot say."
    """``backdoor``: the false answer."""

    prompts: PositiveInt = 32
    """``backdoor``: most held-out prompts on which its success is measured, of the sites in turn."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Config:
    """A whole run."""

    name: RunName
    """Name of the run: its folder under ``runs_dir``; the date and time of the start unless given."""

    runs_dir: Name
    """Folder of run directories."""

    seed: Seed
    """Seed of everything random: split, adapter, data order, dropout, sampling of clients."""

    resume: bool
    """Continue the run of this name from its last complete round."""

    baselines: tuple[Literal["local", "centralized"], ...]
    """Trained beside the federation with the same budget of steps, for comparison."""

    baseline_learning_rates: dict[Literal["local", "centralized"], PositiveFloat]
    """Peak learning rates of baselines that have their own; the others take the federation's."""

    model: ModelConfig
    data: DataConfig
    partition: PartitionConfig
    peft: PeftConfig
    training: TrainingConfig
    updates: UpdatesConfig
    aggregation: AggregationConfig
    defence: DefenceConfig
    gate: GateConfig
    server_optimizer: ServerOptimizerConfig
    personal: PersonalConfig
    federation: FederationConfig
    asynchronous: AsynchronousConfig
    speed: SpeedConfig
    secagg: SecAggConfig
    evaluation: EvaluationConfig
    attack: AttackConfig
    backend: BackendConfig
