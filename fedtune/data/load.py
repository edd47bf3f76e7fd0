"""From a configuration to examples, with every problem of every file reported at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import entry_points

from fedtune.config.keys import similar
from fedtune.config.rules import COLUMN_ROLES
from fedtune.config.schema import DataConfig
from fedtune.data.examples import Example
from fedtune.data.parse import Row, locate, parse_file
from fedtune.data.rows import choose_format, read_row
from fedtune.errors import DataError, Problem

__all__ = ["DATASETS_GROUP", "Findings", "LoadedData", "dataset_names", "load_examples", "read_all"]

DATASETS_GROUP = "fedtune.datasets"
"""Entry-point group of dataset plug-ins: a callable that takes a DataConfig and gives Examples."""


@dataclass(frozen=True, kw_only=True)
class LoadedData:
    """Examples ready for use.

    Attributes:
        examples: In the order of the files; ids are unique.
        skipped: Everything wrong with the rows that ``data.on_bad_row=skip`` left out.
        skipped_rows: How many rows that were; a row may have several problems.
        notes: What else a reader of the report should know about the data.
    """

    examples: tuple[Example, ...]
    skipped: tuple[Problem, ...] = ()
    skipped_rows: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything that reading a dataset found, good and bad.

    Attributes:
        examples: The good rows.
        row_problems: What is wrong with single rows.
        bad_rows: How many rows that concerns.
        file_problems: What is wrong with whole files; no setting skips these.
        notes: What else a reader should know.
    """

    examples: tuple[Example, ...] = ()
    row_problems: tuple[Problem, ...] = ()
    bad_rows: int = 0
    file_problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()


def load_examples(data: DataConfig) -> LoadedData:
    """Load and validate the dataset that a configuration names.

    Args:
        data: Source, files, format, column renames, and what to do with bad rows.

    Raises:
        DataError: With all problems of all files. ``data.on_bad_row=skip`` goes on where only single rows
            are bad and at least one is good.
    """
    found = read_all(data)
    if found.file_problems:
        rows = found.row_problems if data.on_bad_row == "refuse" else ()
        raise DataError((*found.file_problems, *rows))
    if found.row_problems and data.on_bad_row == "refuse":
        raise DataError(found.row_problems)
    if not found.examples:
        problem = Problem(
            code="FT213",
            what=f"expected at least one usable row, got none; {found.bad_rows} bad rows were skipped",
            where="data.files" if data.source == "files" else f"data.source={data.source}",
            fix="repair the rows, which are listed after this",
        )
        raise DataError((problem, *found.row_problems))
    return LoadedData(
        examples=found.examples,
        skipped=found.row_problems,
        skipped_rows=found.bad_rows,
        notes=found.notes,
    )


def read_all(data: DataConfig) -> Findings:
    """Read a dataset and keep what is good beside what is wrong; raises nothing for bad data.

    Args:
        data: As for :func:`load_examples`.
    """
    try:
        if data.source == "files":
            return _read_files(data)
        if data.source == "hpo":
            from fedtune.data.hpo import load_hpo  # noqa: PLC0415 - read only where it is asked for

            examples, notes = load_hpo()
            return Findings(examples=examples, notes=notes)
        return _read_plugin(data)
    except DataError as error:
        return Findings(file_problems=error.problems)


def dataset_names() -> tuple[str, ...]:
    """The values that ``data.source`` takes on this machine."""
    return ("hpo", "files", *sorted(entry_points(group=DATASETS_GROUP).names))


def _read_files(data: DataConfig) -> Findings:
    file_problems = _config_problems(data)
    row_problems: list[Problem] = []
    bad_rows = 0
    examples: list[Example] = []
    first_seen: dict[str, str] = {}
    for path in dict.fromkeys(data.files):
        file = parse_file(path)
        file_problems.extend(file.problems)
        if not file.rows:
            continue
        row_format = choose_format(file, data.format, data.columns)
        if isinstance(row_format, Problem):
            if any(isinstance(row, Row) for row in file.rows):
                file_problems.append(row_format)
            bad = [row for row in file.rows if isinstance(row, Problem)]
            row_problems.extend(bad)
            bad_rows += len(bad)
            continue
        for row in file.rows:
            read = (row,) if isinstance(row, Problem) else read_row(row, path, row_format)
            if isinstance(read, Example):
                where = locate(path, row.number if isinstance(row, Row) else None, row_format.columns["id"])
                first = first_seen.setdefault(read.id, where)
                if first == where:
                    examples.append(read)
                    continue
                read = (_duplicate(read.id, first, where),)
            row_problems.extend(read)
            bad_rows += 1
    return Findings(
        examples=tuple(examples),
        row_problems=tuple(row_problems),
        bad_rows=bad_rows,
        file_problems=tuple(file_problems),
    )


