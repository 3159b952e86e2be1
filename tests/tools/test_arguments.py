"""tools/_arguments.py: old spellings, config values, checked numbers."""

import argparse
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def arguments():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tools"))
        import _arguments

        yield _arguments


def help_of(run_tool, tool):
    name, *command = tool.split()
    result = run_tool(name, *command, "--help")
    assert result.code == 0
    return result.out


def test_new_spellings_are_options_and_old_ones_are_not(run_tool, arguments):
    for tool, names in arguments.RENAMED.items():
        options = {*re.findall(r"(?<![\w-])--[\w-]+", help_of(run_tool, tool))}
        assert {*names.values()} <= options, tool
        assert not {*names} & options, tool


def test_old_spellings_are_replaced_with_a_warning(arguments, monkeypatch, capsys):
    for tool, names in arguments.RENAMED.items():
        command = tool.split()[1:]
        for old, new in names.items():
            monkeypatch.setattr(sys, "argv", ["x", *command, old, "1", f"{old}=2", "--other", f"a{old}"])
            given = arguments.current_spellings(tool.split()[0])
            assert given == [*command, new, "1", f"{new}=2", "--other", f"a{old}"]
            warning = f"warning: {old} is deprecated and will be removed in 0.3.0: use {new}\n"
            assert capsys.readouterr().err == 2 * warning


def test_an_old_spelling_does_the_same(run_tool, tmp_path):
    sizes = ["--width", 96, "--height", 80]
    old = run_tool("make_shapes", "--out", tmp_path / "old", "--train", 2, "--val=1", *sizes)
    new = run_tool("make_shapes", "-o", tmp_path / "new", "--train-images", 2, "--val-images=1", *sizes)
    assert (old.code, new.code, new.err) == (0, 0, "")
    assert [line.split()[1] for line in old.err.splitlines()] == ["--train", "--val"]
    folders = tmp_path / "old", tmp_path / "new"
    read = [{file.relative_to(folder): file.read_bytes() for file in folder.rglob("*.*")} for folder in folders]
    assert len(read[0]) == 5
    assert read[0] == read[1]


def test_options_cannot_be_abbreviated(run_tool, tmp_path):
    code, _, err = run_tool("make_shapes", "--wid", 64, "--out", tmp_path / "new")
    assert code == 2
    assert "unrecognized arguments: --wid" in err


@pytest.mark.parametrize(
    ("argument", "is_override"),
    [
        ("train.epochs=1", True),
        ("device=cpu", True),
        ("unknown.key=", True),
        ("model.backbone.dcn_v2_stages=[3,4]", True),
        ("a=b.jpg", True),
        ("./a=b.jpg", False),
        ("/photos/a=b.jpg", False),
        ("photos/a=b.jpg", False),
        ("my photo=1.jpg", False),
        ("a-b=1.jpg", False),
        ("1=2.jpg", False),
        (".a=b", False),
        ("a.=b", False),
        ("a.jpg", False),
        ("=x", False),
    ],
)
def test_config_values_are_known_by_their_form(arguments, argument, is_override, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert arguments.is_override(argument) == is_override
        (tmp_path / "a=b.jpg").touch()
        (tmp_path / "device=cpu").mkdir(exist_ok=True)


@given(st.lists(st.from_regex(r"[a-z_]\w*", fullmatch=True), min_size=1, max_size=4), st.text())
def test_every_dotted_key_is_a_config_value(arguments, names, value):
    override = f"{'.'.join(names)}={value}"
    assert arguments.split_overrides(["x.jpg", override, f"./{override}"]) == (["x.jpg", f"./{override}"], [override])


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        ("positive", "3", 3),
        ("positive", "0", None),
        ("positive", "-1", None),
        ("positive", "1.5", None),
        ("positive", "", None),
        ("not_negative", "0", 0),
        ("not_negative", "-1", None),
        ("fraction", "0.5", 0.5),
        ("fraction", "1", 1.0),
        ("fraction", "1.01", None),
        ("fraction", "nan", None),
        ("fraction", "x", None),
    ],
)
def test_numbers(arguments, read, text, value):
    if value is None:
        with pytest.raises(argparse.ArgumentTypeError, match=rf"^must be an? .*, got {re.escape(repr(text))}$"):
            getattr(arguments, read)(text)
    else:
        assert getattr(arguments, read)(text) == value
