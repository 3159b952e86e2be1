"""Tables for the terminal."""

import math

import pytest

from engine.display.tables import counted, first_lines, format_table, percent


def test_text_to_the_left_numbers_to_the_right():
    table = format_table(("name", "n"), [("a", 1234567), ("longer", 5), ("none", "-"), ("total", "")])
    assert table.splitlines() == [
        "  name            n",
        "  ------  ---------",
        "  a       1,234,567",
        "  longer          5",
        "  none            -",
        "  total",
    ]


def test_a_table_without_rows_and_with_booleans():
    assert format_table(("a", "b"), []).splitlines() == ["  a  b", "  -  -"]
    assert "True" in format_table(("a",), [(True,)])


@pytest.mark.parametrize(
    ("fraction", "shown"), [(0.374, "37.4"), (0.0, "0.0"), (1.0, "100.0"), (math.nan, "-"), (None, "-")]
)
def test_percent(fraction, shown):
    assert percent(fraction) == shown


@pytest.mark.parametrize(
    ("count", "noun", "shown"),
    [
        (0, "image", "0 images"),
        (1, "image", "1 image"),
        (1234, "box", "1,234 boxes"),
        (1, "box", "1 box"),
        (2, "class", "2 classes"),
        (2, "crowd region", "2 crowd regions"),
    ],
)
def test_counted(count, noun, shown):
    assert counted(count, noun) == shown


def test_the_first_of_many_lines():
    assert first_lines(["a", "b"], 2) == ["      a", "      b"]
    assert first_lines(["a", "b", "c", "d"], 2) == ["      a", "      b", "      and 2 more"]
    assert first_lines([], 2) == []
