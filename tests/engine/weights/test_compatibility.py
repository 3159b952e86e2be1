"""Checkpoints that do not fit what they are used for, named by what differs."""

from pathlib import Path

import pytest

from engine.config.options import FpnConfig, ModelConfig
from engine.runs.checkpoint import CheckpointError
from engine.weights.compatibility import check_categories, check_same_model, check_same_optimizer, check_same_step


def test_categories():
    state = {"category_ids": [1, 3], "class_names": ["cat", "dog"]}
    where = (Path("last.pt"), Path("val.json"))
    check_categories(state, ["cat", "dog"], [1, 3], *where)
    with pytest.raises(
        CheckpointError, match=r"categories of checkpoint last.pt \(2\) differ from those of val.json \(2\)"
    ) as caught:
        check_categories(state, ["cat", "cow"], [1, 3], *where)
    assert "(3, 'dog') in the checkpoint and (3, 'cow') in the file" in str(caught.value)
    with pytest.raises(CheckpointError, match=r"\(3, 'dog'\) in the checkpoint and \(2, 'dog'\)"):
        check_categories(state, ["cat", "dog"], [1, 2], *where)
    with pytest.raises(CheckpointError, match=r"\(2\) differ from those of .* \(3\)"):
        check_categories(state, ["cat", "dog", "hen"], [1, 3, 4], *where)


def test_the_error_about_another_model_lists_the_keys():
    saved = {
        "detector": "faster_rcnn",
        "dcn_backend": "auto",
        "backbone": {"name": "resnet18", "weights": "DEFAULT", "dcn_v2_stages": [4]},
    }
    state = {"config": {"model": saved}}
    asked = saved | {"dcn_backend": "reference", "backbone": saved["backbone"] | {"weights": None}}
    asked["backbone"]["activation_checkpointing"] = True
    asked["faster_rcnn"] = {
        "score_threshold": 0.5,
        "nms_threshold": 0.6,
        "rpn_pre_nms_top_n_test": 50,
        "rpn_post_nms_top_n_test": 50,
    }
    # test-time augmentation does not change the model
    check_same_model(state, {"model": asked, "tta": {"flip": True}}, Path("last.pt"))
    check_same_model(state, {"model": asked}, Path("last.pt"))  # backend, initial weights and thresholds may differ
    asked["backbone"] = asked["backbone"] | {"name": "resnet50", "dcn_v2_stages": []}
    with pytest.raises(CheckpointError) as caught:
        check_same_model(state, {"model": asked}, Path("last.pt"))
    assert str(caught.value).splitlines() == [
        "last.pt contains another model than the config describes:",
        "  - model.backbone.name: 'resnet18' in the checkpoint, 'resnet50' in the config",
        "  - model.backbone.dcn_v2_stages: [4] in the checkpoint, [] in the config",
    ]


def test_options_that_a_checkpoint_does_not_know_have_their_defaults():
    """It was written before they were made; and what the head of another detector has does not matter."""
    state = {"config": {"model": {"detector": "fcos", "fpn": {"levels": [3, 4, 5]}}}}
    asked = ModelConfig(detector="fcos", fpn=FpnConfig(levels=[3, 4, 5])).model_dump(mode="json")
    asked["retinanet"]["anchor_sizes"] = [8]
    asked["fcos"] |= {"topk_candidates": 7, "center_sampling_radius": 2.0, "score_threshold": 0.0}
    check_same_model(state, {"model": asked}, Path("last.pt"))
    asked["fpn"]["extra_levels"] = "p6p7"
    asked["fcos"]["num_dcn_convs"] = 1
    asked["backbone"] |= {"dcn_every": 2, "stride_in_1x1": True}
    with pytest.raises(CheckpointError) as caught:
        check_same_model(state, {"model": asked}, Path("last.pt"))
    assert str(caught.value).splitlines()[1:] == [
        "  - model.backbone.dcn_every: 1 in the checkpoint, 2 in the config",
        "  - model.backbone.stride_in_1x1: False in the checkpoint, True in the config",
        "  - model.fpn.extra_levels: 'pool' in the checkpoint, 'p6p7' in the config",
        "  - model.fcos.num_dcn_convs: 0 in the checkpoint, 1 in the config",
    ]


def test_another_optimizer_is_an_error():
    state = {"config": {"train": {"optimizer": "sgd", "lr": 0.1}}}
    check_same_optimizer(state, {"train": {"optimizer": "sgd", "lr": 0.2}}, Path("last.pt"))
    with pytest.raises(CheckpointError, match="'sgd' in the checkpoint, 'adamw' in the config"):
        check_same_optimizer(state, {"train": {"optimizer": "adamw", "lr": 0.1}}, Path("last.pt"))


def test_converted_weights_have_no_optimizer():
    state = {"config": {"train": {"optimizer": "sgd"}}, "converted_from": "detectron2"}
    with pytest.raises(
        CheckpointError,
        match=r"last\.pt was converted from detectron2 and contains only weights, .* with model\.weights=last\.pt",
    ):
        check_same_optimizer(state, {"train": {"optimizer": "sgd"}}, Path("last.pt"))


def test_another_number_of_images_per_step_is_an_error():
    check_same_step({"images_in_step": 16}, 16, Path("last.pt"))
    with pytest.raises(CheckpointError) as caught:
        check_same_step({"images_in_step": 16}, 8, Path("last.pt"))
    assert str(caught.value) == (
        "last.pt was trained with 16 images per step, so it cannot be resumed with 8: choose train.batch_size x "
        "train.grad_accum_steps x processes = 16"
    )
