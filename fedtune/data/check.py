"""What the model will see of a dataset, and everything that is wrong with it, before anything is trained.

Works without a model: rows are then written in a built-in template and measured in characters.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fedtune.config.schema import DataConfig, ModelConfig
from fedtune.data.examples import Example
from fedtune.data.load import Findings, dataset_names, read_all
from fedtune.data.templates import Tokenizer, render
from fedtune.data.tokenize import TokenizedExample, tokenize_all
from fedtune.errors import DataError, FedtuneError, Problem

__all__ = ["CheckReport", "Lengths", "Sample", "Segment", "check", "run_data_check"]

_MOST_VALUES = 50
"""A column with more different values is no label to split by, and is not listed."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Consecutive tokens of a sample, decoded; ``in_loss`` says whether the model learns to write them."""

    text: str
    in_loss: bool


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One row as the model sees it."""

    id: str
    segments: tuple[Segment, ...]
    cut_tokens: int

    def as_text(self) -> str:
        """The row with what the loss sees between ⟦ and ⟧."""
        return "".join(f"⟦{part.text}⟧" if part.in_loss else part.text for part in self.segments)


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """How long rows are before any cut, in ``unit``."""

    unit: Literal["tokens", "characters"]
    median: float
    p95: float
    max: int


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """The result of checking a dataset.

    Attributes:
        source: The file or dataset.
        ok: Whether a run with this configuration would take it.
        rows: Usable rows.
        bad_rows: Rows with problems; left out under ``data.on_bad_row=skip``.
        problems: Everything wrong with the file, its rows and the template.
        row_lengths: Length of whole rows; None without usable rows.
        response_lengths: Length of what the loss sees.
        truncated: Rows longer than ``data.max_tokens``; None without a tokenizer.
        repeated: Usable rows with the same content as an earlier one: they may train and be held out.
        labels: Columns that could name a site, with the rows of each value.
        samples: Rows as the model sees them.
        notes: What else to know.
    """

    source: str
    ok: bool
    rows: int
    bad_rows: int
    problems: tuple[Problem, ...]
    row_lengths: Lengths | None
    response_lengths: Lengths | None
    truncated: int | None
    repeated: int
    labels: dict[str, dict[str, int]]
    samples: tuple[Sample, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON can hold it."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What a template makes of the rows."""

    unit: Literal["tokens", "characters"]
    rows: Sequence[int] = ()
    responses: Sequence[int] = ()
    truncated: int | None = None
    samples: tuple[Sample, ...] = ()
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()


def check(data: DataConfig, tokenizer: Tokenizer | None, *, show: int = 3) -> CheckReport:
    """Read a dataset and describe it; bad data is in the report, never raised.

    Args:
        data: What to read, and how.
        tokenizer: A fast tokenizer of the base model, or None: lengths are then counted in characters, and
            ``template=tokenizer`` is shown as ``chatml``.
        show: Rows to show as the model sees them: the first ones, and the longest in place of the last.
    """
    found = read_all(data)
    seen = _with_tokenizer(found.examples, tokenizer, data, show) if tokenizer else _plain(found, data, show)
    repeated = len(found.examples) - len({(example.turns, example.text) for example in found.examples})
    notes = (*found.notes, *seen.notes)
    if repeated:
        notes = (*notes, f"{repeated} rows repeat another row: the same text may train and be held out")
    skipping = data.on_bad_row == "skip" and bool(found.examples)
    return CheckReport(
        source=", ".join(data.files) if data.source == "files" else data.source,
        ok=not found.file_problems and not seen.problems and (not found.row_problems or skipping),
        rows=len(found.examples),
        bad_rows=found.bad_rows,
        problems=(*found.file_problems, *found.row_problems, *seen.problems),
        row_lengths=_lengths(seen.rows, seen.unit),
        response_lengths=_lengths(seen.responses, seen.unit),
        truncated=seen.truncated,
        repeated=repeated,
        labels=_labels(found.examples),
        samples=seen.samples,
        notes=notes,
    )


