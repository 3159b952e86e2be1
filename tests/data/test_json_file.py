"""JSON from any source is read, or the error contains the file, the reason and the place."""

import gc
import json
import math
import os
import socket
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.json_file import JsonError, parse_json, read_json, read_json_lines


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_encodings_of_unicode_are_read(tmp_path, encoding):
    file = tmp_path / "a.json"
    file.write_bytes('{"漢字": ["ä", 1]}'.encode(encoding))
    assert read_json(file) == {"漢字": ["ä", 1]}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b" \n\t", "the file is empty"),
        ("\ufeff".encode(), "the file is empty"),
        (b'{"a": [1, 2', r"line 1 column 12 \(char 11\); the file ends too early"),
        (b'{"a": "bc', "Unterminated string .*; the file ends too early"),
        (b"[1,\n2,\n x]", "line 3 column 2"),
        (b"[1] [2]", "Extra data"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        ('{"a": "ü"}'.encode("latin-1"), "position 7 has a byte that is not utf-8"),
        ('{"a": 1}'.encode("utf-16")[:-1], "not utf-16"),
        (b'{"a": 1, "b": 2, "a": 3}', "two different values of 'a'"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "pointer of Git LFS"),
        (b"\x1f\x8b\x08\x00\x00", "compressed with gzip"),
        (b"PK\x03\x04\x14\x00", "zip archive"),
        (b"\n<!DOCTYPE html><html>", "HTML or XML"),
    ],
)
def test_what_is_not_json_is_described(tmp_path, content, reason):
    file = tmp_path / "a.json"
    file.write_bytes(content)
    with pytest.raises(JsonError, match=rf"^results {file} is not valid JSON: .*{reason}"):
        read_json(file, "results")


def test_equal_values_of_a_key_are_one_value():
    assert parse_json(b'{"a": [1], "a": [1]}', "x") == {"a": [1]}


@pytest.mark.parametrize("digits", [400, 5000, 100_000])
def test_integers_too_large_for_a_float_become_infinite(digits):
    number = b"9" * digits
    assert parse_json(b"[" + number + b", -" + number + b", 1e999, 7]", "x") == [math.inf, -math.inf, math.inf, 7]


def kinds_of_files(folder):
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "device").symlink_to("/dev/zero")
    (folder / "loop").symlink_to(folder / "loop")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket"))
    with (folder / "large").open("wb") as file:
        file.truncate(2**40)
    return {
        "folder": "must be a regular file, got a folder",
        "pipe": "must be a regular file, got a named pipe",
        "device": "must be a regular file, got a device",
        "socket": "must be a regular file, got a socket",
        "loop": "cannot be read: Too many levels",
        "missing": r"does not exist \(resolved: /",
        "large": "must have at most 8,589,934,592 bytes, got 1,099,511,627,776",
        "a\0b": "cannot be read: embedded null",
        "a" * 300: "cannot be read: File name too long",
    }


def test_only_regular_files_are_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, reason in kinds_of_files(tmp_path).items():
        for read in (read_json, lambda path: read_json_lines(path, lambda _: True)):
            with pytest.raises(JsonError, match=f"{name} {reason}"):
                read(tmp_path / name)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(), values, max_size=4),
)


@given(JSON_VALUES)
def test_values_come_back(value):
    assert parse_json(json.dumps(value).encode(), "x") == value
    assert parse_json(json.dumps(value, ensure_ascii=True).encode("utf-16"), "x") == value


@given(st.binary(max_size=40))
def test_no_bytes_raise_another_error(content):
    try:
        parse_json(content, "x")
    except JsonError as error:
        str(error).encode()


def test_damaged_lines_are_numbered(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"a": 1}\n\n{"a": \n[2]\n\xff\n{"a": 3}\r\n{"a": 4')
    values, damaged = read_json_lines(file, lambda value: isinstance(value, dict))
    assert values == [{"a": 1}, {"a": 3}]
    assert damaged == [3, 4, 5, 7]


@pytest.mark.parametrize("content", [b"{}", b"{", b"\xff"])
def test_reading_restores_the_garbage_collector(content):
    for collects in (False, True):
        (gc.enable if collects else gc.disable)()
        with suppress(JsonError):
            parse_json(content, "x")
        assert gc.isenabled() is collects
