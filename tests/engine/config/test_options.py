"""Ranges and descriptions of the options."""

import copy
from operator import attrgetter

import pytest
from pydantic import BaseModel, ValidationError

from engine.config.loading import ConfigError, check_config
from engine.config.options import RunConfig
from engine.config.reference import config_schema
from engine.config.sections import options_of
from engine.training.optimizer import OPTIMIZERS
from engine.training.schedule import SCHEDULES
from models.options import Affects, Choices

PLACE = {"images": "a", "annotations": "b"}
LEAST = {"data": {"train": PLACE, "val": {**PLACE}}}


def sections(kind: type[BaseModel], prefix: str = ""):
    for name, field in kind.model_fields.items():
        yield f"{prefix}{name}", field
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from sections(field.annotation, f"{prefix}{name}.")


def test_every_option_is_described():
    fields = dict(sections(RunConfig))
    assert "train.lr" in fields
    assert not [key for key, field in fields.items() if len(field.description or "") <= 4]


def test_the_data_set_alone_is_needed():
    config = check_config(LEAST, "least")
    assert config.model.backbone.dcn_v2_stages == []
    assert config.train.offset_lr_factor == 0.1
    assert config.model.backbone.mask_scale == 2.0
    with pytest.raises(ConfigError, match=r"data: is missing"):
        check_config({}, "empty")


def test_nothing_changes_after_the_check():
    config = check_config(LEAST, "least")
    with pytest.raises(ValidationError, match="frozen"):
        config.train.lr = 1.0


RANGES = [  # key, invalid values, valid values
    ("seed", [-1, 1.5, "1", True, 2**32], [0, 7, 2**32 - 1]),
    ("device", [0, None, "meta", "cuda:x", "gpu", ""], ["auto", "cpu", "cuda", "cuda:1", "mps"]),
    ("data.augment.horizontal_flip", [-0.1, 1.1, float("nan"), "half"], [0.0, 1]),
    ("data.min_size", [0, 1, [], [480, 0], "big", 1.5, None], [480, [480, 800]]),
    ("data.max_size", [0, 1, [800]], [1000]),
    ("data.num_workers", [-1, 0.5, 1_000_000], [0, 64]),
    ("data.invalid_annotations", ["ignore", None], ["raise", "clip", "drop"]),
    ("data.keep_images_without_boxes", [1, "yes", "true"], [True]),
    ("model.backbone.dcn_v2_stages", [3, "234", [2.0], None], [[], [2, 3, 4]]),
    ("model.backbone.dcn_every", [0, 1.0, None], [1, 3]),
    ("model.backbone.modulation", [0, "on"], [False]),
    ("model.backbone.offset_groups", [0], [4]),
    ("model.backbone.mask_scale", [0, -1.0, float("inf")], [1]),
    ("model.backbone.stride_in_1x1", [1, "on"], [True]),
    ("model.backbone.frozen_stages", [-2, 5], [-1, 0, 4]),
    ("model.backbone.weights", [False, 1], [None, "DEFAULT"]),
    ("model.fpn.levels", [[1, 2], [6]], [[2, 3]]),
    ("model.faster_rcnn.aspect_ratios", [[], [0.0]], [[1]]),
    ("model.faster_rcnn.score_threshold", [1.01], [0, 1.0]),
    ("model.mask_rcnn.mask_head_channels", [0, 1.5], [1]),
    ("model.cascade_rcnn.stage_loss_weights", [[1, 1], [1, 1, 0], [1] * 4], [[1, 1, 1]]),
    ("model.cascade_mask_rcnn.anchors", [None, True], ["exact", "torchvision"]),
    ("model.cascade_mask_rcnn.roi_aligned", [0, None], [True]),
    ("model.faster_rcnn.roi_sampling_ratio", [-1, 17, 1.5, True], [None, 0, 2]),
    ("model.mask_rcnn.rpn_smooth_l1_beta", [-0.1, float("nan"), float("inf"), None], [0, 0.5]),
    ("model.cascade_rcnn.box_smooth_l1_beta", [-0.1, float("nan"), float("inf"), None], [0, 0.5]),
    ("model.retinanet.smooth_l1_beta", [-0.1, float("nan"), float("inf"), None], [0, 0.5]),
    ("model.retinanet.clip_boxes", [None, False], ["never"]),
    ("model.retinanet.scales_per_octave", [0, 1.5], [1]),
    ("model.retinanet.positive_iou", [1.5, -0.1], [0.6]),
    ("model.fcos.num_dcn_convs", [-1, 5, True], [0, 4]),
    ("model.fcos.center_sampling_radius", [0, float("inf")], [2]),
    ("train.epochs", [0, 1.0, True], [1]),
    ("train.max_steps", [0], [None, 1]),
    ("train.batch_size", [0], [1]),
    ("train.base_batch_size", [0], [None, 8]),
    ("train.lr", [0, -1e-4, float("nan"), float("inf"), "fast", "1e-4", True], [1e-4, 1]),
    ("train.momentum", [1.0, -0.1], [0, 0.99]),
    ("train.weight_decay", [-1.0, float("inf")], [0]),
    ("train.offset_lr_factor", [-0.1], [0, 1]),
    ("train.warmup_factor", [0, 1.1], [1]),
    ("train.milestones", [[0], ["8"], 8], [[], [6.5, 8]]),
    ("train.clip_grad_norm", [0, -35], [None, 35]),
    ("train.amp", [False, "fp8", True], ["off", "bf16", "fp16"]),
    ("train.log_every_steps", [0], [1]),
    ("tta.flip", [1, "yes", None], [True, False]),
]


