"""The policy wins: what is accepted lies within every limit, whatever a configuration asks for."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, get_args
from zoneinfo import ZoneInfo

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from fedtune.config.compose import compose
from fedtune.config.schema import Config, Metric
from fedtune.errors import FederationError
from fedtune.site.policy import REASONS, Asked, Coordinator, Decision, PrivacyCost, Usage, decide
from fedtune.site.policy_schema import (
    DataLimits,
    Hours,
    PeftLimits,
    PrivacyBudget,
    SecureAggregation,
    SitePolicy,
    WorkLimits,
)

BASE = compose(["experiment=demo", "secagg=on", "name=policy"])
ROWS = replace(BASE.data, source="files", files=("rows.jsonl",), format="alpaca")
FITTING = replace(BASE, data=ROWS)
UNUSED = Usage()
METRICS = get_args(Metric)
HASHES = tuple(digit * 64 for digit in "abc")
PRINTS = tuple("-".join([group] * 8) for group in ("abcd", "2345"))
ZONES = ("UTC", "Europe/Berlin", "Asia/Kathmandu", "America/St_Johns")
NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)

POLICY = SitePolicy(
    version=1,
    timezone="UTC",
    coordinators={"hub": PRINTS[0]},
    bundles=("installed",),
    base_models=(HASHES[0],),
    preapproved=(),
    metrics=("held_out_loss",),
    hours=None,
    peft=PeftLimits(methods=("lora",), max_rank=16),
    data=DataLimits(
        sources=("files",), files=("rows.jsonl",), columns=("id", "instruction", "input", "output", "site")
    ),
    limits=WorkLimits(
        rounds_per_day=4,
        evaluations_per_day=5,
        steps_per_round=8,
        tokens_per_round=8192,
        seconds_per_round=3600,
        memory_mib=4096,
    ),
    secure_aggregation=SecureAggregation(required=True, k_min=5, max_colluders=0, max_clip_bound=0.04),
    privacy=None,
)


def asked(config: Config = FITTING, **keys: Any) -> Asked:
    """A request that POLICY accepts, but for what is said otherwise."""
    message = {
        "kind": "train",
        "coordinator": Coordinator(name="hub", fingerprint=PRINTS[0]),
        "round_number": 1,
        "bundle": HASHES[1],
        "bundle_installed": True,
        "base_model": HASHES[0],
        "memory_mib": 4096.0,
    }
    return Asked.of(config, **(message | keys))


def told(policy: SitePolicy = POLICY, request: Asked | None = None, used: Usage = UNUSED) -> Decision:
    return decide(policy, request or asked(), used, NOON)


def test_what_lies_exactly_at_the_limits_is_accepted() -> None:
    request = asked()
    assert (request.rank, request.steps, request.tokens, request.seconds) == (16, 8, 8 * 4 * 256, 3600)
    decision = told(used=Usage(rounds_today=3, evaluations_today=9))
    assert decision.accepted
    assert decision == Decision(reasons=(), problems=())
    with pytest.raises(ValueError, match="was accepted"):
        decision.refusal()


def section(name: str, **keys: Any) -> Asked:
    return asked(replace(FITTING, **{name: replace(getattr(FITTING, name), **keys)}))


@pytest.mark.parametrize(
    ("reason", "request_", "value", "limit"),
    [
        ("coordinator", asked(coordinator=Coordinator(name="hum", fingerprint=PRINTS[0])), "hum", ""),
        ("coordinator", asked(coordinator=Coordinator(name="hub", fingerprint=PRINTS[1])), "2345", "abcd"),
        ("bundle", asked(bundle_installed=False), HASHES[1], ""),
        ("bundle", asked(bundle_installed=False, bundle="installed"), "installed", ""),
        ("base_model", asked(base_model=HASHES[2]), HASHES[2], ""),
        ("metrics", section("federation", metrics=("held_out_loss", "tokens")), "tokens", ""),
        ("peft.rank", section("peft", rank=17), "17", "16"),
        ("data.source", asked(replace(BASE, data=replace(ROWS, source="mine", files=()))), "mine", ""),
        ("data.files", section("data", files=("rows.jsonl", "/etc/shadow")), "/etc/shadow", ""),
        ("data.columns", section("data", columns={"output": "hiv_status"}), "hiv_status", ""),
        ("data.columns", section("data", format="auto"), "conversations", ""),
        ("data.columns", section("partition", column="ward"), "ward", ""),
        ("tokens", section("data", max_tokens=257), "8,224", "8,192"),
        ("tokens", section("training", examples_per_step=5), "10,240", "8,192"),
        ("seconds", section("federation", round_timeout_seconds=3600.5), "3,600.5", "3,600"),
        ("memory", asked(memory_mib=4096.5), "4,096.5", "4,096"),
        ("memory", asked(memory_mib=math.nan), "nan", "4,096"),
        ("k_min", section("secagg", k_min=4), "4", "5"),
        ("clip_bound", section("secagg", clip_bound=0.05), "0.05", "0.04"),
        ("clip_bound", section("training", learning_rate=0.01), "0.08", "0.04"),
    ],
)
def test_each_limit_refuses_by_its_own_code_and_tells_the_site_alone_why(
    reason: str, request_: Asked, value: str, limit: str
) -> None:
    decision = told(request=request_)
    assert decision.reasons == (reason,)
    (problem,) = decision.problems
    assert problem.code == "FT640"
    assert value in problem.what
    assert limit in problem.what
    assert "run policy, round 1" in problem.where
    answer = str(decision.refusal())
    assert answer == str(
        FederationError(
            replace(
                problem,
                what=f"the site's policy refuses this: {reason}",
                where="the site's policy",
                fix="ask the site's operator, whose own log says more",
            )
        )
    )


def test_a_request_that_breaks_many_limits_is_told_all_of_them() -> None:
    config = replace(BASE, peft=replace(BASE.peft, rank=64), secagg=replace(BASE.secagg, enabled=False))
    decision = told(request=asked(config, base_model=HASHES[2], memory_mib=1e6))
    assert decision.reasons == (
        "base_model",
        "peft.rank",
        "data.source",
        "memory",
        "secure_aggregation",
        "clip_bound",
    )
    assert [reason for reason in REASONS if reason in decision.reasons] == list(decision.reasons)
    text = str(decision.refusal())
    assert "16" not in text
    assert "4,096" not in text


def test_rounds_and_evaluations_of_a_day_are_counted_apart() -> None:
    full = Usage(rounds_today=4, evaluations_today=5)
    assert told(used=full).reasons == ("rounds",)
    assert told(request=asked(kind="hello"), used=full).reasons == ("rounds",)
    assert told(request=asked(kind="evaluate"), used=full).reasons == ("evaluations",)
    assert told(request=asked(kind="evaluate"), used=Usage(rounds_today=4)).accepted


def test_a_day_is_the_sites_own() -> None:
    policy = replace(POLICY, timezone="Asia/Kathmandu")  # UTC+5:45
    now = datetime(2026, 11, 22, 19, 0, tzinfo=UTC)  # 00:45 of the 23rd there
    times = [now - timedelta(minutes=minutes) for minutes in (1, 44, 46, 60 * 20)]
    tomorrow = now + timedelta(days=1)  # accepted before the clock was set back
    spent = PrivacyCost(epsilon=1.0, delta=0.0)
    used = Usage.counted(policy, now, trained=[*times, tomorrow], evaluated=times[:1], privacy=spent)
    assert used == Usage(rounds_today=3, evaluations_today=1, privacy=spent)
    with pytest.raises(ValueError, match="needs its zone"):
        Usage.counted(policy, now, trained=[datetime(2026, 11, 22)], evaluated=(), privacy=spent)


@pytest.mark.parametrize(
    ("start", "end", "clock", "open_now"),
    [
        ("08:00", "17:30", "07:59", False),
        ("08:00", "17:30", "08:00", True),
        ("08:00", "17:30", "17:29", True),
        ("08:00", "17:30", "17:30", False),
        ("20:00", "06:00", "19:59", False),
        ("20:00", "06:00", "20:00", True),
        ("20:00", "06:00", "00:00", True),
        ("20:00", "06:00", "05:59", True),
        ("20:00", "06:00", "06:00", False),
        ("20:00", "00:00", "23:59", True),
        ("20:00", "00:00", "00:00", False),
    ],
)
def test_hours_are_those_on_the_wall(start: str, end: str, clock: str, open_now: bool) -> None:
    policy = replace(POLICY, timezone="Europe/Berlin", hours=Hours(start=start, end=end))
    for day in ((2026, 1, 15), (2026, 7, 15)):  # winter time and summer time
        local = datetime(*day, int(clock[:2]), int(clock[3:]), 30, tzinfo=ZoneInfo("Europe/Berlin"))
        decision = decide(policy, asked(), Usage(), local.astimezone(timezone(timedelta(hours=-8))))
        assert decision.reasons == (() if open_now else ("hours",))
        assert open_now or f"it is {clock}" in decision.problems[0].what


def test_a_time_without_a_zone_is_no_time() -> None:
    with pytest.raises(ValueError, match="needs its zone"):
        decide(POLICY, asked(), Usage(), datetime(2026, 11, 22))


@pytest.mark.parametrize(
    ("spent", "cost", "accepted"),
    [
        (0.0, None, False),
        (0.0, 8.0, True),
        (4.0, 4.0, True),
        (4.5, 4.0, False),
        (0.0, math.nan, False),
        (8.5, -1.0, False),
        (math.nan, 1.0, False),
        (-1.0, 1.0, False),
    ],
)
def test_a_privacy_budget_is_spent_once(spent: float, cost: float | None, accepted: bool) -> None:
    policy = replace(POLICY, privacy=PrivacyBudget(epsilon=8.0, delta=1e-6))
    privacy = None if cost is None else PrivacyCost(epsilon=cost, delta=1e-7)
    used = Usage(privacy=PrivacyCost(epsilon=spent, delta=0.0))
    assert told(policy, asked(privacy=privacy), used).reasons == (() if accepted else ("privacy",))
    assert told(policy, asked(privacy=PrivacyCost(epsilon=0.0, delta=2e-6))).reasons == ("privacy",)


def test_without_secure_aggregation_nothing_is_clipped_and_no_cohort_matters() -> None:
    plain = section("secagg", enabled=False, k_min=3)
    rules = POLICY.secure_aggregation
    relaxed = replace(POLICY, secure_aggregation=replace(rules, required=False, max_clip_bound=None))
    assert told(relaxed, plain).accepted
    assert told(request=plain).reasons == ("secure_aggregation", "clip_bound")


def test_what_a_coordinator_writes_does_not_break_a_line_of_the_log() -> None:
    files = ("a\n\x1b[2J", "b" * 500)
    (problem,) = told(request=section("data", files=files)).problems
    assert problem.what.isprintable()
    assert len(problem.what) < 200


def some(values: tuple[Any, ...]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(st.sampled_from(values), unique=True).map(tuple)


numbers = st.integers(0, 40)
clocks = st.builds("{:02}:{:02}".format, st.integers(0, 23), st.sampled_from([0, 1, 30, 59]))
COLUMNS = ("id", "instruction", "input", "output", "text", "prompt", "response", "messages", "conversations")
budgets = st.builds(PrivacyBudget, epsilon=st.sampled_from([0.5, 2.0]), delta=st.sampled_from([1e-6, 1e-3]))
costs = st.builds(
    PrivacyCost,
    epsilon=st.sampled_from([0.0, 0.5, 1.5, math.nan, -1.0]),
    delta=st.sampled_from([0.0, 1e-7, 1e-3]),
)
policies = st.builds(
    SitePolicy,
    version=st.just(1),
    timezone=st.sampled_from(ZONES),
    coordinators=st.dictionaries(st.sampled_from(["hub", "other"]), st.sampled_from(PRINTS)),
    bundles=some(("installed", *HASHES)),
    base_models=some(HASHES),
    preapproved=some(HASHES),
    metrics=some(METRICS),
    hours=st.none() | st.builds(Hours, start=clocks, end=clocks).filter(lambda h: h.start != h.end),
    peft=st.builds(PeftLimits, methods=some(("lora",)), max_rank=numbers),
    data=st.builds(
        DataLimits,
        sources=some(("files", "hpo")),
        files=some(("a.jsonl", "b.jsonl")),
        columns=st.none() | some((*COLUMNS, "ward")),
    ),
    limits=st.builds(
        WorkLimits,
        rounds_per_day=st.none() | st.integers(0, 4),
        evaluations_per_day=st.none() | st.integers(0, 4),
        steps_per_round=st.none() | numbers,
        tokens_per_round=st.none() | st.integers(0, 20_000),
        seconds_per_round=st.none() | st.floats(0, 100),
        memory_mib=st.none() | st.floats(0, 100),
    ),
    secure_aggregation=st.builds(
        SecureAggregation,
        required=st.booleans(),
        k_min=st.integers(3, 6),
        max_colluders=st.integers(0, 2),
        max_clip_bound=st.none() | st.sampled_from([0.01, 0.1]),
    ),
    privacy=st.none() | budgets,
)


@st.composite
def configs(draw: st.DrawFn) -> Config:
    source = draw(st.sampled_from(["files", "hpo"]))
    files = draw(some(("a.jsonl", "b.jsonl", "c.jsonl"))) if source == "files" else ()
    return replace(
        BASE,
        peft=replace(BASE.peft, rank=draw(st.integers(1, 40))),
        data=replace(
            BASE.data,
            source=source,
            files=files,
            format=draw(st.sampled_from(["auto", "alpaca", "prompt_response", "messages", "text"])),
            columns=draw(
                st.dictionaries(st.sampled_from(COLUMNS[:-1]), st.sampled_from((*COLUMNS, "secret")))
            ),
            max_tokens=draw(st.sampled_from([8, 64, 512])),
        ),
        partition=replace(BASE.partition, column=draw(st.none() | st.sampled_from(["ward", "id"]))),
        training=replace(
            BASE.training,
            steps_per_round=draw(st.integers(1, 40)),
            examples_per_step=draw(st.integers(1, 4)),
            learning_rate=draw(st.sampled_from([1e-4, 1e-3, 1e-2])),
        ),
        federation=replace(
            BASE.federation,
            round_timeout_seconds=draw(st.floats(0.1, 100)),
            metrics=draw(some(METRICS)),
        ),
        secagg=replace(
            BASE.secagg,
            enabled=draw(st.booleans()),
            k_min=draw(st.integers(3, 6)),
            max_colluders=draw(st.integers(0, 2)),
            clip_bound=draw(st.none() | st.sampled_from([0.01, 0.1, 1.0])),
        ),
    )


messages = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["hello", "train", "evaluate"]),
        "coordinator": st.builds(
            Coordinator, name=st.sampled_from(["hub", "other"]), fingerprint=st.sampled_from(PRINTS)
        ),
        "round_number": st.integers(0, 9),
        "bundle": st.sampled_from((*HASHES, "installed")),
        "bundle_installed": st.booleans(),
        "base_model": st.sampled_from(HASHES),
        "memory_mib": st.floats(0, 200) | st.sampled_from([math.nan, math.inf]),
        "privacy": st.none() | costs,
    }
)
usages = st.builds(Usage, rounds_today=st.integers(0, 4), evaluations_today=st.integers(0, 4), privacy=costs)
moments = st.datetimes(min_value=datetime(2026, 1, 1), max_value=datetime(2027, 1, 1), timezones=st.just(UTC))


def columns_of(config: Config) -> set[str]:
    """Columns that a configuration reads of files, told from the table in the documentation of formats."""
    roles = {
        "alpaca": ("instruction", "output", "input"),
        "prompt_response": ("prompt", "response"),
        "messages": ("messages",),
        "text": ("text",),
    }
    data = config.data
    if data.source != "files":
        return set()
    formats = list(roles) if data.format == "auto" else [data.format]
    read = {data.columns.get(role, role) for name in formats for role in (*roles[name], "id")}
    if "messages" in formats and "messages" not in data.columns:
        read.add("conversations")
    return read | ({config.partition.column} - {None})


def violations(
    policy: SitePolicy, config: Config, message: dict[str, Any], used: Usage, now: datetime
) -> set[str]:
    """The oracle: a plain reading of the policy's keys, from the configuration and the message themselves."""
    told = dataclasses.asdict(policy)
    limits, rules = told["limits"], told["secure_aggregation"]
    secagg, training, who = config.secagg, config.training, message["coordinator"]
    wrong = set()

    def check(reason: str, good: bool) -> None:
        if not good:
            wrong.add(reason)

    def at_most(reason: str, value: float, limit: float | None) -> None:
        check(reason, limit is None or value < limit or value == limit)

    check("coordinator", (who.name, who.fingerprint) in told["coordinators"].items())
    check(
        "bundle",
        ("installed" in told["bundles"] and message["bundle_installed"])
        or (message["bundle"] in told["bundles"] and len(message["bundle"]) == 64),
    )
    check("base_model", message["base_model"] in told["base_models"])
    check("metrics", set(config.federation.metrics) <= set(told["metrics"]))
    if told["hours"]:
        local = now.astimezone(ZoneInfo(told["timezone"]))
        start, end = (int(text[:2]) * 60 + int(text[3:]) for text in told["hours"].values())
        minutes, minute = (end - start) % (24 * 60), local.hour * 60 + local.minute
        check("hours", (minute - start) % (24 * 60) < minutes)
    check("peft.method", config.peft.method in told["peft"]["methods"])
    at_most("peft.rank", config.peft.rank, told["peft"]["max_rank"])
    check("data.source", config.data.source in told["data"]["sources"])
    check("data.files", set(config.data.files) <= set(told["data"]["files"]))
    allowed = told["data"]["columns"]
    check("data.columns", allowed is None or columns_of(config) <= set(allowed))
    if message["kind"] == "evaluate":
        at_most("evaluations", used.evaluations_today + 1, limits["evaluations_per_day"])
    else:
        at_most("rounds", used.rounds_today + 1, limits["rounds_per_day"])
    at_most("steps", training.steps_per_round, limits["steps_per_round"])
    tokens = training.steps_per_round * training.examples_per_step * config.data.max_tokens
    at_most("tokens", tokens, limits["tokens_per_round"])
    at_most("seconds", config.federation.round_timeout_seconds, limits["seconds_per_round"])
    at_most("memory", message["memory_mib"], limits["memory_mib"])
    if secagg.enabled:
        at_most("k_min", rules["k_min"], secagg.k_min)
        at_most("max_colluders", rules["max_colluders"], secagg.max_colluders)
        bound = secagg.clip_bound or training.learning_rate * training.steps_per_round
        at_most("clip_bound", bound, rules["max_clip_bound"])
    else:
        check("secure_aggregation", not rules["required"])
        check("clip_bound", rules["max_clip_bound"] is None)
    if told["privacy"]:
        cost, spent = message["privacy"], used.privacy
        for key in ("epsilon", "delta"):
            new, old = (math.nan if c is None else getattr(c, key) for c in (cost, spent))
            check("privacy", new >= 0 and old >= 0 and new + old <= told["privacy"][key])
    return wrong


