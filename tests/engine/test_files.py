"""Files in one piece."""

import json

import pytest

from engine.files import write_json, write_text


def test_a_file_is_replaced_as_a_whole(tmp_path):
    file = tmp_path / "new" / "a.json"
    write_json(file, {"ä": [1, None]})
    assert json.loads(file.read_text(encoding="utf-8")) == {"ä": [1, None]}
    held = file.open("rb")  # whoever reads it meanwhile goes on with the old one
    write_text(file, "é" * 10)
    assert file.read_text(encoding="utf-8") == "é" * 10
    assert json.loads(held.read()) == {"ä": [1, None]}
    held.close()
    assert [path.name for path in file.parent.iterdir()] == ["a.json"]


def test_a_value_that_is_no_json_leaves_the_file(tmp_path):
    file = tmp_path / "a.json"
    write_json(file, 1)
    with pytest.raises(TypeError):
        write_json(file, {"a": object()})
    assert file.read_text() == "1"
