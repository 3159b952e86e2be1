"""Every YAML in configs/ loads, builds its model, and trains.

After an intended change of a model, record its numbers again and give the reason in the commit:
    UPDATE_GOLDEN=1 python -m pytest -k golden tests/test_configs.py tests/models tests/engine/training
"""

import json
import math
import re
from pathlib import Path

import pytest
import torch

from dcn import DeformConv2d
from engine.building.data import build_train_loader, read_split
from engine.building.model import build_model
from engine.config.files import CONFIG_DIR
from engine.config.loading import load_config
from engine.devices.precision import to_device
from engine.training.optimizer import build_optimizer
from models import DETECTORS, replaced_convs
from models.options import field_annotations

CONFIGS = sorted(file.name for file in CONFIG_DIR.glob("*.yaml"))
# one of each detector, and those of the README
QUICK = {"demo.yaml", "demo_dcn.yaml", "r50_dcn.yaml", *(name for name in CONFIGS if name.endswith("_r50_dcn.yaml"))}
COCO_CLASSES = 80
SMALL = [
    "model.backbone.weights=null",
    "data.num_workers=0",
    "data.min_size=64",
    "data.max_size=96",
    "train.batch_size=1",
    *(
        f"model.{name}={{rpn_pre_nms_top_n_train: 20, rpn_post_nms_top_n_train: 20, rpn_batch_size_per_image: 32, "
        "box_batch_size_per_image: 16}"
        for name, spec in DETECTORS.items()
        if "rpn_batch_size_per_image" in field_annotations(spec.options)
    ),
]


@pytest.fixture(scope="session")
def load(shapes):
    """`load(name)`: the config of a YAML, on small images of `shapes`."""
    places = [f"data.{split}.images={shapes}/{split}" for split in ("train", "val")]
    places += [f"data.{split}.annotations={shapes}/annotations/{split}.json" for split in ("train", "val")]
    return lambda name: load_config(name, [*SMALL, *places])


def golden_models() -> dict:
    return json.loads((Path(__file__).parent / "golden/models.json").read_text())


@pytest.mark.parametrize("name", CONFIGS)
def test_numbers_are_golden(name, load, golden):
    config = load(name)
    with torch.device("meta"):  # without memory for the weights
        model, report = build_model(config.model, config.data, COCO_CLASSES)
    assert report is None
    found = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "replaced": {row.layer: row.count for row in replaced_convs(model)},
    }
    assert found == golden("models", name, found)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]
)
def test_a_step_of_training(name, load):
    config = load(name)
    torch.manual_seed(0)
    model, _ = build_model(config.model, config.data, COCO_CLASSES)
    split = read_split(config.data, "train", masks=config.model.spec.has_masks)
    batch = next(iter(build_train_loader(config, split, pin_memory=False)))
    images, targets = to_device(batch.images, batch.targets, torch.device("cpu"))
    settings = config.train
    optimizer = build_optimizer(
        settings.optimizer,
        model,
        lr=1e-3,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        offset_lr_factor=settings.offset_lr_factor,
    )
    losses = model(images, targets)
    assert all(math.isfinite(loss.item()) and loss.item() >= 0 for loss in losses.values())
    sum(losses.values()).backward()
    optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters())
    layers = [module for module in model.modules() if isinstance(module, DeformConv2d)]
    assert all(layer.conv_offset.weight.any() for layer in layers)
    assert bool(layers) == ("conv_offset" in {group["name"] for group in optimizer.param_groups})


@pytest.mark.parametrize("name", CONFIGS)
def test_it_opens_with_its_command_and_its_ap(name):
    lines = (CONFIG_DIR / name).read_text(encoding="utf-8").splitlines()
    head = "\n".join(lines[: next(index for index, line in enumerate(lines) if not line.startswith("#"))])
    own = "mine.yaml" if name == "custom.yaml" else name  # it is a template to be copied
    assert f"python tools/train.py --config {own}" in head
    assert f"configs/{name}" in head or own == name
    assert re.search(r"\bAP\b", head)
    assert re.search(r"\bCost\b", head)


def test_the_recorded_models_are_the_configs():
    assert sorted(golden_models()) == CONFIGS


def test_what_dcn_adds():
    """By hand for ResNet-50: 27 (DCNv1: 18) channels of offsets and masks, from 4 x 128, 6 x 256, 3 x 512 channels."""
    recorded = golden_models()
    channels = 4 * 128 + 6 * 256 + 3 * 512
    plain, dcn, dcnv1 = (recorded[f"{name}.yaml"]["parameters"] for name in ("r50", "r50_dcn", "r50_dcnv1"))
    assert dcn - plain == 27 * (9 * channels + 13) == 871_263
    assert dcnv1 - plain == 18 * (9 * channels + 13) == 580_842
    head = 8 * 27 * (9 * 256 + 1)  # of the four convolutions of both towers
    for name, added in (("retinanet_r50", 871_263), ("fcos_r50", 871_263 + head)):
        assert recorded[f"{name}_dcn.yaml"]["parameters"] - recorded[f"{name}.yaml"]["parameters"] == added
    assert recorded["r50_dcn.yaml"]["replaced"] == {"layer2": 4, "layer3": 6, "layer4": 3}
    assert recorded["r101_dcn.yaml"]["replaced"] == {"layer2": 4, "layer3": 23, "layer4": 3}
    assert recorded["r50.yaml"]["replaced"] == recorded["demo.yaml"]["replaced"] == {}


def test_what_masks_and_cascades_add():
    """By hand for 80 classes and the background: fully connected layers, and convolutions of 256 channels."""
    recorded = golden_models()
    faster, mask, cascade, both = (
        recorded[f"{name}.yaml"]["parameters"]
        for name in ("r50", "mask_rcnn_r50", "cascade_rcnn_r50", "cascade_mask_rcnn_r50")
    )
    convs = 4 * (256 * (256 * 9 + 1)) + 256 * (256 * 4 + 1) + 81 * (256 + 1)
    assert mask - faster == both - cascade == convs == 2_643_537
    box_head = 1024 * (256 * 49 + 1) + 1024 * (1024 + 1)
    outputs = 3 * (81 + 4) - 81 * (1 + 4)
    assert cascade - faster == 2 * box_head + outputs * (1024 + 1) == 27_637_610


@pytest.mark.parametrize("name", [name for name in CONFIGS if name.replace(".", "_dcn.") in CONFIGS])
def test_the_pairs_to_compare_differ_in_dcn_alone(name):
    one, other = (load_config(name).model_dump() for name in (name, name.replace(".", "_dcn.")))
    assert one["model"]["backbone"].pop("dcn_v2_stages") == []
    assert other["model"]["backbone"].pop("dcn_v2_stages")
    assert one["model"]["fcos"].pop("num_dcn_convs") == 0
    assert bool(other["model"]["fcos"].pop("num_dcn_convs")) == (other["model"]["detector"] == "fcos")
    assert one == other