def _duplicate(identifier: str, first: str, where: str) -> Problem:
    return Problem(
        code="FT212",
        what=f"expected an id that no other row has, got {identifier!r}, which is the id of {first}",
        where=where,
        fix="give the row its own id, or drop it; without an id column rows are named FILE:ROW",
    )


def _config_problems(data: DataConfig) -> list[Problem]:
    problems = []
    if not data.files:
        problems.append(
            Problem(
                code="FT201",
                what="expected at least one file, got none",
                where="data.files",
                fix="name the files: data.files=[notes.jsonl]",
            )
        )
    problems.extend(
        Problem(
            code="FT201",
            what=f"expected each file once, got {path!r} {data.files.count(path)} times",
            where="data.files",
            fix="name it once",
        )
        for path in dict.fromkeys(data.files)
        if data.files.count(path) > 1
    )
    for role in data.columns:
        if role not in COLUMN_ROLES:
            guess = similar(role, COLUMN_ROLES)
            problems.append(
                Problem(
                    code="FT218",
                    what=f"expected one of the roles {', '.join(COLUMN_ROLES)}, got {role!r}",
                    where=f"data.columns.{role}",
                    fix=f"did you mean {guess}?" if guess else "write data.columns={ROLE: COLUMN}",
                )
            )
    return problems


def _read_plugin(data: DataConfig) -> Findings:
    where = f"data.source={data.source}"
    found = entry_points(group=DATASETS_GROUP, name=data.source)
    if not found:
        names = dataset_names()
        guess = similar(data.source, names)
        raise DataError(
            Problem(
                code="FT215",
                what=f"expected one of {', '.join(names)}, got {data.source!r}",
                where=where,
                fix=f"did you mean {guess}?"
                if guess
                else f"install the package that offers it as a {DATASETS_GROUP} entry point",
            )
        )
    plugin = next(iter(found))
    try:
        loaded = list(plugin.load()(data))
    except DataError:
        raise
    except Exception as error:  # foreign code may raise anything
        raise DataError(
            Problem(
                code="FT215",
                what=f"the dataset {plugin.value} failed: {type(error).__name__}: {error}",
                where=where,
                fix="report it to the author of the dataset's package",
            )
        ) from error
    return _check_plugin_rows(loaded, where)


def _check_plugin_rows(rows: Iterable[object], where: str) -> Findings:
    examples: list[Example] = []
    problems: list[Problem] = []
    seen: dict[str, str] = {}
    for number, row in enumerate(rows, start=1):
        place = locate(where, number)
        if not isinstance(row, Example):
            problems.append(
                Problem(
                    code="FT206",
                    what=f"expected a fedtune.data.examples.Example, got a {type(row).__name__}",
                    where=place,
                    fix="report it to the author of the dataset's package",
                )
            )
        elif not row.response.strip():
            problems.append(
                Problem(
                    code="FT208",
                    what=f"expected text that is not empty, got {row.response[:20]!r}",
                    where=f"{place}, field response",
                    fix="fill it in, or drop the row",
                )
            )
        elif seen.setdefault(row.id, place) != place:
            problems.append(_duplicate(row.id, seen[row.id], place))
        else:
            examples.append(row)
    empty = () if examples or problems else (_no_rows(where),)
    return Findings(
        examples=tuple(examples),
        row_problems=tuple(problems),
        bad_rows=len(problems),
        file_problems=empty,
    )


def _no_rows(where: str) -> Problem:
    return Problem(
        code="FT203",
        what="the dataset is empty: expected at least one row",
        where=where,
        fix="check the options of the dataset",
    )
