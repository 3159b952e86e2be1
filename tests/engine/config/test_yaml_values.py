"""YAML 1.2: scalars, texts as they are written, bounds of size and depth, and the line of an error."""

import tracemalloc
import warnings

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from engine.config.yaml_values import MAX_DEPTH, YamlError, read_yaml, write_yaml


def read(text, texts=()):
    return read_yaml(text, lambda key: key in texts)


SCALARS = [
    ("1e-4", 1e-4),
    ("1E-4", 1e-4),
    ("+1e+2", 100.0),
    ("1.5e3", 1500.0),
    (".5", 0.5),
    ("5.", 5.0),
    ("2", 2),
    ("-0.5", -0.5),
    (".inf", float("inf")),
    ("off", "off"),
    ("on", "on"),
    ("no", "no"),
    ("yes", "yes"),
    ("y", "y"),
    ("1:30", "1:30"),
    ("012", "012"),
    ("0x10", "0x10"),
    ("1_000", "1_000"),
    ("2020-01-01", "2020-01-01"),
    ("true", True),
    ("false", False),
    ("True", "True"),
    ("null", None),
    ("~", None),
    ("", None),
    ("'1e-4'", "1e-4"),
]


@pytest.mark.parametrize(("text", "value"), SCALARS)
def test_scalars_are_those_of_yaml_1_2(text, value):
    found = read(f"a: {text}")["a"]
    assert (type(found), found) == (type(value), value)


@pytest.mark.parametrize(("text", "value"), SCALARS)
def test_a_text_is_as_it_is_written(text, value):
    found = read(f"a: {text}", texts=["a"])["a"]
    assert found == (None if value is None else text.strip("'"))


@pytest.mark.parametrize("text", ["2024", "2024-01-02", "0o17", "1_000", "12:30:45", "1e3", "yes", "true", "-1", ".5"])
def test_every_word_in_a_list_of_a_text_key_and_every_key_is_a_text(text):
    assert read(f"a: [{text}]\n{text}: 1", texts=["a"]) == {"a": [text], text: 1}


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: [1", 1, "expected ',' or ']'"),
        ("a: b: c", 1, "mapping values are not allowed here"),
        ("x: 1\n? [a]\n: 1", 2, "a key must be a text"),
        ("x: 1\na: !!python/object/apply:os.getcwd []", 2, "the tag '!!python/object/apply:os.getcwd' is not"),
        ("x: 1\na: !!python/name:os.system", 2, "is not supported"),
        ("a: !mine 3", 1, "the tag '!mine' is not supported"),
        ("a: !!set {b, c}", 1, "the tag '!!set' is not supported"),
        ("a: !!binary aGVsbG8=", 1, "the tag '!!binary' is not supported"),
        ("a: !!timestamp 2024-01-02", 1, "the tag '!!timestamp' is not supported"),
        ("a: !!int foo", 1, "'foo' does not fit its tag !!int"),
        ("a: !!float x", 1, "'x' does not fit its tag !!float"),
        ("a: !!bool yes", 1, "'yes' does not fit its tag !!bool"),
        ("a: !!seq {}", 1, "the tag '!!seq' is not supported"),
        ("a: 1\nb: \x00", 2, r"the character '\x00' is not allowed"),
        ("a: \x1b[31m", 1, r"the character '\x1b' is not allowed"),
        ("a: 1\n\tb: 2", 2, "found character"),
        ("a: 1\n---\nb: 2", 2, "expected a single document"),
        ("a: 1\na: 2", 2, "key 'a' is given twice"),
        ("b: {1: x, '1': y}", 1, "key '1' is given twice"),
        ("x: &a {b: 1}\ny:\n  <<: *a", 3, "merge keys (<<) are not supported"),
        ("a: *b", 1, "found undefined alias"),
        ("a: &a [*a]", 1, "an anchor must not contain its own alias"),
        ("a: &a {b: {c: *a}}", 1, "an anchor must not contain its own alias"),
        ("x: 1\na: " + "9" * 400, 2, "a number must have at most 100 characters, got 400"),
        ("a: %x", 1, "cannot start any token"),
        ("a: `x`", 1, "cannot start any token"),
    ],
)
def test_what_is_no_valid_config_is_an_error_with_its_line(text, line, words):
    with pytest.raises(YamlError) as caught:
        read(text)
    assert caught.value.line == line
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


NESTED = {
    "lists": "a: " + "[" * 100_000,
    "closed lists": "a: " + "[" * 5000 + "]" * 5000,
    "mappings": "a: " + "{b: " * 5000,
    "block lists": "a:\n  " + "- " * 5000,
    "aliases": "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 60)),
}


@pytest.mark.parametrize("text", NESTED.values(), ids=NESTED)
def test_deep_nesting_is_an_error(text):
    with pytest.raises(YamlError, match=rf"nested at most {MAX_DEPTH} deep"):
        read(text)


def test_nested_aliases_do_not_grow():
    text = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 15))
    tracemalloc.start()
    with pytest.raises(YamlError, match="at most 10,000 values"):
        read(f"device: *a14\n{text}" if text.startswith("device") else f"{text}device: *a14")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


def test_an_alias_is_a_copy():
    found = read("a: &a [1, 2]\nb: *a")
    assert found == {"a": [1, 2], "b": [1, 2]}
    assert found["a"] is not found["b"]


@pytest.mark.parametrize(
    ("text", "value", "is_doubtful"),
    [
        ("a: /data/run #2/train", "/data/run", True),
        ("a: /data/run #2", "/data/run", True),
        ("a: /data/run # the second run", "/data/run", False),
        ("a: '/data/run #2/train'", "/data/run #2/train", False),
        ("a: /data/run#2/train", "/data/run#2/train", False),
        ("a: /data/run\n#2", "/data/run", False),
    ],
)
def test_a_comment_that_may_be_part_of_a_text_causes_a_warning(text, value, is_doubtful):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert read(text, texts=["a"])["a"] == value
    assert [str(warning.message).startswith("a is '/data/run': YAML reads '#2") for warning in caught] == (
        [True] if is_doubtful else []
    )


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(values=st.dictionaries(st.text(), VALUES, max_size=3))
def test_what_is_written_is_read_back(values):
    text = write_yaml(values)
    assert read(text) == values or "<<" in text


@given(values=st.dictionaries(st.sampled_from("abc"), st.text(), max_size=3))
def test_readers_of_yaml_1_1_read_the_same_texts(values):
    assert yaml.safe_load(write_yaml(values)) == values


@given(text=st.text(st.characters(exclude_categories=["Cs"])) | st.text("[]{}:,&*!|>-?#%@`'\" \n\tab01.~"))
def test_no_text_causes_another_error(text):
    message = ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read(text, texts=["a"])
        except YamlError as error:
            message = str(error)
    assert len(message) < 500
