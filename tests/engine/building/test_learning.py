"""Every detector learns: a small one is trained on six drawn images until it finds what is on them.

To add a detector: its section in `SECTIONS`.
"""

import pytest
import torch

from engine.building.data import build_eval_loader, build_train_loader, read_split
from engine.building.model import build_model, needs_masks
from engine.building.training import build_updater
from engine.config.loading import load_config
from engine.evaluation.evaluator import evaluate
from models import DETECTORS, MASK_DETECTORS

CPU = torch.device("cpu")
COMMON = {
    "data.flip": 0.0,
    "model.fpn.channels": 64,
    "train.batch_size": 3,
    "train.optimizer": "adamw",
    "train.lr": 0.001,
    "train.offset_lr_factor": 1.0,
    "train.warmup_steps": 10,
    "train.schedule": "cosine",
    "train.schedule_unit": "step",
    "train.epochs": 1000,
    "train.max_steps": 80,
}
# What each needs on maps of strides 4, 8 and 16, and objects of 20 to 40 pixels.
TWO_STAGE = {
    "anchor_sizes": [12, 24, 48],
    "roi_canonical_size": 32,
    "box_head_channels": 64,
    "rpn_proposals_train": 60,
    "rpn_proposals_test": 60,
    "rpn_batch_size": 64,
    "box_batch_size": 64,
}
SECTIONS = {
    "faster_rcnn": TWO_STAGE,
    "mask_rcnn": TWO_STAGE | {"mask_head_channels": 32},
    "cascade_rcnn": TWO_STAGE,
    "cascade_mask_rcnn": TWO_STAGE | {"mask_head_channels": 32},
    "retinanet": {"anchor_sizes": [12, 24, 48], "scales_per_octave": 2, "aspect_ratios": [1.0]},
    "fcos": {},
}
# Its head has no norms and starts with weights so small that it needs longer, and a wider one less long.
SLOW = {
    "model.fpn.channels": 128,
    "train.lr": 0.0005,
    "train.max_steps": 120,
    "train.schedule": "step",
    "train.milestones": [100],
}
MORE = {"retinanet": SLOW}
DCN = {"model.backbone.dcn_v2_stages": [2]}
HEAD_DCN = {"fcos": {"dcn_convs": 1}}


def train(config_file, shapes, detector, options) -> tuple[list[dict], list[dict]]:
    """Losses of the steps, and figures before and after on the images that were trained on."""
    places = {"images": str(shapes / "val"), "annotations": str(shapes / "annotations/val.json")}
    asked = COMMON | {"data.train": places, "model.detector": detector} | options
    config = load_config(config_file, [f"{key}={value}" for key, value in asked.items()])
    split = read_split(config.data, "train", masks=needs_masks(config.model))
    torch.manual_seed(0)
    model, _ = build_model(config.model, config.data, len(split.class_names))
    loader = build_train_loader(config, split, pin_memory=False)
    judged = build_eval_loader(config, split, pin_memory=False)
    updater = build_updater(config, model, steps_per_epoch=len(loader), device=CPU)

    def judge() -> dict:
        masks = needs_masks(config.model)
        return evaluate(model, judged, split.category_ids, split.raw, masks=masks, device=CPU)

    losses, before = [], judge()
    model.train()
    for epoch in range(config.train.max_steps // len(loader)):
        loader.batch_sampler.set_position(epoch)
        losses += [updater([batch]).numbers for batch in loader]
    return losses, [before, judge()]


@pytest.mark.parametrize(
    ("detector", "dcn"),
    [
        pytest.param(detector, dcn, marks=[] if dcn and detector in ("faster_rcnn", "fcos") else [pytest.mark.slow])
        for detector in DETECTORS
        for dcn in (False, True)
    ],
)
def test_it_learns_what_it_sees(detector, dcn, tiny_config, shapes):
    section = SECTIONS[detector] | (HEAD_DCN.get(detector, {}) if dcn else {})
    options = {f"model.{detector}": section} | MORE.get(detector, {}) | (DCN if dcn else {})
    losses, (before, after) = train(tiny_config, shapes, detector, options)
    course = [numbers["loss"] for numbers in losses]
    assert sum(course[-4:]) < 0.7 * sum(course[:4])
    assert before["AP"] < 0.02
    assert after["AP"] > 0.1
    if detector in MASK_DETECTORS:
        course = [numbers["loss_mask"] for numbers in losses]
        assert sum(course[-4:]) / 4 < 0.6, "ln 2 = 0.69 is what one has who knows nothing"
        assert before["mask_AP50"] < 0.02
        assert after["mask_AP50"] > 0.1
