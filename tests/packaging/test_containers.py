"""The container files, as far as they can be judged without building them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from fedtune import __version__

ROOT = Path(__file__).parents[2]
INSTRUCTIONS = {
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "RUN",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
}
"""All that the two files need: not ADD, which can fetch, nor SHELL and ONBUILD, which hide what is done."""

SIDES = ["client", "server"]


def stages(side: str) -> list[list[tuple[str, str]]]:
    """Parse a container file: the instructions before the first FROM, then those of each stage."""
    text = (ROOT / side / "Containerfile").read_text(encoding="utf-8")
    text = re.sub(r"(?m)^\s*#.*\n", "", text)
    found: list[list[tuple[str, str]]] = [[]]
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if line.strip():
            name, _, rest = line.partition(" ")
            assert name in INSTRUCTIONS, line
            assert rest.strip(), line
            if name == "FROM":
                found.append([])
            found[-1].append((name, rest.strip()))
    return found


def last(side: str) -> dict[str, str]:
    return dict(stages(side)[-1])


@pytest.mark.parametrize("side", SIDES)
def test_both_stages_start_from_one_image_that_can_be_named_by_its_digest(side: str) -> None:
    before, install, final = stages(side)
    assert before == [("ARG", "PYTHON_IMAGE=python:3.12-slim")]
    assert install[0] == ("FROM", "${PYTHON_IMAGE} AS install")
    assert final[0] == ("FROM", "${PYTHON_IMAGE}")


@pytest.mark.parametrize("side", SIDES)
def test_everything_that_is_run_is_run_without_a_shell(side: str) -> None:
    for name, rest in (each for stage in stages(side) for each in stage):
        if name in {"RUN", "CMD", "ENTRYPOINT", "VOLUME"}:
            assert all(isinstance(word, str) for word in json.loads(rest))
    assert last(side)["USER"] == "10001:10001"


@pytest.mark.parametrize("side", SIDES)
def test_the_build_takes_files_from_the_bundle_alone_and_packages_by_its_installer(side: str) -> None:
    _, install, final = stages(side)
    assert install[1:] == [
        ("COPY", ". /bundle"),
        ("RUN", '["sh", "/bundle/install.sh", "/opt/fedtune"]'),
    ]
    assert [rest for name, rest in final if name == "COPY"] == [
        "--from=install /opt/fedtune /opt/fedtune",
        "LICENSE /usr/share/doc/fedtune/LICENSE",
    ]
    text = (ROOT / ".ci" / "bundle" / "build.py").read_text(encoding="utf-8")
    assert '"LICENSE"' in text
    assert f'"{side}/Containerfile"' in text
    runs = [json.loads(rest)[0] for name, rest in final if name == "RUN"]
    assert runs == ["useradd"]


@pytest.mark.parametrize("side", SIDES)
def test_nothing_secret_and_no_address_is_in_it(side: str) -> None:
    text = (ROOT / side / "Containerfile").read_text(encoding="utf-8")
    assert not re.search(r"(?i)https?://|password|token|secret|passphrase|\.key\b|proxy", text)


@pytest.mark.parametrize("side", SIDES)
def test_all_that_is_written_lies_in_the_volume(side: str) -> None:
    settings = last(side)
    (volume,) = json.loads(settings["VOLUME"])
    assert settings["WORKDIR"] == volume
    environment = dict(pair.split("=", 1) for pair in settings["ENV"].split())
    for name in ("HOME", "FEDTUNE_CACHE_DIR", "HF_HOME"):
        assert Path(environment[name]).is_relative_to(volume)
    names = [name for name, _ in stages(side)[-1]]
    assert names.index("RUN") < names.index("USER") < names.index("VOLUME")


@pytest.mark.parametrize("side", SIDES)
def test_it_says_what_it_is(side: str) -> None:
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', last(side)["LABEL"]))
    assert labels.pop("description")
    assert labels == {"title": f"fedtune-{side}", "version": __version__, "licenses": "Apache-2.0"}


def test_a_site_opens_no_port_and_a_coordinator_opens_the_gates_alone() -> None:
    assert "EXPOSE" not in last("client")
    assert last("server")["EXPOSE"] == "9092"


@pytest.mark.parametrize("side", SIDES)
def test_it_is_stopped_by_the_signal_that_the_daemon_knows_and_asked_how_it_is(side: str) -> None:
    settings = last(side)
    assert settings["STOPSIGNAL"] == "SIGTERM"
    options, _, command = settings["HEALTHCHECK"].partition("CMD ")
    assert re.fullmatch(r"(--(interval|timeout|start-period|retries)=\d+[sm]? +)+", options)
    folder = json.loads(settings["CMD"])[-1]
    assert json.loads(settings["ENTRYPOINT"]) == ["/opt/fedtune/bin/fedtune", side]
    assert json.loads(settings["CMD"]) == ["start", folder]
    assert json.loads(command) == ["/opt/fedtune/bin/fedtune", side, "status", folder]
