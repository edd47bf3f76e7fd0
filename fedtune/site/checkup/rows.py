"""The data that the policy names: readable, valid, large enough.

What is wrong with a row is told by its number and a code, and never by what it holds: a doctor's findings may
be sent to somebody else. `fedtune data check` shows the rows themselves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fedtune.config.schema import Config, DataConfig
from fedtune.data.load import Findings, read_all
from fedtune.data.partition import HeldOutSplit, split_held_out
from fedtune.data.templates import Tokenizer
from fedtune.data.tokenize import tokenize_all
from fedtune.errors import DataError, Problem
from fedtune.observability import wording
from fedtune.site.findings import Finding, failed, ok, warning
from fedtune.site.policy_schema import SitePolicy

__all__ = ["SiteRows", "data_of", "split_of"]

_SHOWN: Final = 5
_HARMLESS: Final = frozenset({"FT201", "FT202", "FT203"})
"""Problems whose words quote nothing of a file: not there, of another kind, empty."""


def data_of(config: DataConfig, policy: SitePolicy) -> DataConfig:
    """How this site reads its rows: as the configuration says, from the files that the policy names."""
    return dataclasses.replace(config, source="files", files=policy.data.files)


def split_of(rows: int, config: Config, site: str) -> HeldOutSplit:
    """Which of a site's rows train, and which never do.

    Args:
        rows: Usable rows of the site.
        config: Says how many are held out, and draws them.
        site: The site's name.
    """
    return split_held_out(rows, config.data, seed=config.seed, site=site)


@dataclass(kw_only=True)
class SiteRows:
    """A site's rows, looked at check by check.

    Attributes:
        config: Says how rows are read; of a coordinator, or fedtune's defaults.
        policy: Names the files.
        site: The site's name.
    """

    config: Config
    policy: SitePolicy
    site: str

    @property
    def data(self) -> DataConfig:
        """How the rows are read."""
        return data_of(self.config.data, self.policy)

    def sources(self) -> Iterator[Finding]:
        """What the policy lets be read, if that is no file."""
        if not self.policy.data.files:
            yield warning(
                "the policy names no file of rows",
                fix="name the site's files under data.files in site.yaml",
            )

    def file(self, path: str) -> Iterator[Finding]:
        """One file: its size, its rows, and every row that cannot be used by its number."""
        found = read_all(dataclasses.replace(self.data, files=(path,)))
        for problem in found.file_problems:
            yield _whole_file(path, problem)
        if found.row_problems:
            yield _bad_rows(found, self.data, check=path)
        if not found.file_problems and not found.row_problems:
            size = Path(path).expanduser().stat().st_size
            rows = wording.count(len(found.examples))
            yield ok(f"{rows} usable rows in {wording.bytes_(size)}")
        if not Path(path).is_absolute():
            yield warning(
                f"{path} depends on the folder that the client is started in",
                fix="write the whole path in site.yaml",
            )

    def together(self, tokenizer: Tokenizer | None) -> Iterator[Finding]:
        """All files as one: ids that occur twice, rows of a length, how many train and how many are held out.

        Args:
            tokenizer: Of the base model; None if that is not at hand.
        """
        found = read_all(self.data)
        repeated = [problem for problem in found.row_problems if problem.code == "FT212"]
        if repeated:
            duplicates = dataclasses.replace(found, row_problems=tuple(repeated), bad_rows=len(repeated))
            yield _bad_rows(duplicates, self.data, check=None)
        if found.examples:
            yield self._divided(found)
        if found.examples and tokenizer is not None:
            yield self._tokens(found, tokenizer)

    def _divided(self, found: Findings) -> Finding:
        split = split_of(len(found.examples), self.config, self.site)
        train, held_out, validation = len(split.train), len(split.held_out), len(split.validation)
        text = f"{wording.count(train)} rows train, {wording.count(held_out)} are held out"
        if validation:
            text += f", {wording.count(validation)} validate"
        if not train:
            return failed("FT855", text, fix="add rows: a site without any to train on cannot take part")
        if not held_out:
            return warning(
                text, fix="add rows, or say no held-out loss: this site cannot tell whether training helps"
            )
        return ok(text)

    def _tokens(self, found: Findings, tokenizer: Any) -> Finding:
        try:
            rows = tokenize_all(found.examples, tokenizer, self.data)
        except DataError as error:
            return failed(
                "FT855",
                f"{wording.count(len(error.problems))} rows do not go with the model's template "
                f"({', '.join(sorted({problem.code for problem in error.problems}))})",
                fix="fedtune data check shows them; ask the coordinator whether data.template is right",
            )
        cut = sum(row.cut_tokens > 0 for row in rows)
        longest = max(len(row.token_ids) + row.cut_tokens for row in rows)
        most = self.data.max_tokens
        text = f"the longest row has {wording.count(longest)} tokens"
        if cut:
            return warning(
                f"{text}, {wording.count(cut)} are cut to data.max_tokens={most}",
                fix="shorten them, or ask the coordinator for a larger data.max_tokens",
            )
        return ok(f"{text}, data.max_tokens is {most}")


def _whole_file(path: str, problem: Problem) -> Finding:
    if problem.code in _HARMLESS:
        return failed("FT855", f"{problem.what} ({problem.code})", fix=problem.fix)
    return failed(
        "FT855",
        f"it cannot be read as rows ({problem.code})",
        fix=f"fedtune data check {path} says where and why",
    )


def _bad_rows(found: Findings, data: DataConfig, *, check: str | None) -> Finding:
    total = len(found.examples) + found.bad_rows
    text = f"{wording.count(found.bad_rows)} of {wording.count(total)} rows cannot be used: "
    text += _listed(found.row_problems)
    fix = f"fedtune data check {check or 'FILE'} shows them; mend them in the file"
    if data.on_bad_row == "skip" and found.examples:
        return warning(f"{text}; they are left out", fix=fix)
    return failed("FT855", text, fix=fix)


def _listed(problems: Sequence[Problem]) -> str:
    """Where the first problems are, with their codes and without a word of the rows."""
    shown = "; ".join(f"{_place(problem.where)} ({problem.code})" for problem in problems[:_SHOWN])
    more = len(problems) - _SHOWN
    return f"{shown}; and {wording.count(more)} more" if more > 0 else shown


def _place(where: str) -> str:
    """Which row, out of the words of `fedtune.data.parse.locate`."""
    rows = [part for part in where.split(", ") if part.startswith("row ") and part[4:].isdecimal()]
    return rows[-1] if rows else "a row"
