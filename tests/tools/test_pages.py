"""docs/tools/<tool>.md: every tool has a page, which names every option of its --help and no other."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = sorted(file.stem for file in (ROOT / "tools").glob("[!_]*.py"))


@pytest.fixture(scope="module")
def options_of(run_tool):
    """`options_of(tool)`: its long options, those of its commands too."""

    def ask(*command) -> set[str]:
        code, out, err = run_tool(*command, "--help")
        assert (code, err) == (0, "")
        found = set(re.findall(r"^ +(?:-\w(?: \w+)?, )?(--[a-z][a-z-]*)", out, re.MULTILINE)) - {"--help"}
        commands = re.search(r"^positional arguments:\n +\{([\w,]+)\}", out, re.MULTILINE)
        for name in commands[1].split(",") if commands else ():
            found |= ask(*command, name)
        return found

    return ask


def rows(page: str) -> str:
    """First cells of the rows of all tables."""
    return "\n".join(line.split("|")[1] for line in page.splitlines() if line.startswith("|"))


@pytest.mark.parametrize("tool", TOOLS)
def test_the_page_names_the_options(options_of, tool):
    text, options = (ROOT / f"docs/tools/{tool}.md").read_text(encoding="utf-8"), options_of(tool)
    assert f"python tools/{tool}.py" in text
    missing = {option for option in options if not re.search(rf"(?<![\w-]){option}(?![\w-])", text)}
    assert not missing, f"docs/tools/{tool}.md says nothing of {sorted(missing)}"
    unknown = set(re.findall(r"`(--[a-z][a-z-]*)", rows(text))) - options
    assert not unknown, f"docs/tools/{tool}.md tells of {sorted(unknown)}, which tools/{tool}.py does not have"


def test_options_are_seen(options_of):
    assert options_of("make_shapes") == {
        "--out",
        "--train-images",
        "--val-images",
        "--width",
        "--height",
        "--deformation",
        "--format",
        "--seed",
    }
    assert {"--backends", "--sizes", "--steps", "--rounds"} <= options_of("benchmark")
    assert options_of("make_docs") == set()
