"""What ruff and import-linter (see pyproject.toml) cannot say of imports and exits."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ("dcn", "models", "data", "engine")
RULES = {
    # import-linter sees a module, whichever way it was named; the wheel gives `models` another name
    "imports within a folder are relative": (LIBRARY, r"^\s*(from|import) {folder}\b"),
    "tools and other rooms import from a room, not from its modules": (
        ("engine", "tools"),
        r"^\s*from (\.\.|engine\.)\w+\.\w+|^\s*import engine\.",
    ),
    "tools import each other by name alone": (("tools",), r"^\s*(from|import) (tools\b|\.)"),
    # its errors contain the file, the reason and the place
    "JSON is read by data/json_file.py": (("data", "engine", "tools"), r"\bjson\.loads?\b(?!\(text, parse_int)"),
    "only tools leave the program": (LIBRARY, r"raise SystemExit"),
}


@pytest.mark.parametrize("rule", RULES)
def test_rules(rule):
    folders, pattern = RULES[rule]
    offenders = []
    for folder in folders:
        files = sorted((ROOT / folder).rglob("*.py"))
        assert files
        for file in files:
            found = re.finditer(pattern.format(folder=folder), file.read_text(encoding="utf-8"), re.MULTILINE)
            offenders += [f"{file.relative_to(ROOT)}: {match.group().strip()}" for match in found]
    assert not offenders, rule


def test_files_of_two_folders_are_copies():
    """The package contains `models` without `data`, so `models` has copies. Only these files have a name of both."""
    files = {folder: {file.name for file in (ROOT / folder).glob("[!_]*.py")} for folder in ("data", "models")}
    shared = files["data"] & files["models"]
    assert shared == {"band_files.py", "image_files.py", "pixels.py", "regular_files.py", "shown.py"}
    for name in shared:
        assert (ROOT / "models" / name).read_bytes() == (ROOT / "data" / name).read_bytes(), name


def test_the_rooms_are_drawn_as_they_are():
    """The architecture page lists each room with the rooms that it imports, in the order of import-linter's layers."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    (layers,) = (contract["layers"] for contract in contracts if "containers" in contract)
    order = [room for layer in layers for room in layer.split(" | ")]
    drawn = ""
    for room in order:
        text = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "engine" / room).rglob("*.py"))
        below = {*re.findall(r"^\s*from \.\.(\w+) import", text, re.MULTILINE)}
        arrow = f" -> {', '.join(name for name in order if name in below)}" if below else ""
        drawn += f"{room:<12}{arrow}".rstrip() + "\n"
    assert drawn in (ROOT / "docs/development/architecture.md").read_text(encoding="utf-8"), (
        f"draw the rooms so:\n{drawn}"
    )