@settings(deadline=None, max_examples=400)
@given(policies, configs(), messages, usages, moments)
def test_a_request_is_refused_for_exactly_the_limits_that_it_breaks(
    policy: SitePolicy, config: Config, message: dict[str, Any], used: Usage, now: datetime
) -> None:
    decision = decide(policy, Asked.of(config, **message), used, now)
    assert set(decision.reasons) == violations(policy, config, message, used, now)
    assert len(decision.reasons) == len(decision.problems)
    assert set(decision.reasons) <= set(REASONS)


@st.composite
def stricter(draw: st.DrawFn, policy: SitePolicy) -> SitePolicy:
    """A policy that is as strict as another in every key, and stricter in some."""

    def fewer(values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(value for value in values if draw(st.booleans()))

    def lower(limit: Any, *, least: Any = 0) -> Any:
        if limit is None:
            return draw(st.none() | st.integers(1, 40))
        kept = draw(st.booleans())
        return limit if kept else least + (type(limit))((limit - least) * draw(st.sampled_from([0.1, 0.5])))

    def later(hours: Hours | None) -> Hours | None:
        if hours is None:
            return draw(st.none() | st.just(Hours(start="08:00", end="17:00")))
        return draw(st.sampled_from([hours, shortened(hours)]))

    limits, rules = policy.limits, policy.secure_aggregation
    columns = policy.data.columns
    kept = set(fewer(tuple(policy.coordinators)))
    budget = policy.privacy
    if budget is None:
        budget = draw(st.none() | budgets)
    else:
        budget = replace(budget, epsilon=lower(budget.epsilon), delta=lower(budget.delta))
    return replace(
        policy,
        coordinators={name: value for name, value in policy.coordinators.items() if name in kept},
        bundles=fewer(policy.bundles),
        base_models=fewer(policy.base_models),
        preapproved=policy.preapproved,
        metrics=fewer(policy.metrics),
        hours=later(policy.hours),
        peft=PeftLimits(methods=fewer(policy.peft.methods), max_rank=lower(policy.peft.max_rank)),
        data=DataLimits(
            sources=fewer(policy.data.sources),
            files=fewer(policy.data.files),
            columns=draw(st.none() | some(COLUMNS)) if columns is None else fewer(columns),
        ),
        limits=WorkLimits(
            **{field.name: lower(getattr(limits, field.name)) for field in dataclasses.fields(limits)}
        ),
        secure_aggregation=SecureAggregation(
            required=rules.required or draw(st.booleans()),
            k_min=rules.k_min + draw(st.integers(0, 2)),
            max_colluders=rules.max_colluders + draw(st.integers(0, 2)),
            max_clip_bound=lower(rules.max_clip_bound),
        ),
        privacy=budget,
    )


def shortened(hours: Hours) -> Hours:
    """Begin a minute later, where more than a minute is left."""
    minute = int(hours.start[:2]) * 60 + int(hours.start[3:]) + 1
    start = f"{minute // 60 % 24:02}:{minute % 60:02}"
    return hours if start == hours.end else Hours(start=start, end=hours.end)


@settings(deadline=None, max_examples=400)
@given(st.data(), configs(), messages, usages, moments)
def test_a_stricter_policy_turns_no_refusal_into_an_acceptance(
    data: st.DataObject, config: Config, message: dict[str, Any], used: Usage, now: datetime
) -> None:
    policy = data.draw(policies)
    request = Asked.of(config, **message)
    before = decide(policy, request, used, now)
    after = decide(data.draw(stricter(policy)), request, used, now)
    assert set(before.reasons) <= set(after.reasons)


@st.composite
def barely_enough(draw: st.DrawFn, config: Config, message: dict[str, Any], used: Usage) -> SitePolicy:
    """A policy made to fit a request: each limit at what is asked for."""
    training, rules, cost = config.training, config.secagg, message["privacy"]
    who = message["coordinator"]
    plain = cost is None or math.isnan(cost.epsilon) or cost.epsilon < 0
    spent = used.privacy.epsilon
    fits = not plain and spent >= 0 and cost.epsilon + spent > 0 and 0 < cost.delta + used.privacy.delta < 1
    memory = message["memory_mib"]
    return SitePolicy(
        version=1,
        timezone=draw(st.sampled_from(ZONES)),
        coordinators={who.name: who.fingerprint},
        bundles=("installed",) if message["bundle_installed"] else (HASHES[0],),
        preapproved=(),
        base_models=(message["base_model"],),
        metrics=config.federation.metrics,
        hours=None,
        peft=PeftLimits(methods=("lora",), max_rank=config.peft.rank),
        data=DataLimits(
            sources=(config.data.source,), files=config.data.files, columns=tuple(columns_of(config))
        ),
        limits=WorkLimits(
            rounds_per_day=used.rounds_today + 1,
            evaluations_per_day=used.evaluations_today + 1,
            steps_per_round=training.steps_per_round,
            tokens_per_round=training.steps_per_round * training.examples_per_step * config.data.max_tokens,
            seconds_per_round=config.federation.round_timeout_seconds,
            memory_mib=memory if math.isfinite(memory) else None,
        ),
        secure_aggregation=SecureAggregation(
            required=rules.enabled, k_min=rules.k_min, max_colluders=rules.max_colluders, max_clip_bound=None
        ),
        privacy=PrivacyBudget(epsilon=cost.epsilon + spent, delta=cost.delta + used.privacy.delta)
        if fits
        else None,
    )


@settings(deadline=None, max_examples=200)
@given(st.data(), configs(), messages, usages, moments)
def test_what_a_policy_was_made_for_is_accepted_and_a_stricter_one_is_within_its_own_limits(
    data: st.DataObject, config: Config, message: dict[str, Any], used: Usage, now: datetime
) -> None:
    if not message["bundle_installed"]:
        message = message | {"bundle": HASHES[0]}
    policy = data.draw(barely_enough(config, message, used))
    request = Asked.of(config, **message)
    assert decide(policy, request, used, now).accepted
    tighter = data.draw(stricter(policy))
    decision = decide(tighter, request, used, now)
    event(f"accepted {decision.accepted}")
    assert set(decision.reasons) == violations(tighter, config, message, used, now)
