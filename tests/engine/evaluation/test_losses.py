"""Validation losses against a plain loop, and what they leave as it was."""

import copy

import pytest
import torch
from torch import nn

from engine.building.data import build_loss_loader, read_split
from engine.building.model import build_initialized_model
from engine.config.loading import load_config
from engine.evaluation.losses import mean_losses

CPU = torch.device("cpu")


@pytest.mark.parametrize("detector", ["faster_rcnn", "fcos"])
def test_losses_are_the_mean_over_images(tiny_config, detector):
    options = [f"model.detector={detector}", "model.backbone.norm=bn", "train.batch_size=4", "data.min_size=[48, 64]"]
    options += ["model.fpn.out_channels=64"] if detector == "fcos" else []
    config = load_config(tiny_config, options)
    val = read_split(config.data, "val")
    torch.manual_seed(0)
    model, _ = build_initialized_model(config, val.class_names, None, pretrained=False)
    model.double().eval()
    before = copy.deepcopy(model.state_dict())
    loader, boxes_per_image = build_loss_loader(config, val, pin_memory=False)
    assert boxes_per_image == len(val.arrays.boxes) / (val.arrays.counts > 0).sum()

    found = mean_losses(model, loader, boxes_per_image=boxes_per_image, device=CPU)
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())

    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    expected = {}
    with torch.no_grad():
        for index in range(len(loader.dataset)):
            image, target = loader.dataset.dataset[index]
            assert min(image.shape[1:]) == 64
            target |= {"boxes": target["boxes"].double(), "seed": 0, "step_boxes": boxes_per_image}
            for name, value in model([image.double() / 255], [target]).items():
                expected[name] = expected.get(name, 0) + value.item() / len(loader.dataset)
    assert found == pytest.approx(expected | {"loss": sum(expected.values())}, rel=1e-6)
