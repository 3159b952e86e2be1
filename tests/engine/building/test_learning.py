"""Every detector learns: a small one is trained on six drawn images until it finds what is on them."""

from statistics import fmean

import pytest
import torch

from engine.building.data import build_eval_loader, build_train_loader, read_split
from engine.building.model import build_model
from engine.building.training import build_updater
from engine.config.loading import load_config
from engine.config.options import options_that_deform
from engine.evaluation.detect import evaluate
from models import DETECTORS
from models.options import field_annotations

CPU = torch.device("cpu")
COMMON = {
    "data.augment.horizontal_flip": 0.0,
    "model.fpn.out_channels": 64,
    "train.batch_size": 3,
    "train.optimizer": "adamw",
    "train.lr": 0.001,
    "train.offset_lr_factor": 1.0,
    "train.warmup_steps": 10,
    "train.lr_schedule": "cosine",
    "train.lr_schedule_unit": "step",
    "train.epochs": 1000,
    "train.max_steps": 80,
}
# Options for levels with strides 4, 8 and 16 and objects of 20 to 40 pixels; each detector takes the options it has.
OPTIONS = {
    "anchor_sizes": [12, 24, 48],
    "scales_per_octave": 2,
    "roi_canonical_size": 32,
    "box_head_channels": 64,
    "mask_head_channels": 32,
    "rpn_pre_nms_top_n_train": 60,
    "rpn_post_nms_top_n_train": 60,
    "rpn_pre_nms_top_n_test": 60,
    "rpn_post_nms_top_n_test": 60,
    "box_batch_size_per_image": 64,
}
# Its head has no norms and starts with weights so small that it needs longer, and a wider one less long.
SLOW = {
    "model.fpn.out_channels": 128,
    "train.lr": 0.0005,
    "train.max_steps": 120,
    "train.lr_schedule": "step",
    "train.milestones": [100],
}
MORE = {"retinanet": SLOW | {"model.retinanet.aspect_ratios": [1.0]}}
DCN = {"model.backbone.dcn_v2_stages": [2]}


def train(config_file, shapes, detector, options) -> tuple[list[dict], list[dict]]:
    """Losses of the steps, and figures before and after on the images that were trained on."""
    places = {"images": str(shapes / "val"), "annotations": str(shapes / "annotations/val.json")}
    asked = COMMON | {"data.train": places, "model.detector": detector} | options
    config = load_config(config_file, [f"{key}={value}" for key, value in asked.items()])
    masks = config.model.spec.has_masks
    split, same = (read_split(config.data, name, masks=masks) for name in ("train", "val"))
    torch.manual_seed(0)
    model, _ = build_model(config.model, config.data, len(split.class_names))
    loader = build_train_loader(config, split, pin_memory=False)
    judged = build_eval_loader(config, same, pin_memory=False)
    updater = build_updater(config, model, steps_per_epoch=len(loader), device=CPU)

    def judge() -> dict:
        return evaluate(model, judged, same.category_ids, same.raw, masks=masks, device=CPU)

    losses, before = [], judge()
    model.train()
    for epoch in range(config.train.max_steps // len(loader)):
        loader.batch_sampler.set_position(epoch)
        losses += [updater([batch]).numbers for batch in loader]
    return losses, [before, judge()]


@pytest.mark.parametrize(
    ("detector", "dcn"),
    [
        pytest.param(detector, dcn, marks=[] if dcn and detector == "faster_rcnn" else [pytest.mark.slow])
        for detector in DETECTORS
        for dcn in (False, True)
    ],
)
def test_it_learns_what_it_sees(detector, dcn, tiny_config, shapes):
    spec = DETECTORS[detector]
    section = {**spec.tiny, **{key: value for key, value in OPTIONS.items() if key in field_annotations(spec.options)}}
    options = {f"model.{detector}": section} | MORE.get(detector, {}) | (DCN if dcn else {})
    if dcn:
        options |= {key: 1 for key in options_that_deform() if key.startswith(f"model.{detector}.")}
    losses, (before, after) = train(tiny_config, shapes, detector, options)
    # Rounding changes the losses after a few steps, so the bounds are far from the results of several seeds.
    first, last = (fmean(numbers["loss"] for numbers in part) for part in (losses[:4], losses[-10:]))
    assert last < 0.85 * first
    assert before["AP50"] < 0.05
    assert after["AP50"] > 0.1
    if spec.has_masks:
        assert fmean(numbers["loss_mask"] for numbers in losses[-10:]) < 0.62, "ln 2 = 0.69 is the loss of a constant"
        assert before["mask_AP50"] < 0.02
        assert after["mask_AP50"] > 0.03
