"""What a folder of wheels holds: as a list for pip, and as a bill of materials."""

from __future__ import annotations

import hashlib
import platform
import re
import uuid
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from packaging.metadata import RawMetadata, parse_email
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

NAMESPACE = uuid.uuid5(uuid.NAMESPACE_OID, "fedtune offline bundle")
OLD_NAMES = {"manylinux1": (2, 5), "manylinux2010": (2, 12), "manylinux2014": (2, 17)}
"""Platform tags from before PEP 600, and the glibc that each stands for."""


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A wheel and what it says about itself.

    Attributes:
        path: The file.
        name: Canonical name of what is in it.
        version: Its version, with the local part if there is one.
        sha256: Of the file, in hex.
        metadata: Its METADATA file.
    """

    path: Path
    name: str
    version: str
    sha256: str
    metadata: RawMetadata


def read_wheel(path: Path) -> Wheel:
    """Read a wheel's name, version, hash and metadata."""
    name, version, _, _ = parse_wheel_filename(path.name)
    with zipfile.ZipFile(path) as archive:
        (inside,) = (each for each in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", each))
        metadata, _ = parse_email(archive.read(inside))
    return Wheel(path=path, name=str(name), version=str(version), sha256=sha256(path), metadata=metadata)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def needs(wheels: Sequence[Wheel], extras: Sequence[str]) -> dict[str, set[str]]:
    """Return what each package needs on this platform, followed from fedtune with these extras.

    Raises:
        ValueError: A package that is needed is not among the wheels, or one is that nobody needs.
    """
    by_name = {wheel.name: wheel for wheel in wheels}
    found: dict[str, set[str]] = {}
    waiting = [("fedtune", extra) for extra in ("", *extras)]
    done: set[tuple[str, str]] = set()
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in done:
            continue
        done.add((name, extra))
        if name not in by_name:
            raise ValueError(f"{name} is needed and not in the bundle")
        direct = found.setdefault(name, set())
        for requirement in map(Requirement, by_name[name].metadata.get("requires_dist", [])):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                deeper = str(canonicalize_name(requirement.name))
                direct |= {deeper} - {name}
                waiting += [(deeper, canonicalize_name(each)) for each in ("", *requirement.extras)]
    if surplus := set(by_name) - set(found):
        raise ValueError(f"nothing in the bundle needs {', '.join(sorted(surplus))}")
    return found


def glibc(wheels: Iterable[Wheel]) -> tuple[int, ...]:
    """Return the oldest glibc that all wheels run with, this machine's for one that was compiled here."""
    needed: list[tuple[int, ...]] = [(2, 17)]
    here = tuple(map(int, re.findall(r"\d+", platform.libc_ver()[1])[:2]))
    for wheel in wheels:
        suits: list[tuple[int, ...]] = []
        for tag in parse_wheel_filename(wheel.path.name)[3]:
            if match := re.match(r"manylinux_(\d+)_(\d+)_", tag.platform):
                suits.append((int(match[1]), int(match[2])))
            elif (old := tag.platform.partition("_")[0]) in OLD_NAMES:
                suits.append(OLD_NAMES[old])
            elif old == "linux":
                suits.append(here)
        needed += [min(suits)] if suits else []
    return max(needed)


def lock(wheels: Sequence[Wheel], extras: Sequence[str]) -> str:
    """Return what pip installs, and nothing else: each package at its version, with its hash."""
    lines = ["# pip installs exactly these, and only from files with these hashes."]
    for wheel in wheels:
        chosen = f"[{','.join(extras)}]" if extras and wheel.name == "fedtune" else ""
        lines.append(f"{wheel.name}{chosen}=={wheel.version} \\\n    --hash=sha256:{wheel.sha256}")
    return "\n".join(lines) + "\n"


def bill_of_materials(wheels: Sequence[Wheel], extras: Sequence[str], epoch: int) -> str:
    """Return the bill of materials in CycloneDX 1.6 JSON, checked against the standard's schema.

    Each component has its package URL, its wheel's SHA-256, the licence it declares and what it needs.

    Raises:
        ValueError: The schema refuses it.
    """
    from cyclonedx.contrib.license.factories import LicenseFactory  # noqa: PLC0415
    from cyclonedx.contrib.this.builders import this_component  # noqa: PLC0415
    from cyclonedx.model import HashAlgorithm, HashType  # noqa: PLC0415
    from cyclonedx.model.bom import Bom, BomMetaData  # noqa: PLC0415
    from cyclonedx.model.component import Component, ComponentType  # noqa: PLC0415
    from cyclonedx.model.license import LicenseAcknowledgement  # noqa: PLC0415
    from cyclonedx.output import make_outputter  # noqa: PLC0415
    from cyclonedx.schema import OutputFormat, SchemaVersion  # noqa: PLC0415
    from cyclonedx.validation.json import JsonStrictValidator  # noqa: PLC0415
    from packageurl import PackageURL  # noqa: PLC0415

    def component(wheel: Wheel) -> Component:
        purl = PackageURL("pypi", None, wheel.name, wheel.version)
        licence, declared = declared_licence(wheel.metadata), LicenseAcknowledgement.DECLARED
        return Component(
            type=ComponentType.APPLICATION if wheel.name == "fedtune" else ComponentType.LIBRARY,
            name=wheel.name,
            version=wheel.version,
            bom_ref=str(purl),
            purl=purl,
            description=wheel.metadata.get("summary"),
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=wheel.sha256)],
            licenses=[LicenseFactory().make_from_string(licence, license_acknowledgement=declared)]
            if licence
            else [],
        )

    components = {wheel.name: component(wheel) for wheel in wheels}
    fedtune = components["fedtune"]
    bom = Bom(
        serial_number=uuid.uuid5(NAMESPACE, lock(wheels, extras)),
        metadata=BomMetaData(component=fedtune, timestamp=datetime.fromtimestamp(epoch, UTC)),
        components=[each for each in components.values() if each is not fedtune],
    )
    bom.metadata.tools.components.add(this_component())
    for name, needed in needs(wheels, extras).items():
        bom.register_dependency(components[name], [components[each] for each in sorted(needed)])
    text = make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=2) + "\n"
    if problem := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        raise ValueError(f"the bill of materials is not valid CycloneDX 1.6: {problem}")
    return text


def declared_licence(metadata: RawMetadata) -> str | None:
    """Return the licence that a package declares: an expression, else a classifier, else a short text."""
    if expression := metadata.get("license_expression"):
        return expression
    prefix = "License :: "
    for classifier in metadata.get("classifiers", []):
        if classifier.startswith(prefix) and not classifier.endswith("OSI Approved"):
            return classifier.rpartition(" :: ")[2]
    first = metadata.get("license", "").strip()
    return first if first and "\n" not in first else None
