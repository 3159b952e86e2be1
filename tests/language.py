"""Find words and sentences that the project's style excludes: `python tests/language.py PATH...` lists them.

The text of a Python file is its docstrings, comments and messages; of a page, what is outside of code. The rules are
in CONTRIBUTING.md.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
MOST_WORDS = 35
# expression -> what to write instead; each matches whole words, in any case
BANNED = {
    "judg(?:e|es|ed|ing|ement|ments?)": "evaluate, match",
    "verdicts?": "match, result, conclusion",
    "told|tells?|say|says|said": "log, print, report, warn, show",
    "anew": "again",
    "besides?": "next to, together with",
    "thus": "so",
    "goes on|go on|going on|went on": "resumes, continues",
    "mend(?:s|ed|ing)?": "fix",
    "(?:is|are) (?:none|no) ": "is not a valid ..., is missing",
    "take(?:s|n)? over|taking over|took over": "match, copy, load",
    "pictures?": "image, figure",
    "mirror images?": "horizontal flip",
    "whatever": "for any",
    "meanwhile": "at the same time, until then",
    "in lieu": "instead of",
    "by (?:it|them)sel(?:f|ves)": "alone, automatically",
    "at the least": "at least",
    "least sides?": "minimum size",
    "seen to": "handled by ...",
    "refus(?:e|es|ed|al|als|ing)": "is an error, raises, stops",
    "so many": "this many, n",
    "look(?:s|ed|ing)? at": "check, evaluate, read",
    "stands?": "is",
    "lies?": "is",
    "of (?:its|their|his) own": "its own ..., separate",
    "in the mean": "on average",
    "one another": "each other",
    "mistakes?": "error",
    "lets": "allows",
    "befalls?": "happens",
}
_BANNED = re.compile(
    "|".join(rf"(?P<b{i}>\b(?:{words})(?:\b|(?<= )))" for i, words in enumerate(BANNED)), re.IGNORECASE
)
_MARKUP = re.compile(r"<style>.*?</style>|<script>.*?</script>|\{[{%#].*?[}%#]\}|<[^>]*>", re.DOTALL)
_KINDS = re.compile(r"\.(?:py|md|j2|ya?ml)$|^Makefile$")
_COMMAND = re.compile(r"^.*\b(?:python tools/|torchrun |>>> ).*$", re.MULTILINE)
# a sentence starts with a noun, a verb or "you"
_OPENINGS = re.compile(r"^(?:Who|Whoever|Whose|What|Of|Gives?|Let|Lets)\b(?!.*\?$)")


class Offence(NamedTuple):
    """A place in a file and what is wrong there."""

    path: str
    line: int
    problem: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.problem}"


def offences(path: Path) -> list[Offence]:
    """Return what a file has of banned words, banned openings and long sentences."""
    name = path.resolve().relative_to(ROOT).as_posix() if path.resolve().is_relative_to(ROOT) else str(path)
    found = []
    for line, text in texts(path):
        for match in _BANNED.finditer(text):
            instead = list(BANNED.values())[int(match.lastgroup[1:])]
            at = line + text.count("\n", 0, match.start())
            found.append(Offence(name, at, f"{match.group().strip()!r}: write {instead}"))
        for sentence in sentences(text):
            if _OPENINGS.match(sentence):
                found.append(Offence(name, line, f"a sentence starts with {sentence.split()[0]!r}: {sentence[:60]!r}"))
            count = len(sentence.split())
            if count > MOST_WORDS:
                found.append(Offence(name, line, f"{count} words, at most {MOST_WORDS}: {sentence[:60]!r}"))
    return found


def sentences(text: str) -> Iterator[str]:
    """Yield the sentences of a text; paragraphs, items of lists, cells of tables and arguments end one."""
    starts_item = r"\n(?=\s*(?:[-*#>|]|\d+\.\s|\w+(?: \([^)]*\))?:\s|\w[\w.]*:\n))"
    for part in re.split(rf"\n\s*\n|{starts_item}|\s\|\s|^\||\|$", text):
        for sentence in re.split(r"(?<=[.!?:])[)*_\"']*\s+(?=[A-Z`\"'(*_\[{<])", part):
            if plain := " ".join(re.sub(r"^[\s>#*|-]+", "", sentence).split()):
                yield plain


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield `(line, text)` of the parts of a file that people read."""
    content = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        yield from _python(content)
    elif path.suffix == ".md":
        yield from _page(content)
    elif path.suffix == ".j2":
        yield (
            1,
            re.sub(
                r"<style>.*?</style>|<script>.*?</script>|\{[{%#].*?[}%#]\}|<[^>]*>",
                _newlines,
                content,
                flags=re.DOTALL,
            ),
        )
    else:
        block, start = [], 1
        for number, line in enumerate([*content.splitlines(), ""], 1):
            if line.startswith("#"):
                start = start if block else number
                block.append(line.lstrip("# "))
            else:
                if block:
                    yield start, _without_code("\n".join(block))
                    block = []
                if comment := re.search(r"\s#+ (.*)", line):
                    yield number, _without_code(comment.group(1))


def _python(content: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree := ast.parse(content)):
        for child in ast.iter_child_nodes(node):
            child.parent = node
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            text = "".join(part.value if isinstance(part, ast.Constant) else "X" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if isinstance(node.parent, ast.JoinedStr):
                continue
            text = node.value
        else:
            continue
        if re.search(r"[A-Za-z]{2,}[,:;.]? [A-Za-z]{2,}", text):
            yield node.lineno, _without_code(_COMMAND.sub("", text))
    block, start = [], 0
    for token in tokenize.generate_tokens(io.StringIO(content).readline):
        if token.type == tokenize.COMMENT:
            start = start if block else token.start[0]
            block.append(token.string.lstrip("# "))
        elif token.type not in (tokenize.NL, tokenize.INDENT, tokenize.DEDENT) and block:
            yield start, _without_code("\n".join(block))
            block = []


def _page(content: str) -> Iterator[tuple[int, str]]:
    prose = re.sub(r"^( *)```.*?^\1```|^---\n.*?^---$|<!--.*?-->", _newlines, content, flags=re.DOTALL | re.MULTILINE)
    prose = re.sub(r"^:::.*(?:\n    .*)*", _newlines, prose, flags=re.MULTILINE)
    line = 1
    for paragraph in re.split(r"(\n\s*\n)", prose):
        if paragraph.strip():
            yield line, _without_code(paragraph)
        line += paragraph.count("\n")


def _without_code(text: str) -> str:
    text = re.sub(r"``[^`]+``|`[^`]+`", lambda match: f"X{_newlines(match)}", text)
    text = re.sub(r"https?://\S+", "X", text)
    return re.sub(r"\]\([^)\n]*\)", "]", text)


def _newlines(match: re.Match) -> str:
    return "\n" * match.group().count("\n")


def project_files() -> list[Path]:
    """Return the files whose text is checked: sources, pages and configs under version control."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    files = [ROOT / name for name in listed.stdout.splitlines() if _KINDS.search(name)]
    return [file for file in files if file.is_file() and file.relative_to(ROOT).parts[0] != "tests"]


if __name__ == "__main__":
    given = [Path(name) for name in sys.argv[1:]] or project_files()
    files = [file for path in given for file in (sorted(path.rglob("*.*")) if path.is_dir() else [path])]
    problems = [str(one) for file in files if _KINDS.search(file.name) for one in offences(file)]
    print("\n".join(problems) or "nothing found")
    sys.exit(bool(problems))
