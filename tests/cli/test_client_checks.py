"""``fedtune client doctor`` and ``preview`` as they print, for people and for programs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
from support.site_folder import (
    JoinedSite,
    federation_config,
    policy_values,
    write_policy,
    write_rows,
    write_settings,
)
from support.wayside import serving_tls, unused_port

from fedtune.commands.client_doctor import run_doctor
from fedtune.commands.client_preview import run_preview
from fedtune.commands.config_file import read_config_file
from fedtune.config.wire import config_to_json, config_to_yaml
from fedtune.errors import ConfigError, FedtuneError, SecureAggregationError
from fedtune.models.base_hash import base_hash
from fedtune.site.checkup.route import Address

CANARY = "Xylophone"


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "ALL_PROXY", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> JoinedSite:
    root = tmp_path_factory.mktemp("site")
    site = JoinedSite(root=root, address=f"localhost:{unused_port()}")
    rows = write_rows(root / "rows.jsonl", word=CANARY)
    config = federation_config(tiny_model_dir)
    (root / "config.yaml").write_text(config_to_yaml(config))
    (root / "config.json").write_text(config_to_json(config))
    secure = federation_config(tiny_model_dir, "secagg=on")
    (root / "secure.yaml").write_text(config_to_yaml(secure))
    values = policy_values(site, files=[str(rows)], base_models=[base_hash(config.model)])
    write_policy(site.folder, values)
    write_settings(site.folder, models={str(tiny_model_dir): None})
    return site


def arguments(site: JoinedSite, **changed: Any) -> argparse.Namespace:
    given = {"folder": str(site.folder), "config": None, "json": False, "round": 1, "train": False}
    return argparse.Namespace(**(given | changed))


def test_a_site_in_order_ends_with_0_and_one_object(
    site: JoinedSite, capsys: pytest.CaptureFixture[str]
) -> None:
    files = site.server.certificate_path, site.server.key
    with serving_tls(files, port=Address.of(site.address).port):
        assert run_doctor(arguments(site, config=str(site.root), json=True)) == 0
    out, err = capsys.readouterr()
    printed = json.loads(out)
    assert printed["ok"] is True
    assert {"name", "status", "finding", "fix", "code"} == set(printed["checks"][0])
    assert err == ""
    assert CANARY not in out


def test_a_failed_check_ends_with_9_and_says_what_to_do(
    site: JoinedSite, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_doctor(arguments(site)) == 9
    out, err = capsys.readouterr()
    assert out == ""
    assert "FAIL  connection" in err
    assert "FT843: ask the network team" in err
    assert err.rstrip().splitlines()[-1].endswith(" to note")


def test_a_configuration_that_cannot_be_read_is_a_finding(
    site: JoinedSite, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_doctor(arguments(site, config=str(site.root / "nowhere.yaml"), json=True)) == 9
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert [check["code"] for check in checks if check["name"] == "configuration"] == ["FT107"]


def test_a_configuration_is_read_in_each_of_its_forms(site: JoinedSite, tmp_path: Path) -> None:
    forms = [site.root, site.root / "config.yaml", site.root / "config.json"]
    first, second, third = map(read_config_file, forms)
    assert first == second == third
    for content in (b"\xff", b"[1, 2", b"name: x", b"{}", b" " * 300_000):
        path = tmp_path / "config.yaml"
        path.write_bytes(content)
        with pytest.raises(ConfigError):
            read_config_file(path)


def test_a_preview_for_people_shows_every_message_and_what_never_leaves(
    site: JoinedSite, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_preview(arguments(site, config=str(site.root / "secure.yaml"))) == 0
    out, err = capsys.readouterr()
    assert out == ""
    for words in (
        "What ear would send for lungs-1, round 1 of 2",
        "HelloReply, once, before the first round",
        "train_examples",
        "federation.metrics does not name examples",
        "MASKED, when all shares are in: the update",
        "2 tensors of 4 x 64 float32, masked, 2.0 KiB",
        "in all, this round sends 34.4 KiB",
        "what never leaves:",
    ):
        assert words in err


def test_a_preview_for_programs_has_the_same_with_a_trial(
    site: JoinedSite, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_preview(arguments(site, config=str(site.root / "config.json"), train=True, json=True)) == 0
    out = capsys.readouterr().out
    printed = json.loads(out)
    assert printed["tried"] is True
    assert printed["bytes_a_round"] > 30_000
    trained = next(message for message in printed["messages"] if message["name"] == "TrainReply")
    assert {"name", "type", "meaning", "leaves", "because", "value"} == set(trained["fields"][0])
    assert next(field["value"] for field in trained["fields"] if field["name"] == "tokens") > 0
    assert CANARY not in out


def test_a_trial_for_people_says_that_nothing_was_sent(
    site: JoinedSite, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_preview(arguments(site, config=str(site.root), train=True)) == 0
    err = capsys.readouterr().err
    assert "L2 norms 0 to 0" in err
    assert "nothing was sent" in err
    assert CANARY not in err


def test_what_the_policy_refuses_is_said_first(
    site: JoinedSite, capsys: pytest.CaptureFixture[str], tiny_model_dir: Path
) -> None:
    config = federation_config(tiny_model_dir, "peft.rank=32")
    path = site.root / "large.yaml"
    path.write_text(config_to_yaml(config))
    assert run_preview(arguments(site, config=str(path))) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[1].startswith(
        "  the policy refuses this configuration: 32 is asked for, peft.max_rank is 16"
    )
    assert "but a Failure" in lines[2]


def test_a_round_that_does_not_exist_and_a_roster_that_is_not_there_are_refused(
    site: JoinedSite, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="there is no round 3"):
        run_preview(arguments(site, config=str(site.root), round=3))
    (site.folder / "pin.json").rename(tmp_path / "pin.json")
    try:
        with pytest.raises(SecureAggregationError, match="FT918"):
            run_preview(arguments(site, config=str(site.root / "secure.yaml")))
        with pytest.raises(FedtuneError):
            run_preview(arguments(site, folder=str(tmp_path), config=str(site.root)))
    finally:
        (tmp_path / "pin.json").rename(site.folder / "pin.json")
