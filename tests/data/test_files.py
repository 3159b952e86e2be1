"""Atomic writes."""

import json

import pytest

from data.files import atomic_path, write_json, write_text


def test_a_file_is_replaced_as_a_whole(tmp_path):
    file = tmp_path / "new" / "a.json"
    write_json(file, {"ä": [1, None]})
    assert json.loads(file.read_text(encoding="utf-8")) == {"ä": [1, None]}
    held = file.open("rb")  # an open reader keeps the old file
    write_text(file, "é" * 10)
    assert file.read_text(encoding="utf-8") == "é" * 10
    assert json.loads(held.read()) == {"ä": [1, None]}
    held.close()
    assert [path.name for path in file.parent.iterdir()] == ["a.json"]


def test_a_value_that_is_not_json_keeps_the_file(tmp_path):
    file = tmp_path / "a.json"
    write_json(file, 1)
    with pytest.raises(TypeError):
        write_json(file, {"a": object()})
    assert file.read_text() == "1"


def test_a_full_disk_is_named_and_keeps_the_file(mounted):
    file = mounted("size=64k") / "a.json"
    write_text(file, "earlier")
    with pytest.raises(OSError, match=f"No space left on device: '{file}'"):
        write_text(file, "x" * 100_000)
    assert file.read_text() == "earlier"
    assert [path.name for path in file.parent.iterdir()] == ["a.json"]


def test_an_error_leaves_no_temporary_file(tmp_path):
    file = tmp_path / "a.png"

    def write():
        with atomic_path(file) as partial:
            partial.touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert [*tmp_path.iterdir()] == []
