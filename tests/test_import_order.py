"""A module imports only from what comes before it in the flow, and the command line starts without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fedtune"

ORDER = (
    "errors",
    "config",
    "observability",
    "data",
    "models",
    "training",
    "evaluation",
    "updates",
    "aggregation",
    "secagg",
    "keys",
    "export",
    "federation",
    "coordinator",
    "simulation",
    "site",
    "commands",
    "cli",
    "__main__",
)
"""config -> examples -> model -> training -> delta -> message -> aggregate -> export, and who uses them."""

HEAVY = ("torch", "transformers", "peft", "bitsandbytes", "flwr", "pandas", "matplotlib")


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part_of(dotted: str) -> str | None:
    """Return the part of fedtune that a dotted name lies in; None for fedtune itself and for others."""
    first, _, rest = dotted.partition(".")
    return rest.split(".")[0] or None if first == "fedtune" else None


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and dotted name of all that a file imports, inside functions and for types alone as well."""
    package = path.relative_to(ROOT).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level]) if node.level else ""
            source = ".".join(filter(None, (base, node.module)))
            yield from ((node.lineno, f"{source}.{alias.name}") for alias in node.names)


def part_of_module(path: Path) -> str | None:
    """Return the part that a file belongs to; None for ``fedtune/__init__.py``, which stands above all."""
    first = path.relative_to(PACKAGE).parts[0]
    return None if first == "__init__.py" else first.removesuffix(".py")


def test_every_part_has_a_place_in_the_order() -> None:
    assert {part_of_module(path) for path in modules()} - {None} <= set(ORDER)


def test_a_module_imports_only_from_its_own_or_earlier_parts() -> None:
    wrong = []
    for path in modules():
        mine = part_of_module(path)
        if mine is None:
            continue
        for line, name in imported(path):
            theirs = part_of(name)
            # `from fedtune import __version__` names no part.
            if theirs in ORDER and ORDER.index(theirs) > ORDER.index(mine):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}: {theirs} comes after {mine}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import fedtune.cli", ["fedtune.cli"]),
        ("from fedtune import cli, data", ["fedtune.cli", "fedtune.data"]),
        ("from fedtune.data.load import x", ["fedtune.data.load.x"]),
        ("from . import y", ["fedtune.models.y"]),
        ("from ..cli import main", ["fedtune.cli.main"]),
        ("def f():\n    import torch, fedtune.site", ["torch", "fedtune.site"]),
        ("if TYPE_CHECKING:\n    from fedtune.site import z", ["fedtune.site.z"]),
    ],
)
def test_every_form_of_import_is_seen(
    source: str, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "fedtune" / "models" / "adapted.py"
    path.parent.mkdir(parents=True)
    path.write_text(source)
    assert [name for _, name in imported(path)] == expected


@pytest.mark.skipif(not (PACKAGE / "cli.py").is_file(), reason="there is no command line yet")
def test_the_command_line_starts_without_heavy_libraries() -> None:
    script = f"import sys, fedtune.cli; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split() == []


def test_packages_themselves_are_light() -> None:
    """``import fedtune.models`` says nothing about torch until a submodule is asked for."""
    packages = [
        ".".join(path.parent.relative_to(ROOT).parts) for path in modules() if path.name == "__init__.py"
    ]
    script = (
        f"import importlib, sys\nfor name in {packages!r}: importlib.import_module(name)\n"
        f"print(*[name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split() == []


WITHOUT_A_MODEL = (
    "fedtune.commands.client_audit",
    "fedtune.commands.client_operator",
    "fedtune.commands.client_setup",
    "fedtune.commands.client_status",
    "fedtune.commands.server_run",
    "fedtune.commands.server_setup",
    "fedtune.coordinator.daemon",
)


def test_who_trains_nothing_loads_nothing_that_trains() -> None:
    """The server's process and the operators' commands: seconds and hundreds of MiB at each start."""
    script = (
        f"import importlib, sys\nfor name in {WITHOUT_A_MODEL!r}: importlib.import_module(name)\n"
        "print(*[name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split() == []
