from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from support.datasets import data_config
from support.tiny_model import make_tokenizer

from fedtune.config.schema import ModelConfig
from fedtune.data.check import CheckReport, check, run_data_check
from fedtune.data.check_view import print_report
from fedtune.errors import ModelError, Problem

MODEL = ModelConfig(name="tiny", quantization="none", compute_dtype="auto", device="cpu", cache_dir=None)
HEAD, TAIL = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def good(tmp_path: Path) -> Path:
    rows = [
        {"prompt": "Q" * n, "response": "A" * (n % 7 + 1), "site": "north" if n % 3 else "south"}
        for n in range(1, 60)
    ]
    return write(tmp_path / "good.jsonl", *rows)


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    rows = [
        {"prompt": "Q", "response": "A"},
        {"prompt": "Q", "response": " "},
        {"prompt": 3, "response": None},
    ]
    return write(tmp_path / "bad.jsonl", *rows)


def shown(report: CheckReport, **changes: object) -> str:
    stream = io.StringIO()
    print_report(report, data_config(**changes), console=Console(file=stream, width=100))
    return stream.getvalue()


def test_lengths_are_those_of_whole_rows_in_tokens(good: Path) -> None:
    report = check(data_config(good, max_tokens=70), make_tokenizer())
    # one token a byte, and one for each mark
    marks = len(HEAD + TAIL) - len("<|im_start|>") * 2 - len("<|im_end|>") + 3
    lengths = [marks + n + n % 7 + 1 + 1 for n in range(1, 60)]
    assert report.row_lengths is not None
    assert report.row_lengths.unit == "tokens"
    assert report.row_lengths.median == np.median(lengths)
    assert report.row_lengths.max == max(lengths)
    assert report.row_lengths.p95 == pytest.approx(np.percentile(lengths, 95), abs=0.05)
    assert report.response_lengths is not None
    assert report.response_lengths.max == 8
    assert report.truncated == sum(length > 70 for length in lengths)
    assert (report.ok, report.rows, report.problems) == (True, 59, ())
    assert report.labels == {"site": {"north": 40, "south": 19}}


def test_samples_show_what_the_model_sees_and_what_it_learns(good: Path) -> None:
    report = check(data_config(good), make_tokenizer(), show=2)
    first, longest = report.samples
    assert first.as_text() == f"{HEAD}Q{TAIL}⟦AA<|im_end|>⟧"
    assert longest.as_text() == f"{HEAD}{'Q' * 59}{TAIL}⟦AAAA<|im_end|>⟧"
    assert longest.cut_tokens == 0
    cut = check(data_config(good, max_tokens=40), make_tokenizer(), show=2).samples[1]
    assert cut.cut_tokens > 0
    assert cut.as_text().endswith(f"{TAIL}⟦AAAA<|im_end|>⟧")
    assert check(data_config(good), make_tokenizer(), show=0).samples == ()


def test_plain_text_shows_that_its_first_token_is_not_learnt(tmp_path: Path) -> None:
    report = check(data_config(write(tmp_path / "t.jsonl", {"text": "abc"})), make_tokenizer())
    assert report.samples[0].as_text() == "a⟦bc<|im_end|>⟧"


def test_bad_rows_are_refused_or_left_out_and_the_good_ones_described(bad: Path) -> None:
    refused = check(data_config(bad), make_tokenizer())
    assert (refused.ok, refused.rows, refused.bad_rows) == (False, 1, 2)
    assert [problem.code for problem in refused.problems] == ["FT208", "FT209", "FT208"]
    skipped = check(data_config(bad, on_bad_row="skip"), make_tokenizer())
    assert (skipped.ok, skipped.bad_rows, len(skipped.problems)) == (True, 2, 3)


def test_a_file_without_a_usable_row_is_described_all_the_same(tmp_path: Path) -> None:
    for content in ("", '{"text": " "}\n'):
        path = tmp_path / "rows.jsonl"
        path.write_text(content)
        report = check(data_config(path, on_bad_row="skip"), make_tokenizer())
        assert (report.ok, report.rows, report.row_lengths, report.samples) == (False, 0, None, ())
        assert report.problems


def test_rows_that_repeat_are_counted_for_they_may_train_and_be_held_out(tmp_path: Path) -> None:
    row = {"prompt": "Q", "response": "A"}
    report = check(data_config(write(tmp_path / "r.jsonl", row, row, {**row, "site": "x"})), None)
    assert report.repeated == 2
    assert report.ok
    assert "2 rows repeat another row" in report.notes[-1]


