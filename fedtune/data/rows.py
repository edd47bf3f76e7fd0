"""From the fields of a row to an example: which columns hold what, and what is wrong with a row.

====================  ==========================================  ========================================
format                columns                                     becomes
====================  ==========================================  ========================================
``alpaca``            ``instruction``, ``output``, ``input``      user turn (input after a blank line),
                      (optional)                                  assistant turn
``prompt_response``   ``prompt``, ``response``                    user turn, assistant turn
``messages``          ``messages`` (OpenAI: role, content) or     the same turns
                      ``conversations`` (ShareGPT: from, value)
``text``              ``text``                                    plain text
====================  ==========================================  ========================================

In every format ``id`` names the row; without it the id is ``FILE:ROW``. All other columns with one value a
row (text, numbers, dates) become strings in ``Example.columns``.
"""

from __future__ import annotations

import contextlib
import datetime
import decimal
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fedtune.data.examples import Example, Role, Turn
from fedtune.data.parse import ParsedFile, Row, describe, locate, undecodable
from fedtune.errors import Problem

__all__ = ["RowFormat", "choose_format", "columns_read", "read_row"]

_REQUIRED: dict[str, tuple[str, ...]] = {
    # The order in which `auto` tries them: Alpaca files on the Hub often carry a rendered `text` column too.
    "messages": ("messages",),
    "alpaca": ("instruction", "output"),
    "prompt_response": ("prompt", "response"),
    "text": ("text",),
}
_OPTIONAL: dict[str, tuple[str, ...]] = {"alpaca": ("input",)}

_SPEAKERS: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
_LABEL_TYPES = (str, bool, int, float, decimal.Decimal, datetime.date, datetime.time)


@dataclass(frozen=True, kw_only=True)
class RowFormat:
    """What the rows of one file hold.

    Attributes:
        name: ``alpaca``, ``prompt_response``, ``messages`` or ``text``.
        columns: Role to the column that holds it, ``id`` included.
        demanded: Roles that every row must have: the format's own and those that ``data.columns`` names.
    """

    name: str
    columns: Mapping[str, str]
    demanded: tuple[str, ...]


def choose_format(file: ParsedFile, name: str, renames: Mapping[str, str]) -> RowFormat | Problem:
    """Decide what a file's rows hold.

    ``auto`` takes the first row that fits a format, so that one bad row at the top does not hide the rest.

    Args:
        file: A file with at least one row.
        name: ``data.format``.
        renames: ``data.columns``.
    """
    first = next((row for row in file.rows if isinstance(row, Row)), None)
    header: Iterable[str] = file.columns or (first.fields if first else ())
    if name != "auto":
        row_format = _named(name, set(header), renames)
        missing = [row_format.columns[role] for role in row_format.demanded] if file.columns else []
        missing = [column for column in missing if column not in set(header)]
        return _missing_columns(file, name, missing, header) if missing else row_format
    candidates = (
        [set(file.columns)] if file.columns else [set(r.fields) for r in file.rows if isinstance(r, Row)]
    )
    for present in candidates:
        for candidate in _REQUIRED:
            row_format = _named(candidate, present, renames)
            if all(row_format.columns[role] in present for role in row_format.demanded):
                return row_format
    return _no_format(file, list(header), renames)


def columns_read(name: str, renames: Mapping[str, str]) -> frozenset[str]:
    """Return every column that becomes a part of an example, or its id, whatever the file holds.

    Args:
        name: ``data.format``; ``auto`` may turn out to be any of the formats.
        renames: ``data.columns``.
    """
    columns = {"conversations"} if name in ("auto", "messages") and "messages" not in renames else set()
    for candidate in _REQUIRED if name == "auto" else (name,):
        columns.update(_named(candidate, {"messages"}, renames).columns.values())
    return frozenset(columns)


def _named(name: str, present: set[str], renames: Mapping[str, str]) -> RowFormat:
    roles = (*_REQUIRED[name], *_OPTIONAL.get(name, ()), "id")
    columns = {role: renames.get(role, role) for role in roles}
    if name == "messages" and "messages" not in renames and "messages" not in present:
        columns["messages"] = "conversations" if "conversations" in present else "messages"
    demanded = tuple(role for role in roles if role in _REQUIRED[name] or role in renames)
    return RowFormat(name=name, columns=columns, demanded=demanded)


