"""Old names of options: they load to the same config, with a warning where they are deprecated."""

import re
import warnings

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from engine.config.loading import (
    ConfigError,
    dump_config,
    flatten,
    load_config,
    read_overrides,
    with_current_names,
)
from engine.config.options import RunConfig
from engine.config.sections import keys_of
from models.options import REMOVAL, Alias, OldName, OldValue, ValueBefore, current_names, renamed_options

PLACE = {"images": "a", "annotations": "b"}
LEAST = {"data": {"train": PLACE, "val": PLACE}}
MARKS = {key: field.metadata for key, field in keys_of(RunConfig)}
RENAMED = renamed_options(MARKS)
# valid values that are not the defaults, for options that need a certain type
VALUES = {
    "data.source": "here",
    "data.invalid_boxes": "drop",
    "data.keep_empty": True,
    "data.unreadable": "skip",
    "data.workers": 7,
    "data.flip": 0.25,
    "data.color_jitter": 0.25,
    "data.large_scale_jitter": {"size": 64},
    "model.backbone.recompute_dcn_stages": True,
    "model.fpn.channels": 64,
    "model.fcos.dcn_convs": 2,
    "train.early_stop": 3,
    "train.clip_norm": 1.5,
    "train.schedule": "cosine",
    "train.schedule_unit": "step",
    "test": {"flip": True},
}
# contract: key of release 0.1 -> keys of release 0.2
CONTRACT = {
    "data.unreadable": "data.on_unreadable_image",
    "data.invalid_boxes": "data.invalid_annotations",
    "data.keep_empty": "data.keep_images_without_boxes",
    "data.source": "data.download_hint",
    "data.workers": "data.num_workers",
    "data.flip": "data.augment.horizontal_flip",
    "data.color_jitter": "data.augment.color_jitter",
    "data.large_scale_jitter": "data.augment.large_scale_jitter",
    "train.early_stop": "train.early_stopping_patience",
    "train.accumulate": "train.grad_accum_steps",
    "train.reference_batch": "train.base_batch_size",
    "train.clip_norm": "train.clip_grad_norm",
    "train.schedule": "train.lr_schedule",
    "train.schedule_unit": "train.lr_schedule_unit",
    "train.log_every": "train.log_every_steps",
    "train.checkpoint_every": "train.checkpoint_every_steps",
    "train.eval_every": "train.eval_every_epochs",
    "train.picture_every": "train.images_every_steps",
    "model.backbone.recompute_dcn_stages": "model.backbone.activation_checkpointing",
    "model.fpn.channels": "model.fpn.out_channels",
    "model.fcos.dcn_convs": "model.fcos.num_dcn_convs",
    "test": "tta",
}
for rcnn in ("faster_rcnn", "mask_rcnn", "cascade_rcnn", "cascade_mask_rcnn"):
    for old, *new in (
        ("rpn_proposals_train", "rpn_pre_nms_top_n_train", "rpn_post_nms_top_n_train"),
        ("rpn_proposals_test", "rpn_pre_nms_top_n_test", "rpn_post_nms_top_n_test"),
        ("rpn_batch_size", "rpn_batch_size_per_image"),
        ("box_batch_size", "box_batch_size_per_image"),
    ):
        CONTRACT[f"model.{rcnn}.{old}"] = " ".join(f"model.{rcnn}.{name}" for name in new)


def nested(values: dict) -> dict:
    """The opposite of `flatten`."""
    result = {}
    for key, value in values.items():
        *parents, last = key.split(".")
        section = result
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    return result


def written(tmp_path, values: dict, name: str = "run.yaml"):
    (tmp_path / name).write_text(yaml.safe_dump(values), encoding="utf-8")
    return tmp_path / name


