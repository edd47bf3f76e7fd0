"""The offline bundle, made of small wheels: what is in it, and that a changed one is not installed."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / ".ci" / "bundle"
PYTHON = ROOT / os.environ.get("BUNDLE_VENV", ".venv-bundle-python3") / "bin" / "python"
EPOCH = 1_700_000_000

pytestmark = pytest.mark.skipif(
    not PYTHON.exists(), reason=f"make test makes {PYTHON.parent.parent.name}, which has what makes a bundle"
)


def write_wheel(folder: Path, name: str, version: str, *metadata: str, tag: str = "py3-none-any") -> Path:
    path = folder / f"{name}-{version}-{tag}.whl"
    files = {
        f"{name}.py": "def main():\n    print('9.9')\n",
        f"{name}-{version}.dist-info/METADATA": "\n".join(
            ["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}", *metadata, "", ""]
        ),
        f"{name}-{version}.dist-info/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n",
        f"{name}-{version}.dist-info/entry_points.txt": f"[console_scripts]\n{name} = {name}:main\n",
    }
    record = f"{name}-{version}.dist-info/RECORD"
    files[record] = "".join(f"{each},,\n" for each in [*files, record])
    with zipfile.ZipFile(path, "w") as archive:
        for inside, text in files.items():
            archive.writestr(zipfile.ZipInfo(inside), text)
    return path


def write_wheels(folder: Path) -> None:
    folder.mkdir(parents=True)
    write_wheel(
        folder,
        "fedtune",
        "9.9",
        "License-Expression: Apache-2.0",
        "Requires-Dist: alpha[fast]>=1",
        "Requires-Dist: nowhere; sys_platform == 'another'",
        "Provides-Extra: ray",
        "Requires-Dist: delta; extra == 'ray'",
    )
    write_wheel(
        folder,
        "alpha",
        "1.0+cpu",
        "Classifier: License :: OSI Approved :: MIT License",
        "Provides-Extra: fast",
        "Requires-Dist: beta==2; extra == 'fast'",
    )
    write_wheel(folder, "beta", "2", "License: a licence\n        of two lines")
    write_wheel(folder, "delta", "3")


def call(expression: str, *, folder: Path) -> str:
    """Evaluate an expression with the bundle's modules in the environment that makes bundles."""
    code = (
        f"import sys; sys.path.insert(0, {str(SOURCE)!r})\n"
        "from pathlib import Path\nimport build, wheels\n"
        f"folder = Path({str(folder)!r})\n"
        "found = lambda: sorted(map(wheels.read_wheel, folder.glob('*.whl')), key=lambda each: each.name)\n"
        f"print({expression})"
    )
    done = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    if done.returncode:
        raise ValueError(done.stderr.splitlines()[-1])
    return done.stdout.strip()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a bundle with an extra; its tar file lies beside it."""
    dist = tmp_path_factory.mktemp("dist")
    write_wheels(dist / "partial" / "wheels")
    tar = Path(call(f"build.finish(folder, ['ray'], {EPOCH})", folder=dist / "partial"))
    assert tar == dist / "fedtune-9.9-offline.tar"
    return tar.with_suffix("")


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    """A copy to spoil, unpacked from the tar file."""
    with tarfile.open(f"{made}.tar") as archive:
        # Python 3.11 has the filter from 3.11.4 on.
        archive.extractall(tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    return tmp_path / made.name


def install(bundle: Path, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", str(bundle / "install.sh"), str(folder)],
        env={"PATH": os.environ["PATH"], "PYTHON": str(PYTHON), **environment},
        cwd=folder.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def seal(bundle: Path) -> None:
    """Make the sums right again, as somebody would who changes a bundle on purpose."""
    (bundle / "SHA256SUMS").unlink()
    (bundle / "SHA256SUMS").write_text(call("build.sums(folder)", folder=bundle) + "\n")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_every_wheel_is_locked_at_its_version_with_its_hash(made: Path) -> None:
    lines = (made / "requirements.lock").read_text().splitlines()
    wheels = {path.name.split("-")[0]: digest(path) for path in (made / "wheels").iterdir()}
    assert lines[1:] == [
        text
        for name, pin in [
            ("alpha", "alpha==1.0+cpu"),
            ("beta", "beta==2"),
            ("delta", "delta==3"),
            ("fedtune", "fedtune[ray]==9.9"),
        ]
        for text in (f"{pin} \\", f"    --hash=sha256:{wheels[name]}")
    ]


def test_every_file_has_a_sum_that_sha256sum_finds_right(bundle: Path) -> None:
    check = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    done = subprocess.run(check, cwd=bundle, capture_output=True, text=True, check=True)
    files = {str(path.relative_to(bundle)) for path in bundle.rglob("*") if path.is_file()}
    assert {line.removesuffix(": OK") for line in done.stdout.splitlines()} == files - {"SHA256SUMS"}


def test_the_bill_of_materials_names_every_wheel_with_its_hash_and_licence(made: Path) -> None:
    bill = json.loads((made / "sbom.cdx.json").read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert bill["metadata"]["timestamp"] == "2023-11-14T22:13:20+00:00"
    components = {each["name"]: each for each in [*bill["components"], bill["metadata"]["component"]]}
    for path in (made / "wheels").iterdir():
        name, version = path.name.split("-")[:2]
        component = components.pop(name)
        assert component["version"] == version
        assert component["purl"] == f"pkg:pypi/{name}@{version.replace('+', '%2B')}"
        assert component["hashes"] == [{"alg": "SHA-256", "content": digest(path)}]
        licences = {
            "fedtune": [{"license": {"id": "Apache-2.0", "acknowledgement": "declared"}}],
            "alpha": [{"license": {"name": "MIT License", "acknowledgement": "declared"}}],
        }
        assert component.get("licenses") == licences.get(name)
    assert components == {}


def test_the_bill_of_materials_says_what_needs_what_extras_included(made: Path) -> None:
    bill = json.loads((made / "sbom.cdx.json").read_text())
    needs = {each["ref"]: each.get("dependsOn") for each in bill["dependencies"]}
    assert needs == {
        "pkg:pypi/fedtune@9.9": ["pkg:pypi/alpha@1.0%2Bcpu", "pkg:pypi/delta@3"],
        "pkg:pypi/alpha@1.0%2Bcpu": ["pkg:pypi/beta@2"],
        "pkg:pypi/beta@2": None,
        "pkg:pypi/delta@3": None,
    }


def test_the_bill_of_materials_is_valid_by_the_standards_own_schema(made: Path, tmp_path: Path) -> None:
    validate = (
        "__import__('cyclonedx.validation.json').validation.json.JsonStrictValidator("
        "__import__('cyclonedx.schema').schema.SchemaVersion.V1_6).validate_str(folder.read_text())"
    )
    assert call(validate, folder=made / "sbom.cdx.json") == "None"
    bill = json.loads((made / "sbom.cdx.json").read_text())
    bill["components"][0]["hashes"][0]["content"] = "not a hash"
    (tmp_path / "spoilt.json").write_text(json.dumps(bill))
    assert "not a hash" in call(validate, folder=tmp_path / "spoilt.json")


@pytest.mark.parametrize(
    ("extras", "missing", "message"),
    [
        (["ray"], "beta", "beta is needed and not in the bundle"),
        ([], None, "nothing in the bundle needs delta"),
    ],
)
def test_a_set_of_wheels_that_is_not_complete_or_holds_more_is_refused(
    extras: Sequence[str], missing: str | None, message: str, tmp_path: Path
) -> None:
    write_wheels(tmp_path / "wheels")
    for path in (tmp_path / "wheels").glob(f"{missing}-*"):
        path.unlink()
    with pytest.raises(ValueError, match=message):
        call(f"wheels.needs(found(), {extras!r})", folder=tmp_path / "wheels")


@pytest.mark.parametrize(
    ("tags", "oldest"),
    [
        (["py3-none-any"], (2, 17)),
        (["cp311-cp311-manylinux2014_x86_64.manylinux_2_28_x86_64"], (2, 17)),
        (["cp311-cp311-manylinux_2_28_x86_64", "cp36-abi3-manylinux_2_34_x86_64"], (2, 34)),
        (["cp311-cp311-linux_x86_64"], tuple(map(int, platform.libc_ver()[1].split(".")))),
    ],
)
def test_the_oldest_glibc_is_that_of_the_most_demanding_wheel(
    tags: Sequence[str], oldest: tuple[int, ...], tmp_path: Path
) -> None:
    for number, tag in enumerate(tags):
        write_wheel(tmp_path, f"w{number}", "1", tag=tag)
    assert call("wheels.glibc(found())", folder=tmp_path) == str(oldest)


def test_the_same_wheels_give_the_same_bytes(made: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_wheels(tmp_path / name / "partial" / "wheels")
        os.utime(tmp_path / name / "partial" / "wheels" / "beta-2-py3-none-any.whl", (1, len(name)))
        call(f"build.finish(folder, ['ray'], {EPOCH})", folder=tmp_path / name / "partial")
        assert digest(tmp_path / name / f"{made.name}.tar") == digest(Path(f"{made}.tar"))
    with tarfile.open(f"{made}.tar") as archive:
        members = archive.getmembers()
    assert {(member.mtime, member.uid, member.gid, member.uname) for member in members} == {
        (EPOCH, 0, 0, "root")
    }
    assert [member.name for member in members if member.isfile() and member.mode & 0o111] == [
        f"{made.name}/install.sh"
    ]


def test_the_bundle_brings_what_a_machine_without_internet_needs_to_go_on(made: Path) -> None:
    for name in (
        "client/Containerfile",
        "client/fedtune-client@.service",
        "client/site.example.yaml",
        "server/Containerfile",
        "server/fedtune-server.service",
        "docs/how-to/run-a-site.md",
        "docs/reference/errors/FT804.md",
        "LICENSE",
    ):
        assert (made / name).read_bytes() == (ROOT / name).read_bytes()
    text = (made / "INSTALL.md").read_text() + (made / "install.sh").read_text()
    assert "@PYTHON@" not in text
    assert f"for CPython {sys.version_info.major}.{sys.version_info.minor} on Linux" in text


def test_it_is_installed_from_the_bundle_whatever_pip_is_set_up_to_do(bundle: Path, tmp_path: Path) -> None:
    settings = tmp_path / "pip.conf"
    settings.write_text(f"[global]\ntarget = {tmp_path / 'elsewhere'}\n")
    # A newer version that is not in the lock, as if it had been slipped in.
    write_wheel(bundle / "wheels", "beta", "7")
    done = install(
        bundle, tmp_path / "a venv", PIP_CONFIG_FILE=str(settings), PIP_TARGET=str(tmp_path / "elsewhere")
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("fedtune 9.9 is installed")
    found = {path.name for path in (tmp_path / "a venv").glob("lib/python*/site-packages/*.dist-info")}
    assert {each for each in found if not each.startswith(("pip-", "setuptools-"))} == {
        "alpha-1.0+cpu.dist-info",
        "beta-2.dist-info",
        "delta-3.dist-info",
        "fedtune-9.9.dist-info",
    }
    again = install(bundle, tmp_path / "a venv")
    assert again.returncode == 1
    assert again.stderr.startswith("the folder is there already\n")


def test_a_damaged_file_is_named_before_anything_is_made(bundle: Path, tmp_path: Path) -> None:
    wheel = bundle / "wheels" / "beta-2-py3-none-any.whl"
    wheel.write_bytes(wheel.read_bytes()[:-1] + b"x")
    done = install(bundle, tmp_path / "venv")
    assert done.returncode == 1
    assert done.stderr.startswith("the bundle is damaged\n  where: wheels/beta-2-py3-none-any.whl: FAILED\n")
    assert not (tmp_path / "venv").exists()


def test_a_changed_wheel_with_a_changed_sum_is_refused_by_its_hash_in_the_lock(
    bundle: Path, tmp_path: Path
) -> None:
    (bundle / "wheels" / "beta-2-py3-none-any.whl").unlink()
    write_wheel(bundle / "wheels", "beta", "2", "Summary: another")
    seal(bundle)
    done = install(bundle, tmp_path / "venv")
    assert done.returncode != 0
    assert "beta" in done.stderr
    assert "HASH" in done.stderr.upper()
    assert not (tmp_path / "venv").exists()


def test_another_python_is_refused_in_words(bundle: Path, tmp_path: Path) -> None:
    other = tmp_path / "python"
    other.write_text("#!/bin/sh\necho CPython 3.99 Linux $(uname -m)\n")
    other.chmod(0o755)
    done = install(bundle, tmp_path / "venv", PYTHON=str(other))
    assert done.returncode == 1
    assert "this bundle is for CPython" in done.stderr
    assert "CPython 3.99" in done.stderr
    gone = install(bundle, tmp_path / "venv", PYTHON=str(tmp_path / "nothing"))
    assert gone.returncode == 1
    assert gone.stderr.startswith("there is no Python")
    assert not (tmp_path / "venv").exists()


def test_the_installer_is_plain_posix_sh(bundle: Path) -> None:
    for shell in filter(None, map(shutil.which, ("sh", "dash", "bash", "busybox"))):
        command = [shell, "sh", "-n"] if shell.endswith("busybox") else [shell, "-n"]
        subprocess.run([*command, str(bundle / "install.sh")], check=True)