def _missing_columns(file: ParsedFile, name: str, missing: list[str], header: Iterable[str]) -> Problem:
    return Problem(
        code="FT207",
        what=f"expected the columns of format {name}, of which {missing!r} is missing; got {list(header)!r}",
        where=locate(file.path, 1 if file.path.lower().endswith(".csv") else None, ", ".join(missing)),
        fix="add the column, or say which one holds it: data.columns={ROLE: COLUMN}"
        + _separator_hint(header),
    )


def _no_format(file: ParsedFile, header: list[str], renames: Mapping[str, str]) -> Problem:
    missing = {}
    for candidate in _REQUIRED:
        row_format = _named(candidate, set(header), renames)
        needed = [row_format.columns[role] for role in row_format.demanded]
        missing[candidate] = [column for column in needed if column not in header]
    closest = min(missing, key=lambda name: len(missing[name]) / len(_named(name, set(), renames).demanded))
    if len(missing[closest]) < len(_named(closest, set(), renames).demanded):
        return _missing_columns(file, closest, missing[closest], header)
    wanted = "; ".join(f"{name}: {', '.join(columns)}" for name, columns in missing.items())
    return Problem(
        code="FT214",
        what=f"expected the columns of one of the formats ({wanted}), got {header!r}",
        where=locate(file.path),
        fix="say which column holds what: data.format=NAME and data.columns={ROLE: COLUMN}"
        + _separator_hint(header),
    )


def _separator_hint(header: Iterable[str]) -> str:
    names = list(header)
    split_by = next((mark for mark in (";", "\t") if len(names) == 1 and mark in names[0]), None)
    return f"; the cells look separated by {split_by!r}: save the file with commas" if split_by else ""


def read_row(row: Row, path: str, row_format: RowFormat) -> Example | tuple[Problem, ...]:
    """Turn one row into an example, or list everything that is wrong with it.

    Args:
        row: The row.
        path: Its file, for the messages and the default id.
        row_format: What the file's rows hold.
    """
    reader = _RowReader(row, path, row_format)
    turns: tuple[Turn, ...] = ()
    text: str | None = None
    context: str | None = None
    if row_format.name == "messages":
        turns = reader.conversation()
    elif row_format.name == "text":
        text = reader.text("text")
    elif row_format.name == "prompt_response":
        turns = _question(reader.text("prompt"), reader.text("response"))
    else:
        instruction, output = reader.text("instruction"), reader.text("output")
        context = reader.text("input", needed=False) or None
        turns = _question(f"{instruction}\n\n{context}" if context else instruction, output)
    identifier = reader.identifier()
    columns = reader.labels()
    if reader.problems:
        return tuple(reader.problems)
    return Example(id=identifier, turns=turns, text=text, columns=columns, input=context)


def _question(prompt: str, response: str) -> tuple[Turn, ...]:
    return Turn(role="user", content=prompt), Turn(role="assistant", content=response)


