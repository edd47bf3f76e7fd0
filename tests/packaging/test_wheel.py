"""What a site installs: the package and its configuration groups, and nothing else that can be imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_the_wheel_holds_the_package_and_nothing_beside_it(names: list[str]) -> None:
    tops = {name.split("/")[0] for name in names}
    assert tops == {"fedtune", next(top for top in tops if top.endswith(".dist-info"))}


def test_the_wheel_holds_every_module_and_data_file_of_the_package(names: list[str]) -> None:
    wanted = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "fedtune").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert wanted <= set(names)


def test_the_wheel_holds_every_configuration_group(names: list[str]) -> None:
    wanted = {f"fedtune/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")}
    assert wanted == {name for name in names if name.startswith("fedtune/conf/")}


def test_the_wheel_holds_the_entry_points_of_flowers_bundle(names: list[str]) -> None:
    assert {name for name in names if name.startswith("fedtune/entry_points/")} == {
        "fedtune/entry_points/client/app.py",
        "fedtune/entry_points/server/app.py",
    }


def test_the_wheel_holds_the_example_of_a_sites_policy(names: list[str]) -> None:
    assert "fedtune/site/site.example.yaml" in names


def test_the_source_distribution_builds_the_same_wheel(tmp_path: Path, names: list[str]) -> None:
    build = [sys.executable, "-m", "hatchling", "build"]
    subprocess.run(
        [*build, "-t", "sdist", "-d", tmp_path], cwd=ROOT, check=True, capture_output=True, timeout=120
    )
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        # Python 3.11 has the filter from 3.11.4 on.
        packed.extractall(tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    source = tmp_path / archive.name.removesuffix(".tar.gz")
    subprocess.run(
        [*build, "-t", "wheel", "-d", tmp_path], cwd=source, check=True, capture_output=True, timeout=120
    )
    (rebuilt,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(rebuilt) as packed_wheel:
        assert sorted(packed_wheel.namelist()) == sorted(names)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel in it; the libraries it needs are lent by this environment."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(folder, with_pip=False)
    site_packages = next(folder.glob("lib/python*/site-packages"))
    pip = [sys.executable, "-m", "pip", "install", "-qq"]
    subprocess.run(
        [*pip, "--no-deps", "--no-index", "--target", str(site_packages), str(wheel)],
        check=True,
        timeout=120,
    )
    (site_packages / "lent.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    return folder


def run(installed: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.run(
        [str(installed / "bin" / "python"), *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_installed_package_finds_its_groups_wherever_it_is_run(installed: Path, tmp_path: Path) -> None:
    script = (
        "import fedtune; from fedtune.config.compose import compose; "
        "print(fedtune.__file__, compose(['experiment=demo']).name)"
    )
    done = run(installed, "-c", script, cwd=tmp_path)
    file, name = done.stdout.split()
    assert Path(file).is_relative_to(installed)
    assert name == "demo"


@pytest.mark.parametrize("name", ["server", "client", "conf", "tests", "simulations"])
def test_nothing_but_fedtune_can_be_imported(installed: Path, tmp_path: Path, name: str) -> None:
    # -S leaves out the lent libraries: an editable install of this checkout may be among them.
    site_packages = next(installed.glob("lib/python*/site-packages"))
    script = f"import sys; sys.path.append({str(site_packages)!r}); import fedtune; import {name}"
    done = run(installed, "-S", "-c", script, cwd=tmp_path)
    assert done.returncode == 1
    assert f"No module named '{name}'" in done.stderr


def test_the_doctor_works_from_the_wheel_in_another_folder(installed: Path, tmp_path: Path) -> None:
    done = run(installed, "-m", "fedtune", "doctor", "--json", cwd=tmp_path)
    report = json.loads(done.stdout)
    assert done.returncode == 0, [check for check in report["checks"] if check["status"] == "failed"]
    assert report["ok"]
    assert "package torch" in {check["name"] for check in report["checks"]}
    assert list(tmp_path.iterdir()) == []


def test_the_command_is_there_and_answers_at_once(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (entry,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert "fedtune = fedtune.cli:main" in archive.read(entry).decode()