def run_data_check(
    path: str,
    *,
    overrides: DataConfig,
    model: ModelConfig | None,
    as_json: bool,
    show: int = 3,
    load_tokenizer: Callable[[ModelConfig], Tokenizer] | None = None,
) -> int:
    """``fedtune data check PATH``: print the report; human text to stderr, JSON to stdout.

    Args:
        path: A file, or the name of a dataset such as ``hpo``.
        overrides: Everything of the data configuration but the source.
        model: Whose tokenizer to use; None for none.
        as_json: Print one JSON object to stdout.
        show: Rows to show as the model sees them.
        load_tokenizer: Loads the tokenizer of a model. It is handed in because models come after data in
            the flow; without it the check goes on as without a model.

    Returns:
        The exit code: 0 when a run would take the data, else that of a DataError.
    """
    from fedtune.data.check_view import print_json, print_report  # noqa: PLC0415 - rich takes time to import

    tokenizer, reason = None, "no model was named"
    if model is not None and load_tokenizer is not None:
        try:
            tokenizer = load_tokenizer(model)
        except FedtuneError as error:
            reason = error.problems[0].what
    named = path in dataset_names() and path != "files" and not Path(path).exists()
    source, files = (path, ()) if named else ("files", (path,))
    report = check(dataclasses.replace(overrides, source=source, files=files), tokenizer, show=show)
    if tokenizer is None:
        report = dataclasses.replace(report, notes=(*report.notes, f"no tokenizer: {reason}"))
    if as_json:
        print_json(report)
    else:
        print_report(report, overrides)
    return 0 if report.ok else DataError.exit_code


def _with_tokenizer(examples: Sequence[Example], tokenizer: Tokenizer, data: DataConfig, show: int) -> _Seen:
    try:
        rows = tokenize_all(examples, tokenizer, data)
    except DataError as error:
        return _Seen(unit="tokens", problems=error.problems)
    whole = [len(row.token_ids) + row.cut_tokens for row in rows]
    return _Seen(
        unit="tokens",
        rows=whole,
        responses=[int(row.loss_mask.sum()) for row in rows],
        truncated=sum(row.cut_tokens > 0 for row in rows),
        samples=tuple(_decoded(rows[index], tokenizer) for index in _shown(whole, show)),
    )


def _decoded(row: TokenizedExample, tokenizer: Tokenizer) -> Sample:
    borders = [0, *(np.flatnonzero(np.diff(row.loss_mask)) + 1).tolist(), len(row.token_ids)]
    segments = tuple(
        Segment(
            text=str(tokenizer.decode(row.token_ids[start:end].tolist(), clean_up_tokenization_spaces=False)),
            in_loss=bool(row.loss_mask[start]),
        )
        for start, end in itertools.pairwise(borders)
    )
    return Sample(id=row.id, segments=segments, cut_tokens=row.cut_tokens)


def _plain(found: Findings, data: DataConfig, show: int) -> _Seen:
    notes = ["lengths are counted in characters"]
    if data.template == "tokenizer":
        data = dataclasses.replace(data, template="chatml")
        notes.append("rows are shown in the chatml template in place of the tokenizer's own")
    texts = [render(example, data, None) for example in found.examples]
    whole = [len(text.prompt) + len(text.response) for text in texts]
    samples = []
    for index in _shown(whole, show):
        parts = ((texts[index].prompt, False), (texts[index].response, True))
        segments = tuple(Segment(text=text, in_loss=in_loss) for text, in_loss in parts if text)
        samples.append(Sample(id=found.examples[index].id, segments=segments, cut_tokens=0))
    return _Seen(
        unit="characters",
        rows=whole,
        responses=[len(text.response) for text in texts],
        samples=tuple(samples),
        notes=tuple(notes),
    )


def _shown(lengths: Sequence[int], show: int) -> list[int]:
    """The first rows, and the longest in place of the last: that is where a cut shows."""
    first = list(range(min(show, len(lengths))))
    if not first:
        return []
    longest = int(np.argmax(lengths))
    return first if longest in first or show == 1 else [*first[:-1], longest]


def _lengths(values: Sequence[int], unit: Literal["tokens", "characters"]) -> Lengths | None:
    if not values:
        return None
    median, p95 = np.percentile(values, [50, 95])
    return Lengths(unit=unit, median=round(float(median), 1), p95=round(float(p95), 1), max=int(max(values)))


def _labels(examples: Sequence[Example]) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = {}
    for example in examples:
        for column, value in example.columns.items():
            counts.setdefault(column, Counter())[value] += 1
    return {
        column: dict(values.most_common())
        for column, values in counts.items()
        if len(values) <= min(_MOST_VALUES, max(1, len(examples) // 2))
    }