class _RowReader:
    """Reads the roles of one row and gathers what is wrong on the way."""

    def __init__(self, row: Row, path: str, row_format: RowFormat) -> None:
        self._row = row
        self._path = path
        self._format = row_format
        self.problems: list[Problem] = []

    def _problem(self, code: str, what: str, field: str, fix: str) -> None:
        where = locate(self._path, self._row.number, field)
        self.problems.append(Problem(code=code, what=what, where=where, fix=fix))

    def text(self, role: str, *, needed: bool = True) -> str:
        column = self._format.columns[role]
        if column not in self._row.fields:
            if role in self._format.demanded:
                got = f"got the fields {list(self._row.fields)!r}"
                self._problem("FT207", f"expected the field {column!r}, {got}", column, "add it to the row")
            return ""
        return self._checked(self._row.fields[column], column, needed=needed)

    def _checked(self, value: object, field: str, *, needed: bool = True) -> str:
        """The value as text; "" after noting what is wrong with it."""
        if value is not None and not isinstance(value, str):
            self._problem(
                "FT209", f"expected text, got {describe(value)}", field, "write it as text in quotes"
            )
            return ""
        if value is None or not value.strip():
            if needed:
                got = "null" if value is None else repr(value[:20])
                self._problem(
                    "FT208",
                    f"expected text that is not empty, got {got}",
                    field,
                    "fill it in, or drop the row",
                )
            return ""
        if not _is_unicode(value):
            what = "expected Unicode text, got half of a surrogate pair"
            self.problems.append(undecodable(self._path, self._row.number, field, what))
            return ""
        return value

    def identifier(self) -> str:
        column = self._format.columns["id"]
        value = self._row.fields.get(column)
        if "id" in self._format.demanded and column not in self._row.fields:
            self._problem("FT207", f"expected the field {column!r}, got none", column, "add it to the row")
        elif isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        elif value is not None:
            value = self._checked(value, column, needed=False)
        return str(value) if value else f"{self._path}:{self._row.number}"

    def labels(self) -> dict[str, str]:
        taken = set(self._format.columns.values())
        labels = {}
        for column, value in self._row.fields.items():
            if column in taken or not isinstance(value, _LABEL_TYPES):
                continue
            label = json.dumps(value) if isinstance(value, bool) else str(value)
            if not _is_unicode(column + label):
                what = "expected Unicode text, got half of a surrogate pair"
                shown = column.encode("utf-8", "backslashreplace").decode()
                self.problems.append(undecodable(self._path, self._row.number, shown, what))
            labels[column] = label
        return labels

    def conversation(self) -> tuple[Turn, ...]:
        column = self._format.columns["messages"]
        if column not in self._row.fields:
            self.text("messages")
            return ()
        messages = self._row.fields[column]
        if isinstance(messages, str):  # a CSV cell holds the list as JSON
            with contextlib.suppress(ValueError, RecursionError):
                messages = json.loads(messages)
        if not isinstance(messages, list):
            what = f"expected a list of messages, got {describe(messages)}"
            self._problem("FT209", what, column, 'write [{"role": "user", "content": "..."}, ...]')
            return ()
        before = len(self.problems)
        turns = [self._turn(message, f"{column}[{index}]") for index, message in enumerate(messages)]
        if len(self.problems) > before:
            return ()
        said = tuple(turn for turn in turns if turn is not None)
        self._check_order(said, column)
        return said

    def _turn(self, message: object, field: str) -> Turn | None:
        if not isinstance(message, dict):
            what = f"expected a message, got {describe(message)}"
            self._problem("FT209", what, field, 'write {"role": "user", "content": "..."}')
            return None
        sharegpt = message.get("role") is None and message.get("from") is not None
        who, what_said = ("from", "value") if sharegpt else ("role", "content")
        missing = [key for key in (who, what_said) if key not in message]
        for key in missing:
            got = f"got the fields {list(message)!r}"
            self._problem(
                "FT207", f"expected the field {key!r}, {got}", f"{field}.{key}", "add it to the message"
            )
        if missing:
            return None
        speaker = message[who]
        role = _SPEAKERS.get(speaker) if isinstance(speaker, str) else None
        if role is None:
            what = f"expected one of the roles {', '.join(_SPEAKERS)}, got {describe(speaker)}"
            self._problem("FT210", what, f"{field}.{who}", "rename the role, or drop the row")
        # An empty system message says nothing: the row is one that has none.
        content = self._checked(message[what_said], f"{field}.{what_said}", needed=role != "system")
        return Turn(role=role, content=content) if role and content else None

    def _check_order(self, turns: tuple[Turn, ...], column: str) -> None:
        roles = [turn.role for turn in turns]
        if not roles or roles[-1] != "assistant":
            got = f"one that ends with the {roles[-1]}" if roles else "no messages"
            what = f"expected a conversation that ends with the assistant, got {got}"
            self._problem("FT211", what, column, "drop what follows the last answer, or drop the row")
        elif "user" not in roles:
            what = "expected a user message before the answer, got none"
            self._problem("FT211", what, column, "add the question, or use format text")
        elif "system" in roles[1:]:
            what = f"expected the system message first, got it as message {roles.index('system', 1) + 1}"
            self._problem("FT211", what, column, "move it to the front, or drop it")


def _is_unicode(text: str) -> bool:
    """Whether a tokenizer can take it: JSON can hold half a surrogate pair, UTF-8 cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
