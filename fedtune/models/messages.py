"""What other libraries would print or warn about where there is nothing for the reader to do."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as transformers_logging

__all__ = ["bars_on_terminals_only", "quiet_loading", "without_peft_warnings"]


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Keep transformers' progress bars and its table of misfitting weights off the screen.

    What the table would say, the caller finds in the loading information and says in fedtune's words.
    """
    source = logging.getLogger("transformers.modeling_utils")
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    source.addFilter(_is_no_load_report)
    try:
        yield
    finally:
        source.removeFilter(_is_no_load_report)
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _is_no_load_report(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()


@contextmanager
def bars_on_terminals_only() -> Iterator[None]:
    """Let a library's tqdm bar show on a terminal, and keep its hundreds of lines out of a log file."""
    if sys.stderr.isatty():
        yield
    else:
        # tqdm asks for sys.stderr when a bar starts; there is no switch for the bars of another library.
        with contextlib.redirect_stderr(io.StringIO()):
            yield


@contextmanager
def without_peft_warnings() -> Iterator[None]:
    """Hide two warnings of peft 0.21 about itself.

    It asks transformers 5.23 for a property by the name it had before; and, for the transposed layers of
    GPT-2 and its kin, it says that it has corrected its own default.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning
        )
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to", category=UserWarning)
        yield
