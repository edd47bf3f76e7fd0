"""What looks for the canary finds it in each form, wherever it stands, and nothing else."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from textwrap import wrap
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.canary import assert_no_trace, traces

CANARY = 'Zaunkönig "77" im Garten'

ENCODERS = {
    "plain": lambda text: text.encode(),
    "utf-16": lambda text: text.encode("utf-16"),
    "utf-32": lambda text: text.encode("utf-32-be"),
    "json": lambda text: json.dumps({"row": text}).encode(),
    "json in json": lambda text: json.dumps({"row": json.dumps([text])}).encode(),
    "repr": lambda text: ascii(ValueError(text)).encode(),
    "url": lambda text: quote(text).encode(),
    "hex": lambda text: text.encode().hex().encode(),
    "upper hex": lambda text: text.encode().hex().upper().encode(),
    "base64": lambda text: base64.b64encode(text.encode()),
    "base64 of utf-16": lambda text: base64.b64encode(text.encode("utf-16-le")),
    "url-safe base64": lambda text: base64.urlsafe_b64encode(text.encode()),
    "base64 in lines": lambda text: base64.encodebytes(text.encode()),
    "hex in indented lines": lambda text: "\n    ".join(wrap(text.encode().hex(), 32)).encode(),
}


@pytest.mark.parametrize("form", ENCODERS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=st.text(max_size=9), after=st.text(max_size=9), noise=st.binary(max_size=40))
def test_it_is_found_in_each_form_whatever_stands_around_it(
    form: str, before: str, after: str, noise: bytes, tmp_path: Path
) -> None:
    (tmp_path / "below").mkdir(exist_ok=True)
    (tmp_path / "below" / "file").write_bytes(noise + ENCODERS[form](before + CANARY + after) + noise)
    with pytest.raises(AssertionError, match="the canary was found"):
        assert_no_trace(tmp_path, CANARY)


def test_it_is_found_in_a_name(tmp_path: Path) -> None:
    (tmp_path / f"run {CANARY}").mkdir()
    assert traces(tmp_path, CANARY)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=2_000))
def test_nothing_else_is_taken_for_it(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(data)
    assert_no_trace(tmp_path, CANARY)


def test_one_that_is_too_short_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 12"):
        traces(tmp_path, "short")