def values(key, value) -> dict:
    nested = copy.deepcopy(LEAST)
    *parents, last = key.split(".")
    place = nested
    for parent in parents:
        place = place.setdefault(parent, {})
    place[last] = value
    return nested


def reached(config, key):
    return attrgetter(key)(config)


def test_ranges():
    for key, bad, good in RANGES:
        for value in bad:
            with pytest.raises(ConfigError) as caught:
                check_config(values(key, value), "bad")
            assert f"  - {key}" in str(caught.value), (key, value)
        for value in good:
            assert reached(check_config(values(key, value), "good"), key) == value, key


def test_every_option_has_one_affects_mark():
    """The mark decides which checkpoints fit, which weights are loaded, and which runs are seeds of one config."""
    for key, field in options_of(RunConfig).items():
        assert [isinstance(mark, Affects) for mark in field.metadata].count(True) == 1, key


def test_choices_are_the_keys_of_their_tables():
    choices = {
        key: [*mark.names]
        for key, field in options_of(RunConfig).items()
        for mark in field.metadata
        if isinstance(mark, Choices)
    }
    assert choices["train.optimizer"] == [*OPTIMIZERS]
    assert choices["train.lr_schedule"] == [*SCHEDULES]


def leaves(node, key=""):
    """Every number, text, list and mapping of the schema, with its dotted key."""
    yield key, node
    below = [(key, kind) for kind in node.get("anyOf", [])]
    below += [(f"{key}.{name}".strip("."), child) for name, child in node.get("properties", {}).items()]
    below += [(key, node["items"])] if "items" in node else []
    below += [(key, node["additionalProperties"])] if isinstance(node.get("additionalProperties"), dict) else []
    for name, child in below:
        yield from leaves(child, name)


LEAVES = [(key, node) for key, node in leaves(config_schema()) if key not in ("", "base")]


def test_every_number_has_a_minimum_and_a_maximum():
    numbers = [(key, node) for key, node in LEAVES if node.get("type") in ("integer", "number")]
    assert len(numbers) > 100
    for key, node in numbers:
        assert {"minimum", "exclusiveMinimum"} & {*node}, key
        assert {"maximum", "exclusiveMaximum"} & {*node}, key


def test_every_text_is_a_choice_or_has_a_form_or_a_length():
    texts = [(key, node) for key, node in LEAVES if node.get("type") == "string"]
    assert len(texts) > 10
    for key, node in texts:
        assert {"enum", "const", "pattern", "maxLength"} & {*node}, key


def test_every_list_and_mapping_has_a_length():
    for key, node in LEAVES:
        assert node.get("type") != "array" or "maxItems" in node, key
        assert not isinstance(node.get("additionalProperties"), dict) or "maxProperties" in node, key


ABSURD = [10**12, -(10**12), 10**400, 1e308, -1e308, float("inf"), float("nan")]


@pytest.mark.parametrize("key", sorted({key for key, node in LEAVES if node.get("type") in ("integer", "number")}))
def test_absurd_numbers_are_errors_that_name_the_option(key):
    default = options_of(RunConfig)[key].get_default(call_default_factory=True)
    for number in ABSURD:
        value = [number] if isinstance(default, list) else {"x": number} if isinstance(default, dict) else number
        with pytest.raises(ConfigError, match=f"  - {key}") as caught:
            check_config(values(key, value), "absurd")
        assert len(str(caught.value)) < 800


def test_paths_are_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DATA", "elsewhere")
    for key in ("data.train.images", "data.val.annotations", "model.weights", "model.backbone.weights"):
        assert reached(check_config(values(key, "~/a b"), "tilde"), key) == str(tmp_path / "a b")
        for text in ("~nobody_of_this_name/a", "a/~/b", "./~", "$DATA/a", "%DATA%"):
            assert reached(check_config(values(key, text), "as written"), key) == text


@pytest.mark.parametrize("path", ["", "a\0b", "x" * 5000])
def test_a_text_that_is_no_path_is_an_error(path):
    with pytest.raises(ConfigError, match=r"  - data\.train\.images: .{0,400}$"):
        check_config(values("data.train.images", path), "no path")


@pytest.mark.parametrize("pattern", ["(", "[", "*x"])
def test_a_pattern_of_parameters_is_a_regular_expression(pattern):
    with pytest.raises(ConfigError, match=r"train\.lr_factors.*expected a regular expression"):
        check_config(values("train.lr_factors", {pattern: 0.1}), "pattern")


def test_stages_are_explained():
    with pytest.raises(ConfigError, match=r"5 is not a valid stage.*layer1\.\.layer4"):
        check_config(values("model.backbone.dcn_v2_stages", [3, 4, 5]), "stages")


def nested(depth):
    inner = "x"
    for _ in range(depth):
        inner = [inner, inner]
    return inner


@pytest.mark.parametrize("key", ["device", "data.train.images", "train.lr", "model.backbone.dcn_v2_stages", "train"])
def test_the_message_about_nested_shared_values_is_short(key):
    with pytest.raises(ConfigError, match=rf"  - {key}") as caught:
        check_config(values(key, nested(40)), "shared")
    assert len(str(caught.value)) < 1000
