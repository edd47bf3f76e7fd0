"""What the doctor says of a site's folder, its model and its rows, each broken in a way that happens."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.site_folder import (
    JoinedSite,
    federation_config,
    policy_values,
    write_policy,
    write_rows,
    write_settings,
)
from support.tiny_gguf import make_tiny_gguf
from support.wayside import unused_port

from fedtune.config.schema import Config
from fedtune.config.wire import config_hash
from fedtune.errors import FedtuneError, MachineError, Problem
from fedtune.models.base_hash import base_hash
from fedtune.site.checkup.run import run_site_checks
from fedtune.site.findings import Check


@dataclasses.dataclass(kw_only=True)
class Ward:
    """A site that is in order, until a test breaks something."""

    site: JoinedSite
    rows: Path
    config: Config
    values: dict[str, Any]

    def allow(self, **keys: Any) -> None:
        """Change keys of the policy; of a section, those that are given."""
        sections = {name: value for name, value in keys.items() if isinstance(value, dict) and value}
        self.values |= keys | {name: (self.values[name] or {}) | value for name, value in sections.items()}
        write_policy(self.site.folder, self.values)

    @property
    def model(self) -> str:
        """Name of the check of the base model."""
        return f"base model {self.config.model.name}"

    def settle(self, **keys: Any) -> None:
        """Write the site's settings, with the configuration's model unless they say otherwise."""
        write_settings(self.site.folder, **({"models": {self.config.model.name: None}} | keys))

    def checks(self, *, config: bool = True) -> list[Check]:
        return list(
            run_site_checks(
                self.site.folder,
                config=(lambda: self.config) if config else None,
            )
        )

    def named(self, name: str, *, config: bool = True) -> Check:
        (check,) = self.all_named(name, config=config)
        return check

    def all_named(self, name: str, *, config: bool = True) -> list[Check]:
        return [check for check in self.checks(config=config) if check.name == name]


@pytest.fixture
def ward(tmp_path: Path, tiny_model_dir: Path) -> Ward:
    site = JoinedSite(root=tmp_path / "fed", address=f"127.0.0.1:{unused_port()}")
    rows = write_rows(tmp_path / "rows.jsonl")
    config = federation_config(tiny_model_dir)
    values = policy_values(site, files=[str(rows)], base_models=[base_hash(config.model)])
    write_policy(site.folder, values)
    ward = Ward(site=site, rows=rows, config=config, values=values)
    ward.settle(cache_dir=str(tmp_path / "cache"))
    return ward


def failures(checks: list[Check]) -> dict[str, str | None]:
    return {check.name: check.code for check in checks if check.status == "failed"}


def test_a_site_in_order_lacks_nothing_but_its_server(ward: Ward) -> None:
    checks = ward.checks()
    assert failures(checks) == {"connection": "FT843"}
    for check in checks:
        assert len(check.finding) > 3
        assert (check.fix is None) == (check.status == "ok")
        assert (check.code is not None) == (check.status == "failed")
    assert {check.name for check in checks} >= {
        "keys",
        "joining",
        "site.yaml",
        "client.yaml",
        "configuration",
        "roster",
        ward.model,
        f"hash of {ward.config.model.name}",
        f"data {ward.rows}",
        "rows",
        "memory",
        "threads",
        "folder of state",
        "disk of models",
        "policy",
    }


def test_an_empty_folder_is_no_crash_and_every_check_says_what_it_lacks(tmp_path: Path) -> None:
    checks = list(run_site_checks(tmp_path / "nothing", config=None))
    assert [check.code for check in checks if check.name == "keys"] == ["FT840"] * 4
    assert "make the site's keys" in str(checks[0].fix)
    waiting = [check for check in checks if check.finding.startswith("not checked")]
    assert {check.name for check in waiting} >= {"connection", "data"}
    assert all(check.status == "warning" for check in waiting)


@pytest.mark.parametrize("name", ["node.key", "identity.key", "connection.json", "ca.pem"])
def test_a_file_that_is_gone_is_named_with_what_makes_it(ward: Ward, name: str) -> None:
    (ward.site.folder / name).unlink()
    gone = [check for check in ward.all_named("keys") if check.code == "FT840"]
    assert [check.finding for check in gone] == [f"there is no {name} in {ward.site.folder}"]


def test_a_key_that_others_can_read_is_named(ward: Ward) -> None:
    (ward.site.folder / "node.key").chmod(0o644)
    codes = {check.code for check in ward.all_named("keys")}
    assert codes == {"FT630"}


def test_keys_of_another_site_are_noticed(ward: Ward) -> None:
    other = ward.site.root / ward.site.sites[1] / "node.key"
    (ward.site.folder / "node.key").write_bytes(other.read_bytes())
    check = ward.named("joining")
    assert check.code == "FT840"
    assert check.finding == "node.key and the request of ear do not belong together"


def test_a_connection_that_was_edited_is_noticed_and_the_rest_goes_on(ward: Ward) -> None:
    path = ward.site.folder / "connection.json"
    path.write_text(path.read_text().replace("127.0.0.1", "127.0.0.2"))
    path.write_text("{" + path.read_text())
    found = failures(ward.checks())
    assert found["joining"] == "FT636"
    assert ward.named(ward.model).status == "ok"


def test_the_roster_has_to_hold_this_site(ward: Ward) -> None:
    ward.site.pin("eye", "heart", "lung")
    assert ward.named("roster").code == "FT841"
    (ward.site.folder / "pin.json").unlink()
    assert ward.named("roster").status == "warning"
    ward.allow(secure_aggregation={"required": True})
    assert ward.named("roster").code == "FT841"
    (ward.site.folder / "pin.json").write_text("{}")
    assert ward.named("roster").code == "FT918"


def test_every_problem_of_the_policy_is_said(ward: Ward) -> None:
    ward.allow(peft={"max_rank": -1}, version=7, timezone="Europe/Berln")
    assert [check.code for check in ward.all_named("site.yaml")] == ["FT822"] * 3
    assert ward.named("data").finding == "not checked: the policy could not be read"


def test_a_policy_that_does_not_name_the_coordinator_says_what_to_write(ward: Ward) -> None:
    ward.allow(coordinators={})
    check = ward.named("site.yaml")
    assert check.status == "failed"
    assert ward.site.coordinator in str(check.fix)


def test_settings_and_configuration_that_cannot_be_read_are_findings(ward: Ward) -> None:
    def broken() -> Any:
        raise MachineError(Problem(code="FT107", what="no", where="config.yaml", fix="mend"))

    ward.settle(threads=0, device="tpu")
    checks = list(run_site_checks(ward.site.folder, config=broken))
    codes = [(check.name, check.code) for check in checks if check.status == "failed"]
    assert [code for name, code in codes if name == "client.yaml"] == ["FT682", "FT682"]
    assert ("configuration", "FT107") in codes
    waiting = {check.name for check in checks if check.finding.startswith("not checked")}
    assert waiting == {"certificate", "base model", "memory"}


def test_nothing_that_a_check_raises_stops_the_doctor(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("by zero\nand more")

    for name in ("dial", "agreement"):
        monkeypatch.setattr(f"fedtune.site.checkup.run.{name}", explode)
    monkeypatch.setattr("fedtune.site.checkup.rows.read_all", explode)
    found = failures(ward.checks())
    assert {name for name, code in found.items() if code == "FT808"} == {
        "connection",
        "policy",
        "rows",
        f"data {ward.rows}",
    }


# The base model


def test_a_model_that_the_policy_does_not_allow_comes_with_its_hash(ward: Ward) -> None:
    expected = base_hash(ward.config.model)
    ward.allow(base_models=["0" * 64])
    check = ward.named(f"hash of {ward.config.model.name}")
    assert check.code == "FT854"
    assert f"add {expected} to base_models" in str(check.fix)


def test_the_place_of_a_model_is_the_sites_own_business(ward: Ward) -> None:
    here = ward.config.model.name
    ward.config = dataclasses.replace(
        ward.config, model=dataclasses.replace(ward.config.model, name="the coordinator's name")
    )
    ward.settle(models={"the coordinator's name": here})
    check = ward.named(ward.model)
    assert check.status == "ok"
    assert here in check.finding
    ward.settle(models={})
    assert ward.named(ward.model).code == "FT644"


def test_a_model_of_the_hub_is_looked_for_on_this_machine_alone(
    ward: Ward, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: Any, **__: Any) -> Any:
        raise AssertionError("the doctor must download nothing")

    monkeypatch.setattr("fedtune.models.resolve._download", forbidden)
    ward.settle(models={ward.config.model.name: "Nobody/No-Such-Model"})
    check = ward.named(ward.model)
    assert check.code == "FT301"
    assert "hf download Nobody/No-Such-Model" in str(check.fix)
    assert ward.named(f"hash of {ward.config.model.name}").status == "warning"
    assert ward.named("memory").status == "warning"


def test_without_a_configuration_every_model_of_the_settings_is_looked_at(ward: Ward, tmp_path: Path) -> None:
    ward.settle(models={"one": ward.config.model.name, "two": str(tmp_path / "nowhere")})
    checks = ward.checks(config=False)
    found = {check.name: check.status for check in checks if "base model" in check.name}
    assert found == {"base model one": "ok", "base model two": "failed"}
    assert [check.status for check in checks if check.name.startswith("hash of")] == ["ok", "warning"]
    assert "--config" in next(check.finding for check in checks if check.name == "memory")


def test_a_gguf_file_is_hashed_and_not_converted(ward: Ward, tmp_path: Path) -> None:
    model = tmp_path / "tiny.gguf"
    make_tiny_gguf(model)
    ward.settle(models={ward.config.model.name: str(model)}, cache_dir=str(tmp_path / "empty-cache"))
    assert ward.named(ward.model).status == "ok"
    assert ward.named(f"hash of {ward.config.model.name}").code == "FT854"
    assert not (tmp_path / "empty-cache" / "converted").exists()


def test_too_little_memory_is_noticed(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclasses.dataclass
    class Memory:
        available: int = 2**20

    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    check = ward.named("memory")
    assert check.code == "FT805"
    assert "training is estimated to take" in check.finding
    ward.allow(limits={"memory_mib": 64})
    assert ward.named("memory", config=False).status == "warning"


def test_more_threads_than_cores_are_pointed_out(ward: Ward) -> None:
    ward.settle(threads=10_000)
    assert ward.named("threads").status == "warning"
    ward.settle(threads=None)
    assert ward.named("threads", config=False).finding.startswith("training takes the ")


# The rows


CANARY = "Xylophone-4711"


def good(number: int) -> str:
    return json.dumps({"instruction": f"{CANARY} {number}", "output": "fine"})


BROKEN = {
    "a line that is no JSON": (
        [good(1), f'{{"instruction": "{CANARY}', good(2)],
        "1 of 3 rows",
        "row 2 (FT205)",
    ),
    "a field that is empty": (
        [good(1), json.dumps({"instruction": CANARY, "output": ""})],
        "1 of 2 rows",
        "row 2 (FT208)",
    ),
    "a field of another type": (
        [good(1), json.dumps({"instruction": [CANARY], "output": "x"})],
        "1 of 2 rows",
        "row 2 (FT2",
    ),
    "an id twice": (
        [json.dumps({"id": CANARY, "instruction": "a", "output": "b"})] * 2,
        "1 of 2 rows",
        "row 2 (FT212)",
    ),
    "many": (
        [good(0)] + [json.dumps({"instruction": CANARY, "output": ""})] * 9,
        "9 of 10 rows",
        "row 6 (FT208); and 4 more",
    ),
}


@pytest.fixture(params=BROKEN)
def broken(request: pytest.FixtureRequest, ward: Ward) -> tuple[Ward, str, str]:
    lines, counted, place = BROKEN[request.param]
    ward.rows.write_text("\n".join(lines) + "\n")
    return ward, counted, place


def test_bad_rows_are_counted_and_placed_and_never_quoted(broken: tuple[Ward, str, str]) -> None:
    ward, counted, place = broken
    check = ward.all_named(f"data {ward.rows}")[0]
    assert check.code == "FT855"
    assert check.finding.startswith(f"{counted} cannot be used: ")
    assert place in check.finding
    assert f"fedtune data check {ward.rows}" in str(check.fix)
    everything = json.dumps([dataclasses.asdict(each) for each in ward.checks()])
    assert CANARY not in everything
    assert "Xylophone" not in everything


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("gone.jsonl", None, "the file does not exist (FT201)"),
        ("empty.jsonl", b"", "the file is empty: expected at least one row (FT203)"),
        ("letters.docx", b"PK", "the extension '.docx' is not one of"),
        ("other.csv", f"{CANARY};b\n1;2\n".encode(), "it cannot be read as rows (FT214)"),
        ("text.json", json.dumps(CANARY).encode(), "it cannot be read as rows (FT205)"),
        ("wide.json", f'["{CANARY}'.encode("utf-16"), "it cannot be read as rows (FT204)"),
    ],
)
def test_a_file_that_cannot_be_read_as_rows_is_named(
    ward: Ward, tmp_path: Path, name: str, content: bytes | None, words: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    ward.allow(data={"files": [str(path)]})
    check = ward.all_named(f"data {path}")[0]
    assert check.code == "FT855"
    assert check.finding.startswith(words)
    assert CANARY not in json.dumps([dataclasses.asdict(each) for each in ward.checks()])


def test_rows_that_repeat_over_two_files_are_noticed(ward: Ward, tmp_path: Path) -> None:
    lines = [json.dumps({"id": f"{CANARY}-{n}", "instruction": "a", "output": "b"}) for n in range(8)]
    paths = [tmp_path / name for name in ("one.jsonl", "two.jsonl")]
    for path in paths:
        path.write_text("\n".join(lines) + "\n")
    ward.allow(data={"files": [str(path) for path in paths]})
    found = ward.all_named("rows")
    assert found[0].code == "FT855"
    assert "8 of 16 rows cannot be used" in found[0].finding
    assert CANARY not in json.dumps([dataclasses.asdict(each) for each in found])


def test_bad_rows_that_are_skipped_are_a_note(ward: Ward) -> None:
    ward.rows.write_text(f"{good(1)}\nnonsense\n" * 5)
    ward.config = dataclasses.replace(
        ward.config, data=dataclasses.replace(ward.config.data, on_bad_row="skip")
    )
    check = ward.named(f"data {ward.rows}")
    assert check.status == "warning"
    assert check.finding.endswith("they are left out")


def test_the_split_is_told_as_training_will_make_it(ward: Ward) -> None:
    finding = [check.finding for check in ward.all_named("rows")]
    assert finding[0] == "24 rows train, 6 are held out"
    assert finding[1].startswith("the longest row has ")
    write_rows(ward.rows, 3)
    assert ward.all_named("rows")[0].status == "warning"


def test_rows_longer_than_the_configuration_takes_are_counted(ward: Ward) -> None:
    write_rows(ward.rows, word="finding" * 30)
    check = ward.all_named("rows")[1]
    assert check.status == "warning"
    assert "30 are cut to data.max_tokens=96" in check.finding


def test_a_relative_path_and_no_path_are_pointed_out(
    ward: Ward, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    ward.allow(data={"files": ["rows.jsonl"]})
    assert [check.status for check in ward.all_named("data rows.jsonl")] == ["ok", "warning"]
    ward.allow(data={"files": [], "sources": []})
    assert ward.named("data").finding == "the policy names no file of rows"


# The policy against the configuration


def test_every_refusal_is_said_in_the_operators_words_and_once(ward: Ward) -> None:
    ward.allow(
        peft={"max_rank": 2}, metrics=["tokens"], limits={"steps_per_round": 1, "memory_mib": 1}, bundles=[]
    )
    found = [check for check in ward.all_named("policy") if check.status == "failed"]
    said = "\n".join(check.finding for check in found)
    assert {check.code for check in found} == {"FT640"}
    assert len(found) == len({check.finding for check in found})
    for words in ("peft.max_rank is 2", "limits.steps_per_round is 1", "limits.memory_mib is 1", "bundle"):
        assert words in said
    assert "in the policy" in str(found[0].fix)


def test_a_doctor_that_is_called_by_day_finds_nothing_wrong_with_the_night(ward: Ward) -> None:
    ward.allow(hours={"start": "03:00", "end": "03:01"})
    found = ward.all_named("policy")
    assert [check.status for check in found] == ["ok", "ok"]
    assert found[1].finding.startswith(
        "requests are accepted from 03:00 to 03:01 Europe/Berlin, where it is "
    )


def test_rounds_that_take_days_are_told(ward: Ward) -> None:
    ward.allow(limits={"rounds_per_day": 1})
    check = ward.all_named("policy")[1]
    assert check.status == "warning"
    assert "takes at least 2 days" in check.finding


def test_a_simulation_is_refused_as_the_site_refuses_it(ward: Ward) -> None:
    ward.config = dataclasses.replace(
        ward.config, backend=dataclasses.replace(ward.config.backend, name="inprocess")
    )
    assert ward.named("policy").code == "FT645"


def test_a_run_that_waits_for_approval_is_told_from_one_that_begins(ward: Ward) -> None:
    assert "waits for `fedtune client approve`" in ward.named("policy").finding
    ward.allow(preapproved=[config_hash(ward.config)])
    assert ward.named("policy").finding.endswith("the run begins")


def test_without_a_configuration_nothing_is_said_of_one(ward: Ward) -> None:
    names = {check.name for check in ward.checks(config=False)}
    assert not names & {"policy", "configuration"}


def test_no_problem_is_raised_as_an_error(ward: Ward) -> None:
    for path in ward.site.folder.iterdir():
        if path.is_file():
            path.write_bytes(b"\x00\xff nonsense")
    try:
        checks = ward.checks()
    except FedtuneError as error:
        raise AssertionError("the doctor raised") from error
    assert failures(checks)["site.yaml"] == "FT820"
