"""A preset is a word; keys override it, and the loaded config has all values."""

import dataclasses
import re

import pytest
import yaml

from data import Mixing, TrainTransform
from engine.config.augment_options import PRESETS, AugmentConfig
from engine.config.loading import ConfigError, dump_config, load_config

PLACE = {"images": "a", "annotations": "b"}


def augment(value=None, overrides=()) -> dict:
    """The keys that are on, and the preset."""
    data = {"train": PLACE, "val": PLACE} | ({} if value is None else {"augment": value})
    return on(load_config({"data": data}, overrides))


def on(config) -> dict:
    return {key: value for key, value in config.data.augment.model_dump().items() if value}


def test_every_key_is_an_argument_of_the_transform():
    arguments = {field.name for kind in (TrainTransform, Mixing) for field in dataclasses.fields(kind)}
    assert {*AugmentConfig.model_fields} - {"preset", "albumentations"} == arguments - {"resize", "fill"}


def test_without_the_key_images_are_flipped():
    assert augment() == {"preset": "flip", "horizontal_flip": 0.5}


@pytest.mark.parametrize("name", PRESETS)
def test_a_word_is_a_preset(name):
    wanted = {"preset": name} | PRESETS[name]
    assert augment(name) == augment({"preset": name}) == augment(None, [f"data.augment={name}"]) == wanted
    assert ("vertical_flip" in wanted) == (name == "aerial"), "only images from above have no upper side"


@pytest.mark.parametrize(
    ("value", "overrides", "more"),
    [
        ("light", ["data.augment.rotate=15"], {"preset": "light", "rotate": 15}),
        ({"preset": "light", "blur": 0.2}, ["data.augment.rotate=15"], {"preset": "light", "blur": 0.2, "rotate": 15}),
        ({"preset": "light", "blur": 0.2}, ["data.augment.blur=null"], {"preset": "light"}),
        ({"preset": "light", "blur": 0.2}, ["data.augment=strong"], {"preset": "strong"}),
        ("light", ["data.augment=strong", "data.augment.rotate=15"], {"preset": "strong", "rotate": 15}),
        ("light", ["data.augment.rotate=15", "data.augment=strong"], {"preset": "strong"}),
        ("medium", ["data.augment={blur: 0.5}"], {"preset": "medium", "blur": 0.5}),
        ({"blur": 0.2}, [], {"preset": "flip", "blur": 0.2}),
    ],
)
def test_keys_override_a_preset_and_a_word_resets_the_keys(value, overrides, more):
    assert augment(value, overrides) == PRESETS[more["preset"]] | more


@pytest.mark.filterwarnings("ignore:data.flip:FutureWarning")
def test_old_names_next_to_a_preset():
    assert augment(None, ["data.augment=light", "data.flip=0.1"]) == augment(
        None, ["data.flip=0.1", "data.augment=light"]
    )
    assert augment("light", ["data.flip=0.1"]) == {"preset": "light"} | PRESETS["light"] | {"horizontal_flip": 0.1}


def test_a_base_file_and_the_run_s_own_config(tmp_path):
    data = {"train": PLACE, "val": PLACE, "augment": {"preset": "light", "blur": 0.3}}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({"data": data}))
    (tmp_path / "word.yaml").write_text("base: base.yaml\ndata: {augment: medium}\n")
    (tmp_path / "keys.yaml").write_text("base: base.yaml\ndata: {augment: {rotate: 3}}\n")
    assert on(load_config(tmp_path / "word.yaml")) == {"preset": "medium"} | PRESETS["medium"]
    config = load_config(tmp_path / "keys.yaml")
    assert on(config) == {"preset": "light"} | PRESETS["light"] | {"blur": 0.3, "rotate": 3}
    written = dump_config(config)
    assert yaml.safe_load(written)["data"]["augment"].items() >= PRESETS["light"].items()
    (tmp_path / "config.yaml").write_text(written)
    assert load_config(tmp_path / "config.yaml") == config
    assert on(load_config(tmp_path / "config.yaml", ["data.augment=none"])) == {"preset": "none"}


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["data.augment=lite"],
            "data.augment.preset: expected 'none', 'flip', 'light', 'medium', 'strong' or 'aerial'",
        ),
        (["data.augment=3"], "data.augment: expected one of none, flip, light, medium, strong, aerial, or a mapping"),
        (["data.augment.rotate=200"], "data.augment.rotate: expected less than or equal to 180, got 200"),
        (["data.augment.blurr=1"], "data.augment.blurr: unknown key, did you mean 'data.augment.blur'?"),
    ],
)
def test_errors_name_the_key(overrides, line):
    with pytest.raises(ConfigError, match=re.escape(line)):
        augment("light", overrides)


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("none", "none"),
        ("light", "light: horizontal_flip 0.5, scale 0.25, min_visibility 0.2, color_jitter 0.2"),
        ({"min_visibility": 0.5}, "flip: horizontal_flip 0.5"),
        (
            {"large_scale_jitter": {"size": 64}},
            "flip: horizontal_flip 0.5: large_scale_jitter to 64 pixels by [0.1, 2.0]",
        ),
    ],
)
def test_the_line_at_the_start(value, line):
    assert load_config({"data": {"train": PLACE, "val": PLACE, "augment": value}}).data.augment.description == line
