"""The blocks of code in the README and the pages: commands of tools, Python and YAML."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(file.relative_to(ROOT).as_posix() for file in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
_BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
_COMMAND = re.compile(r"(?:\$ )?(?:[A-Z_]+=\S+ )*(?:python3?|torchrun|srun|make|cp|pip) ")
_TOOL = re.compile(r"(?:python3? |torchrun .*?)tools/(\w+)\.py", re.DOTALL)


class Command(NamedTuple):
    """A command line on a page.

    Attributes:
        page: path of the page.
        text: the command as a shell takes it, continuation lines included.
        tool: name of the tool, None for other programs.
        arguments: arguments of the tool.
        output: the rest of the block, if the command has a prompt `$`: what the page shows as its output.
    """

    page: str
    text: str
    tool: str | None
    arguments: list[str]
    output: str | None


def text_of(page: str) -> str:
    """Return the text of a page."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    """Return the code blocks of a page in a language; "" for blocks without one."""
    return [block[3] for block in _BLOCK.finditer(text_of(page)) if block[2] == language]


def commands(page: str) -> list[Command]:
    """Return the commands of all blocks without a language, or with that of a shell, in order."""
    shown = [block for language in ("", "bash", "console", "sh") for block in blocks(page, language)]
    shown.sort(key=text_of(page).index)
    return [command for block in shown for command in _commands(page, block)]


def _commands(page: str, block: str) -> Iterator[Command]:
    lines = block.splitlines()
    while lines:
        line = lines.pop(0)
        if not _COMMAND.match(line):
            continue
        text = line.removeprefix("$ ")
        while lines and (text.endswith("\\") or not _is_whole(text)):
            text += "\n" + lines.pop(0)
        output = "\n".join(lines) if line.startswith("$ ") else None
        for part in re.split(r"\s&&\s", text):
            tool = _TOOL.search(part)
            after = part[tool.end() :].replace("\\\n", " ") if tool else ""
            yield Command(page, part, tool[1] if tool else None, shlex.split(after, comments=True), output)


def _is_whole(text: str) -> bool:
    try:
        shlex.split(text, comments=True)
    except ValueError:  # a quotation that the next line closes
        return False
    return True
