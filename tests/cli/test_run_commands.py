"""The commands that make a run and the commands that read one, as a person types them."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.processes import hears_ctrl_c

from fedtune import cli

ROOT = Path(__file__).parents[2]
Captured = pytest.CaptureFixture[str]


def printed_json(capsys: Captured, *arguments: str) -> Any:
    assert cli.main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def contents(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_simulate_prints_the_summary_to_stdout_and_the_rest_to_stderr(tiny_run: Any) -> None:
    summary = json.loads(tiny_run.stdout)
    assert summary["status"] == "completed"
    assert summary["held_out_loss"]["federated"] < summary["held_out_loss"]["base"]
    assert f"report:  {tiny_run.path / 'report.html'}" in tiny_run.stderr
    assert (tiny_run.path / "report.html").is_file()


def test_a_complete_run_is_shown_and_not_touched(tiny_run: Any, capsys: Captured) -> None:
    before = contents(tiny_run.path)
    summary = printed_json(capsys, "simulate", *tiny_run.overrides, "resume=true")
    assert summary == json.loads(tiny_run.stdout)
    assert contents(tiny_run.path) == before


def test_a_run_is_never_overwritten(tiny_run: Any, capsys: Captured) -> None:
    assert cli.main(["simulate", *tiny_run.overrides]) == 8
    assert "FT701" in capsys.readouterr().err


def test_report_gives_the_same_summary_and_draws_the_page_again(tiny_run: Any, capsys: Captured) -> None:
    assert printed_json(capsys, "report", str(tiny_run.path)) == json.loads(tiny_run.stdout)
    page = tiny_run.path / "report.html"
    before = page.read_text(encoding="utf-8")
    page.unlink()
    assert cli.main(["report", str(tiny_run.path)]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert str(page) in err
    assert page.read_text(encoding="utf-8") == before


def test_a_run_is_found_by_its_name_under_runs(
    tiny_run: Any, capsys: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "runs").symlink_to(tiny_run.path.parent)
    monkeypatch.chdir(tmp_path)
    assert printed_json(capsys, "report", "tiny")["name"] == "tiny"


@pytest.mark.parametrize("command", [["report"], ["evaluate"], ["chat"], ["export", "--merged"]])
def test_a_run_that_is_not_there_is_named(command: list[str], tmp_path: Path, capsys: Captured) -> None:
    folder = ["out"] if command[0] == "export" else []
    assert cli.main([*command, str(tmp_path / "nothing"), *folder]) == 8
    assert "FT706" in capsys.readouterr().err


def test_evaluate_finds_the_losses_that_the_run_reported(tiny_run: Any, capsys: Captured) -> None:
    found = printed_json(capsys, "evaluate", str(tiny_run.path))
    summary = json.loads(tiny_run.stdout)
    for kind in ("base", "federated"):
        assert found["held_out_loss"][kind] == pytest.approx(summary["held_out_loss"][kind], abs=1e-6)
        for name, site in summary["sites"].items():
            assert found["sites"][name][kind] == pytest.approx(site[kind], abs=1e-6)


def test_chat_answers_a_prompt_as_it_answers_on_the_terminal(
    tiny_run: Any, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = ["--max-new-tokens", "5"]
    once = printed_json(capsys, "chat", str(tiny_run.path), "--prompt", "Define ear 1", *limit)
    assert once["prompt"] == "Define ear 1"
    assert isinstance(once["answer"], str)
    assert cli.main(["chat", str(tiny_run.path), "--prompt", "Define ear 1", *limit]) == 0
    assert capsys.readouterr().out.strip() == once["answer"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("Define ear 1\n/new\nDefine ear 1\n/quit\n"))
    assert cli.main(["chat", str(tiny_run.path), *limit]) == 0
    assert capsys.readouterr().out.count(once["answer"]) >= 2 or once["answer"] == ""


def test_chat_with_the_base_leaves_the_adapter_out(tiny_run: Any, capsys: Captured) -> None:
    answers = [
        printed_json(
            capsys, "chat", str(tiny_run.path), "--prompt", "Define", "--max-new-tokens", "12", *extra
        )
        for extra in ([], ["--base"])
    ]
    assert answers[0]["answer"] != answers[1]["answer"]


def test_export_copies_the_adapter_whole(tiny_run: Any, capsys: Captured, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "adapter"
    result = printed_json(capsys, "export", str(tiny_run.path), str(target))
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} == set(result["files"])
    for name in result["files"]:
        assert (target / name).read_bytes() == (tiny_run.path / "adapter" / name).read_bytes()
    assert cli.main(["export", str(tiny_run.path), str(target)]) == 8
    assert "FT740" in capsys.readouterr().err


def test_export_merged_is_the_base_with_the_adapter(
    tiny_run: Any, capsys: Captured, tmp_path: Path, tiny_model_dir: Path
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from fedtune.models.messages import without_peft_warnings

    target = tmp_path / "merged"
    assert printed_json(capsys, "export", str(tiny_run.path), str(target), "--merged")["merged"]
    tokens = torch.arange(40).reshape(1, -1)
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    with without_peft_warnings():
        expected = PeftModel.from_pretrained(base, tiny_run.path / "adapter")(tokens).logits
    merged = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)(tokens).logits
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-5)


def test_a_run_without_an_adapter_says_how_to_complete_it(
    tiny_run: Any, capsys: Captured, tmp_path: Path
) -> None:
    for name in ("rounds.jsonl", "config.yaml"):
        (tmp_path / name).write_bytes((tiny_run.path / name).read_bytes())
    assert cli.main(["export", str(tmp_path), str(tmp_path / "out")]) == 8
    assert "FT730" in capsys.readouterr().err
    (tmp_path / "config.yaml").write_text("name: [", encoding="utf-8")
    assert cli.main(["evaluate", str(tmp_path)]) == 2
    assert "FT107" in capsys.readouterr().err
    (tmp_path / "config.yaml").unlink()
    assert cli.main(["evaluate", str(tmp_path)]) == 8
    assert "FT732" in capsys.readouterr().err


def test_a_damaged_adapter_is_refused(tiny_run: Any, capsys: Captured, tmp_path: Path) -> None:
    for name in ("rounds.jsonl", "config.yaml"):
        (tmp_path / name).write_bytes((tiny_run.path / name).read_bytes())
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"damaged")
    assert cli.main(["evaluate", str(tmp_path)]) == 8
    assert "FT731" in capsys.readouterr().err


def test_estimate_says_memory_and_traffic(tiny_overrides: list[str], capsys: Captured) -> None:
    found = printed_json(capsys, "estimate", *tiny_overrides)
    assert found["total_mib"] > 0
    assert cli.main(["estimate", *tiny_overrides]) == 0
    assert "MiB" in capsys.readouterr().err


def test_estimate_refuses_targets_that_match_nothing(tiny_overrides: list[str], capsys: Captured) -> None:
    assert cli.main(["estimate", *tiny_overrides, "peft.target_modules=[nowhere]"]) == 4
    assert "nowhere" in capsys.readouterr().err


def test_data_check_takes_a_file_and_the_keys_of_the_configuration(
    tmp_path: Path, tiny_model_dir: Path, capsys: Captured
) -> None:
    file = tmp_path / "it's, a file.csv"
    file.write_text("question,answer\nWhat?,That.\n", encoding="utf-8")
    arguments = ["data", "check", str(file), f"model.name={tiny_model_dir}", "data.max_tokens=2000"]
    columns = "data.columns={instruction: question, output: answer}"
    assert printed_json(capsys, *arguments, columns)["rows"] == 1
    assert cli.main([*arguments, "--json"]) == 3
    assert cli.main([*arguments, "data.column={}"]) == 2


def test_ctrl_c_keeps_complete_rounds_and_says_how_to_go_on(
    tiny_overrides: list[str], tmp_path: Path
) -> None:
    overrides = [*tiny_overrides, f"runs_dir={tmp_path}", "name=stopped", "federation.rounds=200"]
    process = subprocess.Popen(
        [sys.executable, "-m", "fedtune", "simulate", *overrides],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hears_ctrl_c,  # noqa: PLW1509
    )
    checkpoint = tmp_path / "stopped" / "checkpoints" / "0002"
    deadline = time.monotonic() + 120
    while not checkpoint.exists():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    last = err.strip().splitlines()[-1]
    assert "complete rounds are kept" in last
    assert last.endswith("name=stopped resume=true")