def test_a_template_that_refuses_rows_is_a_problem_of_the_data(good: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('never') }}"
    report = check(data_config(good), tokenizer)
    assert not report.ok
    assert {problem.code for problem in report.problems} == {"FT225"}


@pytest.mark.parametrize("template", ["tokenizer", "chatml", "alpaca"])
def test_without_a_tokenizer_lengths_are_characters(good: Path, template: str) -> None:
    report = check(data_config(good, template=template), None, show=1)
    assert report.row_lengths is not None
    assert report.row_lengths.unit == "characters"
    assert report.truncated is None
    assert report.ok
    text = report.samples[0].as_text()
    assert ("### Instruction:\nQ" if template == "alpaca" else f"{HEAD}Q{TAIL}") in text
    assert ("rows are shown in the chatml template" in " ".join(report.notes)) == (template == "tokenizer")


def test_json_goes_to_stdout_and_holds_the_whole_report(
    bad: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run_data_check(
        str(bad),
        overrides=data_config(),
        model=MODEL,
        as_json=True,
        load_tokenizer=lambda model: make_tokenizer(),
    )
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert (code, err) == (3, "")
    assert report["source"] == str(bad)
    assert report["problems"][0] == {
        "code": "FT208",
        "what": "expected text that is not empty, got ' '",
        "where": f"{bad}, row 2, field response",
        "fix": "fill it in, or drop the row",
    }
    assert report["samples"][0]["segments"] == [
        {"text": f"{HEAD}Q{TAIL}", "in_loss": False},
        {"text": "A<|im_end|>", "in_loss": True},
    ]


def test_text_for_a_person_goes_to_stderr(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_data_check(str(good), overrides=data_config(), model=None, as_json=False) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "ready to train" in err
    assert "no tokenizer: no model was named" in err


def test_a_model_that_is_not_there_is_a_note_and_no_reason_to_stop(
    good: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(model: ModelConfig) -> None:
        raise ModelError(
            Problem(code="FT301", what=f"{model.name} is not here", where="model.name", fix="fetch it")
        )

    run = run_data_check(
        str(good), overrides=data_config(), model=MODEL, as_json=True, load_tokenizer=missing
    )  # type: ignore[arg-type]
    assert run == 0
    assert "no tokenizer: tiny is not here" in json.loads(capsys.readouterr().out)["notes"]


def test_a_dataset_can_be_checked_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_data_check("hpo", overrides=data_config(), model=None, as_json=True, show=0) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["source"] == "hpo"
    assert report["labels"]["site"]["neurology"] == 1941
    assert "finding" not in report["labels"]  # a column with a value a row is no label


def test_the_screen_shows_every_figure_and_problem(bad: Path) -> None:
    text = shown(check(data_config(bad), make_tokenizer()))
    assert "bad rows         2 (refused)" in text
    assert f"where: {bad}, row 2, field response" in text  # on one line, however long the path
    assert "a run would refuse this data" in text
    assert "⟦A<|im_end|>⟧" in text
    left_out = shown(check(data_config(bad, on_bad_row="skip"), make_tokenizer()), on_bad_row="skip")
    assert "bad rows         2 (left out)" in left_out


def test_many_problems_are_cut_on_the_screen_with_their_number(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", *[{"text": " "}] * 60)
    text = shown(check(data_config(path), None))
    assert text.count("FT208") == 50
    assert "and 10 more problems: --json lists all" in text


def test_a_long_sample_is_shortened_on_the_screen_only(tmp_path: Path) -> None:
    report = check(data_config(write(tmp_path / "rows.jsonl", {"text": "x" * 200_000})), None)
    text = shown(report)
    assert "198500 characters not shown" in text
    assert len(text) < 4000
    assert len(report.samples[0].as_text()) == 200_002


def test_rows_cannot_steer_the_terminal_or_the_markup(tmp_path: Path) -> None:
    row = {"prompt": "\x1b[2Jclear [bold]x[/bold] [/]", "response": "\x07", "ward": "\x1b]0;title\x07"}
    text = shown(
        check(data_config(write(tmp_path / "rows.jsonl", row, {**row, "ward": "b"})), make_tokenizer())
    )
    assert "\x1b" not in text
    assert "\x07" not in text
    assert r"\x1b[2Jclear [bold]x[/bold] [/]" in text


def test_loading_data_imports_nothing_heavy() -> None:
    code = (
        "import sys, fedtune.data.check, fedtune.data.partition, fedtune.data.tokenize; "
        "print([name for name in ('torch', 'transformers', 'pandas', 'pyarrow', 'matplotlib', 'flwr', 'rich')"
        " if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
