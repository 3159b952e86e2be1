"""Values of files in messages: short, on one line, and harmless on a terminal."""

import datetime
import time
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.shown import escaped, shortened, shown

NESTED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters()), inner) | st.tuples(inner, inner),
)


def doubled(levels: int, pair) -> object:
    value = "x"
    for _ in range(levels):
        value = pair(value)
    return value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("nut", "'nut'"),
        (None, "None"),
        (True, "True"),
        (1.5, "1.5"),
        ([1, "a"], "[1, 'a']"),
        ((1,), "(1,)"),
        ({"b": 1, "a": [2]}, "{'a': [2], 'b': 1}"),
        ({3}, "{3}"),
        (b"\x00a", r"b'\x00a'"),
        (Path("a/b"), "'a/b'"),
        (datetime.date(2026, 1, 2), "datetime.date(2026, 1, 2)"),
        ("漢字 ä", "'漢字 ä'"),
        ("a\nb\x1b[31m\x9b\u202e\udc80", r"'a\nb\x1b[31m\x9b\u202e\udc80'"),
        (torch.zeros(2, 3), "<Tensor of shape (2, 3)>"),
        (np.zeros(1000), "<ndarray of shape (1000,)>"),
        (np.int64(3), "3"),
        (object(), "<object>"),
        (10**400, "<integer of 1329 bits>"),
    ],
)
def test_the_text_of_a_value(value, text):
    assert shown(value).replace("np.int64(3)", "3") == text


@given(NESTED, st.integers(10, 300))
def test_any_value_becomes_one_short_printable_line(value, limit):
    text = shown(value, limit)
    assert len(text) <= limit
    assert escaped(text) == text
    assert text.encode()


@pytest.mark.parametrize(
    "value",
    [
        doubled(60, lambda value: [value, value]),
        doubled(60, lambda value: (value, value)),
        doubled(60, lambda value: {"a": value, "b": value}),
        doubled(60, lambda value: OrderedDict(a=value, b=value)),
        doubled(1000, lambda value: [value]),
        "x" * 3_000_000,
        b"x" * 3_000_000,
        10**1_000_000,
        dict.fromkeys(range(1_000_000)),
        torch.zeros(1000, 1000),
    ],
    ids=["lists", "tuples", "dicts", "ordered", "deep", "text", "bytes", "integer", "keys", "tensor"],
)
def test_a_large_value_takes_no_time(value):
    start = time.process_time()
    assert len(shown(value)) <= 200
    assert time.process_time() - start < 0.1


def test_a_list_that_contains_itself_has_an_end():
    value = [1]
    value.append(value)
    assert shown(value) == "[1, [1, [1, [...]]]]"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Nüsse 漢字 a\u3000b", "Nüsse 漢字 a\u3000b"),
        ("\x1b]0;title\x07\x1b[2J", r"\x1b]0;title\x07\x1b[2J"),
        ("a\r\n\tb\x00\x7f\x85", r"a\r\n\tb\x00\x7f\x85"),
        ("\u202egnp.exe\u2066\u2028", r"\u202egnp.exe\u2066\u2028"),
        ("\udcff", r"\udcff"),
    ],
)
def test_only_control_characters_of_a_name_are_escaped(text, expected):
    assert escaped(text) == expected


def test_line_breaks_can_stay():
    assert escaped("a\n\x1bb\n", keep="\n") == "a\n\\x1bb\n"


def test_the_middle_of_a_long_text_is_left_out():
    assert shortened("abcdefghij", 7) == "ab...ij"
    assert shortened("abcdefghij", 10) == "abcdefghij"
