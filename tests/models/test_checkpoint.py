"""Detectors are restored from checkpoints with plain values and PyTorch alone."""

from dataclasses import fields, replace

import pytest
import torch

from engine.config.loading import check_config
from models import DETECTORS, build_detector, load_detector
from models.anchors import ExactAnchors, Float32Anchors
from models.checkpoint import CheckpointError
from models.predictor import Predictor

PROPOSALS = ("rpn_pre_nms_top_n_test", "rpn_post_nms_top_n_test")
IMAGES = [torch.rand(3, 70, 90, generator=torch.Generator().manual_seed(0))]


def has_anchors(detector: str) -> bool:
    return any(field.name == "anchors" for field in fields(DETECTORS[detector].options))


@pytest.fixture
def config(detector):
    """Return the values of a config that differ from the defaults."""
    spec = DETECTORS[detector]
    own = {**spec.tiny, "score_threshold": 0.0, "detections_per_image": 7}
    if has_anchors(detector):
        own["anchors"] = "exact"
    backbone = {"name": "resnet18", "norm": "gn", "dcn_v2_stages": [2], "mask_scale": 1.5, "weights": "DEFAULT"}
    model = {"detector": detector, "backbone": backbone, "fpn": dict(spec.tiny_fpn), detector: own}
    return {"model": model, "data": {"min_size": [48, 64], "max_size": 96}, "train": {"lr": 0.1}}


@pytest.fixture
def state(config):
    torch.manual_seed(1)
    tensors, others = (build_detector(config, 2).state_dict() for _ in range(2))
    assert not all(torch.equal(tensors[key], others[key]) for key in tensors)
    return {"format": 2, "config": config, "class_names": ["cat", "dog"], "model": tensors, "ema": {"model": others}}


def test_a_detector_has_the_config_and_the_weights_of_its_checkpoint(state, config, tmp_path):
    torch.save(state, tmp_path / "last.pt")
    for asked, kind in ((None, "ema"), ("ema", "ema"), ("raw", "raw")):
        found = load_detector(tmp_path, weights=asked)  # a folder of a run
        assert (found.training, found.class_names) == (False, ["cat", "dog"])
        assert [found.backbone.body.layer2[i].conv2.mask_scale for i in (0, 1)] == [1.5, 1.5]
        expected = state["ema"]["model"] if kind == "ema" else state["model"]
        assert found.state_dict().keys() == expected.keys()
        assert all(torch.equal(found.state_dict()[key], value) for key, value in expected.items())
        with torch.inference_mode():
            assert len(found(IMAGES)[0]["boxes"]) == 7
    by_hand = build_detector(config, 2)
    by_hand.load_state_dict(state["model"])
    torch.save(state | {"ema": None}, tmp_path / "raw.pt")
    with torch.inference_mode():
        expected, (found,) = by_hand.eval()(IMAGES)[0], load_detector(str(tmp_path / "raw.pt"))(IMAGES)
    assert all(torch.equal(found[name], values) for name, values in expected.items())


@pytest.mark.parametrize("detector", ["faster_rcnn", "cascade_mask_rcnn", "retinanet"])
def test_a_checkpoint_from_before_the_option_has_torchvisions_anchors(state, config, detector, tmp_path):
    del config["model"][detector]["anchors"]
    torch.save(state, tmp_path / "last.pt")
    found, new = load_detector(tmp_path), build_detector(config, 2)
    kinds = [type(getattr(model, "rpn", model).anchor_generator) for model in (found, new)]
    assert kinds == [Float32Anchors, ExactAnchors]


