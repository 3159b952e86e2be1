"""Paths that the system cannot resolve, and paths with a tilde."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.paths import expanded, resolved

IMPOSSIBLE = ("a\0b", "a\ud800b", "a\udc80b", "x" * 5000, "~nobody-has-this-name/x", "loop/x", "")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with a link to itself, a link to a folder, and a home folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    return tmp_path


@pytest.mark.parametrize("text", IMPOSSIBLE)
def test_a_path_that_cannot_be_resolved_stays_as_written(place, text):
    assert resolved(text) == place / text
    assert expanded(text) == Path(text)


def test_links_are_resolved(place):
    assert resolved("link/file") == resolved(Path("real/../link/file")) == place / "real/file"


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps the working directory")
def test_a_deleted_working_directory(place, monkeypatch):
    monkeypatch.chdir("real")
    Path.cwd().rmdir()
    assert resolved("file") == Path("file")


@pytest.mark.parametrize(
    ("text", "meant"), [("~/data", "home/data"), ("~", "home"), ("a/~/b", "a/~/b"), ("there", "there")]
)
def test_the_home_folder(place, text, meant):
    assert place / expanded(text) == place / meant


def test_a_name_that_exists_is_not_expanded(place):
    (place / "~").mkdir()
    assert expanded("~") == Path("~")


@given(st.text(st.characters(), max_size=20))
def test_no_path_raises(text):
    resolved(text)
    expanded(text)
