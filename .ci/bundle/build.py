"""`make bundle`: all that a site without internet installs, in one folder and one tar file.

    dist/fedtune-VERSION-offline/
      install.sh  INSTALL.md     checks the bundle and installs it; how to
      wheels/                    fedtune and everything it needs, for this platform and this Python
      requirements.lock          each of them at its version, with its SHA-256
      sbom.cdx.json              the same as a bill of materials, CycloneDX 1.6
      server/  client/           container files, systemd units, the example policy
      docs/  LICENSE
      SHA256SUMS                 of every other file
    dist/fedtune-VERSION-offline.tar, and its SHA-256 beside it

Packages come from wherever pip is set up to take them from. From equal packages, the same commit gives the
same bytes: order, times, owners and modes depend on nothing else.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from packaging.utils import canonicalize_name
from wheels import bill_of_materials, glibc, lock, read_wheel, sha256

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = ("INSTALL.md", "install.sh")
BESIDE = (
    "LICENSE",
    "server/Containerfile",
    "server/*.service",
    "client/Containerfile",
    "client/*.service",
    "client/site.example.yaml",
    "docs/**/*.md",
)
SUMS = "SHA256SUMS"


def sums(folder: Path) -> str:
    """Return a line `SHA-256  path` for every file of a folder, as `sha256sum --check` reads it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMS)
    return "".join(f"{sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files)


def fill(text: str, values: Mapping[str, str]) -> str:
    """Put values in the place of `@NAME@`.

    Raises:
        KeyError: A name has no value.
    """
    return re.sub(r"@([A-Z_]+)@", lambda match: values[match[1]], text)


def settle(folder: Path, epoch: int) -> None:
    """Give every file its mode, and everything the same time."""
    for path in [*folder.rglob("*"), folder]:
        path.chmod(0o755 if path.is_dir() or path.suffix == ".sh" else 0o644)
        os.utime(path, (epoch, epoch))


def pack(folder: Path, tar: Path) -> None:
    """Write a folder into a tar file: sorted, owned by root. The wheels in it are compressed already."""

    def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = "root"
        member.mtime = int(member.mtime)
        return member

    with tarfile.open(tar, "w", format=tarfile.PAX_FORMAT) as archive:
        for path in [folder, *sorted(folder.rglob("*"))]:
            archive.add(path, f"{folder.name}/{path.relative_to(folder)}", recursive=False, filter=anonymous)


def gather(wheels: Path, extras: Sequence[str], environment: Mapping[str, str]) -> None:
    """Build fedtune's wheel, and fetch or build one of everything that it needs, at the pinned versions."""

    def run(*command: str) -> None:
        subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=environment, check=True)  # noqa: S603

    pins = str(ROOT / "constraints.txt")
    run("hatchling", "build", "-t", "wheel", "-d", str(wheels))
    (fedtune,) = wheels.glob("fedtune-*.whl")
    known = {str(canonicalize_name(each)) for each in read_wheel(fedtune).metadata.get("provides_extra", [])}
    if unknown := set(extras) - known:
        sys.exit(
            f"no such extra: {', '.join(sorted(unknown))}\nchoose EXTRAS from: {', '.join(sorted(known))}"
        )
    asked = f"{fedtune}[{','.join(extras)}]" if extras else str(fedtune)
    run("pip", "download", "--quiet", "--dest", str(wheels), "--constraint", pins, asked)
    for source in sorted({*wheels.iterdir()} - {*wheels.glob("*.whl")}):
        # Not from pip's cache: a wheel that was built there earlier has other times in it.
        build = ["pip", "wheel", "--quiet", "--no-deps", "--no-cache-dir", "--build-constraint", pins]
        run(*build, "--wheel-dir", str(wheels), str(source))
        source.unlink()


def finish(folder: Path, extras: Sequence[str], epoch: int) -> Path:
    """Put everything else beside the wheels of a folder, rename it to the bundle, and pack that.

    Args:
        folder: Has the wheels in `wheels`, and nothing else.
        extras: Extras of fedtune that they are for.
        epoch: Time that all files get, in seconds since 1970.

    Returns:
        The tar file, beside the folder.
    """
    wheels = sorted(map(read_wheel, (folder / "wheels").iterdir()), key=lambda wheel: wheel.name)
    (version,) = (wheel.version for wheel in wheels if wheel.name == "fedtune")
    (folder / "requirements.lock").write_text(lock(wheels, extras), encoding="utf-8")
    (folder / "sbom.cdx.json").write_text(bill_of_materials(wheels, extras, epoch), encoding="utf-8")
    values = {
        "VERSION": version,
        "PYTHON": f"{sys.version_info.major}.{sys.version_info.minor}",
        "MACHINE": platform.machine(),
        "GLIBC": ".".join(map(str, glibc(wheels))),
        "PACKAGES": str(len(wheels)),
        "EXTRAS": f"with the extras {', '.join(extras)}" if extras else "without extras",
    }
    for name in TEMPLATES:
        text = (Path(__file__).parent / name).read_text(encoding="utf-8")
        (folder / name).write_text(fill(text, values), encoding="utf-8")
    for source in sorted(path for pattern in BESIDE for path in ROOT.glob(pattern)):
        target = folder / source.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    (folder / SUMS).write_text(sums(folder), encoding="utf-8")
    settle(folder, epoch)
    bundle = folder.with_name(f"fedtune-{version}-offline")
    shutil.rmtree(bundle, ignore_errors=True)
    folder.rename(bundle)
    tar = bundle.with_name(f"{bundle.name}.tar")
    pack(bundle, tar)
    tar.with_name(f"{tar.name}.sha256").write_text(f"{sha256(tar)}  {tar.name}\n", encoding="utf-8")
    return tar


def source_date() -> int:
    """Return the time that all files get: `SOURCE_DATE_EPOCH`, else when this commit was made."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(given)
    asked = ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        sys.exit(
            "this is no git checkout, so the bundle has no date: set SOURCE_DATE_EPOCH to seconds since 1970"
        )
    return int(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", help="where the bundle is made")
    parser.add_argument("--extras", default="", help="extras of fedtune, with commas between them")
    arguments = parser.parse_args()
    extras = sorted({str(canonicalize_name(each)) for each in arguments.extras.split(",") if each})
    epoch = source_date()
    partial = arguments.dist / ".offline.partial"
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "wheels").mkdir(parents=True)
    gather(partial / "wheels", extras, os.environ | {"SOURCE_DATE_EPOCH": str(epoch)})
    tar = finish(partial, extras, epoch)
    print(f"{tar}  {tar.stat().st_size / 1e6:,.0f} MB\nSHA-256  {sha256(tar)}")


if __name__ == "__main__":
    main()
