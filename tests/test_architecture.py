"""Imports point down, only tools talk to the terminal, and what is public is documented."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# what each folder may import of ours
ALLOWED = {
    "dcn": set(),
    "data": set(),
    "models": {"dcn"},
    "engine": {"dcn", "models", "data"},
    "tools": {"dcn", "models", "data", "engine"},
}
FILES = [file.relative_to(ROOT).as_posix() for folder in ALLOWED for file in sorted((ROOT / folder).rglob("*.py"))]
LIBRARY = [file for file in FILES if not file.startswith("tools/")]


def wrong_imports(folder: str, source: str, depth: int = 1) -> Iterator[str]:
    """Imports of our own folders, or out of one by dots, that `folder` may not have in a file `depth` folders deep."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level:
            # as many dots as the file is deep stay inside its folder; tools are scripts, for which a dot means nothing
            names = [] if node.level <= depth and folder != "tools" else ["." * node.level + (node.module or "")]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            top = name.split(".")[0]
            if not top or (top in {*ALLOWED, "tests"} and top not in ALLOWED[folder]):
                yield f"line {node.lineno}: {folder} imports {name}"


def terminal_calls(source: str) -> Iterator[str]:
    """Calls of print, and every way to leave the program."""
    for node in ast.walk(ast.parse(source)):
        name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        if isinstance(node, ast.Raise) and node.exc is not None:
            name = ast.unparse(node.exc).split("(")[0]
        if name in {"print", "sys.exit", "exit", "quit", "os._exit", "SystemExit"}:
            yield f"line {node.lineno}: {name}"


def undocumented(source: str) -> Iterator[str]:
    """The file itself, public functions and classes, and public methods, without a docstring."""
    tree = ast.parse(source)
    if not ast.get_docstring(tree):
        yield "the file"
    scopes = [(tree, "")]
    while scopes:
        scope, prefix = scopes.pop()
        for node in ast.iter_child_nodes(scope):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith(
                "_"
            ):
                if not ast.get_docstring(node):
                    yield f"{prefix}{node.name}"
                if isinstance(node, ast.ClassDef):
                    scopes.append((node, f"{node.name}."))


@pytest.mark.parametrize("file", FILES)
def test_imports_point_down(file):
    folder, *rest = file.split("/")
    assert not [*wrong_imports(folder, (ROOT / file).read_text(encoding="utf-8"), len(rest))]


@pytest.mark.parametrize("file", LIBRARY)
def test_only_tools_print_and_exit(file):
    assert not [*terminal_calls((ROOT / file).read_text(encoding="utf-8"))]


@pytest.mark.parametrize("file", LIBRARY)
def test_public_names_have_docstrings(file):
    assert not [*undocumented((ROOT / file).read_text(encoding="utf-8"))]


def test_every_folder_was_looked_at():
    assert {file.split("/")[0] for file in FILES} == set(ALLOWED)
    assert {"dcn/functional.py", "models/resnet.py", "data/coco.py", "engine/training/trainer.py"} <= {*LIBRARY}


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("dcn", "import models"),
        ("dcn", "from dcn.functional import deform_conv2d"),
        ("data", "from models.resnet import resnet"),
        ("data", "from ..models import resnet"),
        ("models", "def late():\n    import data.coco as coco"),
        ("models", "import torch, engine"),
        ("engine", "from engine.training.trainer import Trainer"),
        ("engine", "import tools.train"),
        ("engine", "from tests import conftest"),
        ("tools", "from tools import train"),
        ("tools", "from . import train"),
    ],
)
def test_wrong_import_is_seen(folder, source):
    assert len([*wrong_imports(folder, source)]) == 1


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("dcn", "from . import reference\nfrom .functional import BACKENDS\nimport torch.nn"),
        ("models", "from dcn import DeformConv2d\nfrom .fpn import resnet_fpn"),
        ("engine", "from data import CocoDetection\nfrom models.resnet import resnet\nimport dcn"),
        ("tools", "import _clone\nfrom engine import config\nimport dataclasses"),
    ],
)
def test_right_import_passes(folder, source):
    assert not [*wrong_imports(folder, source)]


def test_dots_within_a_folder_of_a_folder():
    source = "from ..trainer import Trainer"
    assert [*wrong_imports("engine", source)]
    assert not [*wrong_imports("engine", source, 2)]
    assert [*wrong_imports("engine", "from ...data import coco", 2)]


@pytest.mark.parametrize(
    "source",
    ["print(1)", "import sys\nsys.exit(2)", "exit()", "raise SystemExit", "raise SystemExit(2)", "os._exit(1)"],
)
def test_terminal_call_is_seen(source):
    assert len({*terminal_calls(source)}) == 1
    assert not [*terminal_calls("pprint(1)\nsystem.exit()\nraise ValueError('print(1)')\nraise")]


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("x = 1", ["the file"]),
        ('"""F."""\ndef f(): pass', ["f"]),
        ('"""F."""\nclass C:\n    def m(self): pass', ["C", "C.m"]),
        ('"""F."""\nclass C:\n    """C."""\n    def m(self): pass\n    def _n(self): pass', ["C.m"]),
        ('"""F."""\ndef _f(): pass\nclass _C: pass\ndef f():\n    """F."""\n    def g(): pass', []),
    ],
)
def test_missing_docstring_is_seen(source, names):
    assert [*undocumented(source)] == names
