"""What README and docs tell a reader to type can be typed, and what they link to is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from fedtune.cli import build_parser
from fedtune.config.compose import compose

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("tutorial/*.md")),
    *sorted((ROOT / "docs").glob("how-to/*.md")),
]
COMMANDS = sorted(
    {
        re.sub(r"( 2> \S+)?( &)?$", "", re.split(r"  +[a-z]", line.strip())[0])
        for page in PAGES
        for line in page.read_text(encoding="utf-8").splitlines()
        if line.startswith("    fedtune ")
    }
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_readme_and_the_tutorials_parses(command: str, tmp_path: Path) -> None:
    arguments = build_parser().parse_args(shlex.split(command)[1:])
    overrides = [text for text in getattr(arguments, "overrides", []) if "," not in text or "[" in text]
    if command.startswith("fedtune simulate"):
        assert compose([*overrides, f"runs_dir={tmp_path}"]).federation.rounds >= 1


@pytest.mark.parametrize(
    "page", [*PAGES, *sorted((ROOT / "docs").rglob("explanation/*.md"))], ids=lambda page: page.name
)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[)#]", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_the_readme_names_every_folder_of_the_package() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for folder in (ROOT / "fedtune").iterdir():
        if (folder / "__init__.py").exists():
            assert f"{folder.name}/" in text, folder.name