@pytest.mark.parametrize("detector", ["fcos", "retinanet", "cascade_mask_rcnn"])
def test_a_checkpoint_with_old_names_in_its_config(state, config, detector, tmp_path, recwarn):
    model = config["model"]
    model["fpn"] = {"levels": [4, 5], "out_channels": 64, "extra_levels": "p6p7_from_c5"}
    model["backbone"]["activation_checkpointing"] = True
    own = model[detector]
    old = {"levels": [4, 5], "channels": 64, "extra_levels": "p6p7_c5"}
    renamed = dict(model["backbone"])
    renamed["recompute_dcn_stages"] = renamed.pop("activation_checkpointing")
    theirs = {"fcos": {"dcn_convs": 2}, "retinanet": {}, "cascade_mask_rcnn": {"rpn_proposals_test": 30}}[detector]
    ours = {"dcn_convs": {"num_dcn_convs": 2}, "rpn_proposals_test": dict.fromkeys(PROPOSALS, 30)}
    anchors = {} if detector == "fcos" else {"anchor_sizes": [16, 32, 64, 128]}
    own |= {key: value for name in theirs for key, value in ours[name].items()} | anchors
    kept = {key: value for key, value in own.items() if key not in (*PROPOSALS, "num_dcn_convs")}
    expected = build_detector(config, 2)
    written = {"model": {"detector": detector, "backbone": renamed, "fpn": old, detector: kept | theirs}}
    torch.save(
        state | {"config": written | {"data": config["data"]}, "model": expected.state_dict(), "ema": None},
        tmp_path / "old.pt",
    )
    found = load_detector(tmp_path / "old.pt")
    assert found.state_dict().keys() == expected.state_dict().keys()
    assert list(found.backbone.fpn.extra_blocks.p6.weight.shape) == [64, 512, 3, 3]
    assert type(found.backbone.body.layer2) is type(expected.backbone.body.layer2)
    if "rpn_proposals_test" in theirs:
        assert (found.rpn.pre_nms_top_n(), found.rpn.post_nms_top_n()) == (30, 30)
    assert not [warning for warning in recwarn if warning.category is FutureWarning]


def test_old_names_in_plain_values_warn_and_both_names_are_an_error():
    old = {"model": {"detector": "fcos", "fpn": {"channels": 64}}}
    with torch.device("meta"), pytest.warns(FutureWarning, match=r"model\.fpn\.channels is deprecated .* 0\.3\.0: use"):
        assert build_detector(old, 2).backbone.out_channels == 64
    both = {"model": {"detector": "fcos", "fpn": {"channels": 64, "out_channels": 96}}}
    with pytest.raises(ValueError, match=r"model.fpn\.channels and model\.fpn\.out_channels are the same option"):
        build_detector(both, 2)


@pytest.mark.parametrize("detector", ["fcos"])
def test_inconsistent_checkpoints_are_errors(state, tmp_path, detector):
    file = tmp_path / "x.pt"

    def refused(match: str, changed: dict, **options) -> None:
        torch.save({key: value for key, value in (state | changed).items() if value != "gone"}, file)
        with pytest.raises(ValueError, match=match):
            load_detector(file, **options)

    with pytest.raises(CheckpointError, match="does not exist"):
        load_detector(tmp_path / "none.pt")
    refused("its format must be 2, got 3", {"format": 3})
    refused("was not written by this project's trainer; it contains", {"format": "gone"})
    for key in ("config", "class_names", "model"):
        refused(f"must contain {key!r}", {key: "gone"})
    refused("unknown detector 'ssd', known: faster_rcnn, ", {"config": {"model": {"detector": "ssd"}}})
    changed = {"config": {"model": state["config"]["model"] | {"fcos": {"dcn_conv": 1}}}}
    refused("unknown option 'dcn_conv' of model.fcos, did you mean 'num_dcn_convs'", changed)
    refused("do not match the detector of its config", {"class_names": ["cat"]})
    tensors = dict(state["model"])
    del tensors["head.classification_head.cls_logits.bias"]
    refused("do not match the detector of its config", {"model": tensors, "ema": None})
    refused("does not contain EMA weights", {"ema": None}, weights="ema")
    refused("weights must be raw or ema, got 'EMA'", {}, weights="EMA")


@pytest.mark.parametrize("detector", ["fcos"])
def test_code_in_a_file_is_not_run(state, tmp_path, detector):
    class Command:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save(state | {"step": Command()}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_detector(tmp_path / "x.pt")
    assert not (tmp_path / "ran").exists()


def test_defaults_are_those_of_the_config(detector, monkeypatch):
    """Missing plain values have the config's defaults, which it defines separately for the ResNet and the sizes."""
    given = replace(DETECTORS[detector], build=lambda body, *arguments, **options: str([body, arguments, options]))
    monkeypatch.setitem(DETECTORS, detector, given)
    place = {"images": "a", "annotations": "b"}
    whole = check_config({"data": {"train": place, "val": place}, "model": {"detector": detector}}, "x")
    with torch.device("meta"):
        assert build_detector({"model": {"detector": detector}}, 2) == build_detector(whole.model_dump(), 2)


@pytest.mark.parametrize("load", [load_detector, Predictor.load])
def test_a_path_is_expanded(load, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ValueError, match=f"{tmp_path}/none.pt"):
        load("~/none.pt")
