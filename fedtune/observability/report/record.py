"""What the models say, and what it takes to repeat the run: configuration, model, machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedtune.observability import wording
from fedtune.observability.events import Generated, ModelLoaded, RunStarted
from fedtune.observability.markup import Markup, el
from fedtune.observability.report.parts import section, table

__all__ = ["reading", "record", "samples"]


def samples(generated: Sequence[Generated]) -> Markup | None:
    """Return each prompt with the answers before and after, side by side; None if there are none."""
    if not generated:
        return None
    return section(
        "In its own words",
        (
            el(
                "article",
                el("h3", el("span", sample.site, class_="eyebrow"), el("span", sample.prompt, class_="said")),
                el(
                    "div",
                    _answer("Base model", sample.before, "before"),
                    _answer("Federated model", sample.after, "after"),
                    class_="answers",
                ),
                el(
                    "p",
                    el("b", "The site's own answer "),
                    el("span", sample.reference, class_="said"),
                    class_="reference",
                ),
            )
            for sample in generated
        ),
        lead="Prompts from the held-out rows, answered greedily before and after. A few examples prove "
        "nothing, and a fluent answer may be wrong; the losses above are the measurement.",
    )


def _answer(title: str, content: str, class_: str) -> Markup:
    said = el("p", content, class_="said") if content.strip() else el("p", "(an empty answer)", class_="note")
    return el("div", el("h4", title), said, class_=class_)


def record(started: RunStarted | None, loaded: ModelLoaded | None, sessions: int) -> Markup | None:
    """Return the model, the machine and the whole configuration, folded."""
    if started is None:
        return None
    model = []
    if loaded is not None:
        share = loaded.adapter_parameters / loaded.parameters if loaded.parameters else None
        model = [
            ("Base model", loaded.name),
            ("Hash", loaded.hash),
            ("Parameters", wording.count(loaded.parameters)),
            ("Trained", f"{wording.count(loaded.adapter_parameters)} ({wording.percent(share)})"),
            ("Quantization", loaded.quantization),
            ("Arithmetic", loaded.compute_dtype),
        ]
    machine = [
        ("fedtune", started.version),
        *((key.replace("_", " "), _show(value)) for key, value in started.machine.items()),
    ]
    if sessions > 1:
        machine.append(("Sessions", f"{sessions}: the run was resumed; these are the facts of the last"))
    return section(
        "To repeat it",
        el("div", _facts("Model", model), _facts("Machine", machine), class_="pair")
        if model
        else _facts("Machine", machine),
        el(
            "details",
            el("summary", "The whole configuration"),
            table(
                "Configuration",
                ["Key", "Value"],
                [[el("code", k), v] for k, v in _flat(started.config)],
                words=(0, 1),
            ),
        ),
    )


def _facts(title: str, facts: Sequence[tuple[str, str]]) -> Markup:
    return el(
        "div",
        el("h3", title),
        el("dl", ((el("dt", name), el("dd", value)) for name, value in facts), class_="facts"),
    )


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Full keys, as one writes them on the command line, with plain keys before groups."""
    for key, value in sorted(config.items(), key=lambda item: isinstance(item[1], Mapping)):
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _show(value)


def _show(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(_show(item) for item in value) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_show(item)}" for key, item in value.items()) or "none"
    return str(value)


def reading() -> Markup:
    """Return what the words mean."""
    terms = {
        "Held-out loss": "How surprised a model is by the true answers in rows that trained nothing: the "
        "mean negative logarithm of the probability it gives each token of the response, in nats. A loss "
        "lower by 0.1 makes the true token about 10 % more likely, on average. Means over sites count every "
        "site alike.",
        "Federated": "One model, trained by all sites together; only changes to the adapter left a site.",
        "Each site alone": "One model for each site, trained on that site's rows only, with as many steps as "
        "the site took in the federation.",
        "All data pooled": "One model trained on all rows in one place, with as many steps as all sites took "
        "together: what federating would have to equal, where data may be moved.",
        "Chance": "This is one run with one seed. Differences of a few hundredths may turn around with "
        "another.",
    }
    return el(
        "details",
        el("summary", "How to read this report"),
        el("dl", ((el("dt", term), el("dd", meaning)) for term, meaning in terms.items()), class_="terms"),
        class_="reading",
    )
