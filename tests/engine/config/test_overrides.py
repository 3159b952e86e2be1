"""Values of the command line: texts as they stand, YAML for all others, and the way into the written config."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import keys
from engine.config.errors import ConfigError
from engine.config.loading import dump_config, load_config
from engine.config.options import RunConfig
from engine.config.overrides import as_override, read_overrides
from engine.config.sections import is_nullable, is_section, is_text

PLACE = {"images": "a", "annotations": "b"}
LEAST = {"data": {"train": PLACE, "val": PLACE}}
TEXT_KEYS = [key for key, field in keys.fields().items() if not is_section(field) and is_text(field)]
WORDS = [
    "/data/run #2/train",
    "2024",
    "1e3",
    "yes",
    "on",
    "null",
    "~",
    "",
    "2024-01-02",
    "0o17",
    "1_000",
    "12:30:45",
    "'quoted'",
    '"quoted"',
    '"open',
    " blanks at either end ",
    "*x",
    "&x",
    "!tag",
    "{a}",
    "[a",
    "- x",
    "a: b",
    "a:",
    "%x",
    "@x",
    "`x`",
    "| x",
    "> x",
    "? x",
    "# x",
    "a\\b",
    "a\nb",
    "a=b",
    "=",
    "<<",
    "---",
    "...",
    "true",
    ".nan",
    "漢字",
]


def value_of(key, text):
    value = read_overrides([f"{key}={text}"])
    for part in key.split("."):
        value = value[part]
    return value


def test_the_keys_that_take_text():
    assert {"data.train.images", "data.val.annotations", "model.weights", "device", "train.amp"} <= {*TEXT_KEYS}
    assert not {"train.lr", "data.min_size", "train.tf32", "train.lr_factors", "data.train"} & {*TEXT_KEYS}


@pytest.mark.parametrize("key", TEXT_KEYS)
def test_a_text_is_taken_as_it_stands(key):
    has_null = is_nullable(keys.field_of(key))
    for text in WORDS:
        value = None if has_null and text in ("", "null", "~") else text
        assert value_of(key, text) == value, text


@pytest.mark.parametrize(
    ("old", "new"), [("data.source", "data.download_hint"), ("train.schedule", "train.lr_schedule")]
)
def test_an_old_name_takes_text_too(old, new):
    with pytest.warns(FutureWarning, match="deprecated"):
        values = read_overrides([f"{old}=2024 #1"])
    section, name = new.split(".")
    assert values == {section: {name: "2024 #1"}}


@pytest.mark.parametrize("text", ["2024", "007", "1e3", "on", "2024-01-02", "12:30:45"])
def test_a_text_within_a_section_is_as_it_is_written(text):
    assert read_overrides([f"data.train={{images: {text}, annotations: '{text}'}}"]) == {
        "data": {"train": {"images": text, "annotations": text}}
    }


@settings(max_examples=40)
@given(
    text=st.sampled_from([word for word in WORDS if word])
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=80)
)
def test_any_text_survives_the_written_config(text, tmp_path_factory):
    overrides = [f"data.train.images={text}", f"data.download_hint={text}"]
    config = load_config(LEAST, overrides)
    if not text.startswith("~"):
        assert config.data.train.images == text
        assert config.data.download_hint == (None if text == "null" else text)
    file = tmp_path_factory.mktemp("written") / "config.yaml"
    file.write_text(dump_config(config), encoding="utf-8")
    assert load_config(file) == config


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.milestones=" + "[" * 100_000, "nested at most 20 deep"),
        ("seed=!!int foo", "'foo' does not fit its tag !!int"),
        ("seed=!!python/object/apply:os.getcwd []", "is not supported"),
        ("seed=*a", "found undefined alias"),
        ("model.backbone.dcn_v2_stages=&a [*a]", "an anchor must not contain its own alias"),
        ("seed=" + "9" * 5000, "at most 100 characters"),
        ("seed=1\x00", "is not allowed"),
        ("seed=a: b: c", "mapping values are not allowed"),
        ("train={lr: 1, lr: 2}", "key 'lr' is given twice"),
        ("data.download_hint.x=1", "data.download_hint.x: 'download_hint' is not a section"),
        ("train.lr.x=1", "train.lr.x: 'lr' is not a section"),
    ],
)
def test_a_value_that_is_not_valid_is_one_short_line(override, words):
    with pytest.raises(ConfigError) as caught:
        read_overrides([override])
    head, line = str(caught.value).splitlines()
    assert head == "the command line does not fit the config:"
    assert words in line
    assert len(line) < 1000


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 3),
        ("model.backbone.norm", "gn"),
        ("model.weights", None),
        ("data.train.images", "/run #2/2024"),
        ("model.backbone.modulation", False),
        ("model.backbone.dcn_v2_stages", [2, 3]),
        ("train.lr_factors", {"a.b": 1e-05}),
    ],
)
def test_the_override_of_a_value_sets_it(key, value):
    section = read_overrides([as_override(key, value)])
    for part in key.split("."):
        section = section[part]
    assert section == value


def test_a_key_of_many_parts_is_an_unknown_key():
    with pytest.raises(ConfigError, match=r"a\.b\.a.*: unknown key") as caught:
        load_config(LEAST, ["a.b." * 50_000 + "=1"])
    assert len(str(caught.value)) < 400


def test_names_of_parameters_may_contain_dots():
    assert load_config(LEAST, ["train.lr_factors.layer4.0=0.5"]).train.lr_factors == {"layer4.0": 0.5}


def test_a_section_that_is_null_can_be_set():
    assert load_config(LEAST, ["data.augment.large_scale_jitter.size=512"]).data.augment.large_scale_jitter.size == 512


@pytest.mark.parametrize(
    ("key", "is_known"),
    [
        ("seed", True),
        ("data", True),
        ("data.train.images", True),
        ("data.workers", True),
        ("test.flip", True),
        ("train.lr_factors.layer4.0", True),
        ("frame", False),
        ("try/frame", False),
        ("data.frame", False),
        ("", False),
    ],
)
def test_known_keys(key, is_known):
    assert keys.is_key(key) == is_known


def test_every_field_is_a_known_key():
    assert all(keys.is_key(key) for key in keys.fields())
    assert {*RunConfig.model_fields} <= {*keys.fields()}
    assert not re.search("[^a-z0-9_.]", "".join(keys.fields()))