def loaded(source, overrides=()) -> tuple[RunConfig, list[str]]:
    """The config, and the messages of its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config = load_config(source, overrides)
    assert all(warning.category is FutureWarning for warning in caught)
    return config, [str(warning.message) for warning in caught]


def test_the_names_are_those_of_the_contract():
    assert {old: " ".join(new) for old, new, _ in RENAMED} == CONTRACT
    assert [old for old, _, is_deprecated in RENAMED if not is_deprecated] == ["data.workers"]


@pytest.mark.parametrize(("old", "new", "is_deprecated"), RENAMED, ids=[renamed.old for renamed in RENAMED])
def test_an_old_key_loads_to_an_equal_config_and_warns_once(tmp_path, old, new, is_deprecated):
    value = VALUES.get(old, 9)
    asked = dict(flatten(LEAST)) | {old: value}
    expected = load_config(nested(dict(flatten(LEAST)) | dict.fromkeys(new, value)))
    assert expected != load_config(LEAST)
    text = yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()
    for source, overrides in (
        (nested(asked), ()),
        (written(tmp_path, nested(asked)), ()),
        (written(tmp_path, LEAST, "plain.yaml"), [f"{old}={text}"]),
        (written(tmp_path, {"base": str(tmp_path / "run.yaml"), "seed": 0}, "above.yaml"), ()),
    ):
        config, messages = loaded(source, overrides)
        assert config == expected
        note = f"{old} is deprecated and will be removed in {REMOVAL}: use {' and '.join(new)}"
        assert messages == [note] * is_deprecated


def test_an_old_value(tmp_path):
    old, new = ({**LEAST, "model": {"fpn": {"extra_levels": name}}} for name in ("p6p7_c5", "p6p7_from_c5"))
    config, messages = loaded(written(tmp_path, old))
    assert config == load_config(new)
    assert messages == [
        f"model.fpn.extra_levels=p6p7_c5 is deprecated and will be removed in {REMOVAL}: use p6p7_from_c5"
    ]


@pytest.mark.parametrize(("old", "new", "is_deprecated"), RENAMED, ids=[renamed.old for renamed in RENAMED])
def test_both_names_are_an_error_that_names_both(tmp_path, old, new, is_deprecated):
    value = VALUES.get(old, 9)
    both = dict(flatten(LEAST)) | {old: value, new[-1]: value}
    file = written(tmp_path, nested(both))
    line = f"  - {old} and {new[-1]} are the same option: set only {new[-1]}"
    with pytest.raises(ConfigError, match=re.escape(f"{file} is not a valid config:\n{line}")):
        load_config(file)
    text = yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()
    with pytest.raises(ConfigError, match=re.escape(f"the command line does not fit the config:\n{line}")):
        load_config(LEAST, [f"{old}={text}", f"{new[-1]}={text}"])


def test_the_command_line_beats_the_file_under_either_name(tmp_path):
    file = written(tmp_path, LEAST | {"train": {"clip_norm": 1.0, "accumulate": 2}})
    config, _ = loaded(file, ["train.clip_grad_norm=2.0", "train.accumulate=4", "train.accumulate=8"])
    assert (config.train.clip_grad_norm, config.train.grad_accum_steps) == (2.0, 8)
    above = written(tmp_path, {"base": "run.yaml", "train": {"grad_accum_steps": 3}}, "above.yaml")
    assert loaded(above)[0].train.grad_accum_steps == 3


def test_unknown_keys_in_an_old_section_get_a_guess():
    with pytest.raises(ConfigError, match=r"tta.flop: unknown key, did you mean 'tta.flip'?"):
        loaded(LEAST | {"test": {"flop": True}})


def test_the_config_of_a_run_folder_loads_without_a_warning(tmp_path):
    file = written(tmp_path, LEAST | {"train": {"accumulate": 2}, "test": {"flip": True}}, "config.yaml")
    assert len(loaded(file)[1]) == 2, "a file of that name elsewhere"
    (tmp_path / "metrics.jsonl").touch()
    config, messages = loaded(file)
    assert (config.train.grad_accum_steps, config.tta.flip, messages) == (2, True, [])


def test_overrides_have_the_current_names():
    given = read_overrides(["test.flip=true", "model.fcos={dcn_convs: 2}", "data.workers=3"], is_silent=True)
    assert given == {
        "tta": {"flip": True},
        "model": {"fcos": {"num_dcn_convs": 2}},
        "data": {"num_workers": 3},
    }


def test_what_is_dumped_has_the_current_names():
    config, _ = loaded(LEAST | {"train": {"accumulate": 2}, "data": {**LEAST["data"], "workers": 3}})
    text = dump_config(config)
    assert "grad_accum_steps: 2" in text
    assert "num_workers: 3" in text
    assert loaded(yaml.safe_load(text)) == (config, [])


KEYS = st.sampled_from(["a", "b", "old", "new", "more", "alias", "part", "past"])
TREES = st.dictionaries(
    KEYS, st.integers(0, 3) | st.none() | st.dictionaries(KEYS, st.integers(0, 3) | st.just("then")), max_size=4
)
ANY_MARKS = {
    "part": (OldName("past"),),
    "part.new": (OldName("old"), Alias("alias")),
    "part.more": (OldName("old"),),
    "part.a": (OldValue("then", "now"),),
    "part.b": (ValueBefore(7),),
    "b": (),
}


@given(values=TREES)
def test_translation_is_whole_and_leaves_its_argument_alone(values):
    before = repr(values)
    try:
        found = current_names(values, ANY_MARKS, is_silent=True)
    except ValueError:
        section = values.get("part", values.get("past"))
        assert {"part", "past"} <= {*values} or len({"old", "alias", "new", "more"} & {*section}) > 1
        return
    finally:
        assert repr(values) == before
    assert current_names(found, ANY_MARKS, is_silent=True) == found
    assert "past" not in found
    section = found.get("part")
    if isinstance(section, dict):
        assert not {"old", "alias"} & {*section}
        assert section.get("a") != "then"
        theirs = values.get("part", values.get("past"))
        assert sum(key in theirs for key in ("old", "alias", "new")) == ("new" in section)


def test_a_checkpoint_s_config_is_translated_in_silence(recwarn):
    old = LEAST | {"train": {"accumulate": 2}, "test": {"flip": True}}
    found = with_current_names(old, "last.pt", is_written=True)
    data = LEAST["data"] | {"crowd_regions": "background"}  # the value before the option
    assert found == {"data": data, "train": {"grad_accum_steps": 2}, "tta": {"flip": True}}
    assert not recwarn


@given(values=TREES)
def test_what_this_project_wrote_keeps_the_values_of_its_time(values):
    """A section without the option has its value from before; a given value, and a missing section, stay."""
    try:
        found, written = (current_names(values, ANY_MARKS, is_silent=True, is_written=old) for old in (False, True))
    except ValueError:
        return
    section = found.get("part")
    if isinstance(section, dict):
        found["part"] = {"b": 7} | section
    assert written == found


@pytest.mark.parametrize("detector", ["faster_rcnn", "mask_rcnn", "cascade_rcnn", "cascade_mask_rcnn", "retinanet"])
def test_runs_from_before_the_option_keep_torchvisions_anchors(tmp_path, detector):
    """A run folder of that time has all options except this one; other files get the default."""
    values = loaded(LEAST)[0].model_dump(mode="json")
    assert values["model"][detector].pop("anchors") == "exact"
    file = written(tmp_path, values, "config.yaml")
    assert getattr(loaded(file)[0].model, detector).anchors == "exact"
    (tmp_path / "metrics.jsonl").touch()
    assert getattr(loaded(file)[0].model, detector).anchors == "torchvision"
    assert getattr(loaded(file, [f"model.{detector}.anchors=exact"])[0].model, detector).anchors == "exact"
    assert getattr(loaded(file, [f"model.{detector}.score_threshold=0"])[0].model, detector).anchors == "torchvision"
    again = written(tmp_path, loaded(file)[0].model_dump(mode="json"), "copy.yaml")
    assert getattr(loaded(again)[0].model, detector).anchors == "torchvision", "the value is explicit from now on"
