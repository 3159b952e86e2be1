"""Boxes are float32 if the network computes in half precision."""

import pytest
import torch
from torchvision.models.detection._utils import BoxCoder

from models.boxes import Float32BoxCoder


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_box_deltas_of_half_precision(dtype):
    boxes = torch.tensor([[1000.5, 700.25, 1100, 790], [3, 4, 50, 61]])
    codes = torch.randn(2, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    found = Float32BoxCoder((10, 10, 5, 5)).decode(codes, [boxes])
    assert found.dtype == wide
    assert torch.equal(found, BoxCoder((10, 10, 5, 5)).decode(codes.to(wide), [boxes]))


def test_detections_and_losses_under_autocast(detector, spec, make):
    images, targets = make.two_images(masks=spec.has_masks)
    model = make.build(detector, score_threshold=0.0, detections_per_image=20).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = model(images)
        losses = model.train()(images, targets)
    dtypes = {name: values.dtype for name, values in found[0].items()}
    assert dtypes.pop("labels") == torch.int64
    assert {*dtypes.values()} == {torch.float32}
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())


def test_proposals_under_autocast(make):
    model, seen = make.build("faster_rcnn").eval(), []
    model.rpn.register_forward_hook(lambda module, inputs, out: seen.extend(out[0]))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model(make.two_images()[0])
    assert [boxes.dtype for boxes in seen] == [torch.float32] * 2


def test_losses_of_far_boxes_under_autocast(detector, spec, make, formula_weights):
    """On a wide image, where bfloat16 has steps of 8 pixels, the losses equal those of float32 within a few percent.

    Box heads get the same proposals in both, because the network's proposals depend on rounding.
    """
    image, box = torch.rand(3, 64, 1400), torch.tensor([[1203.0, 11, 1246, 50]])
    target = {"boxes": box, "labels": torch.tensor([2]), "seed": 5, "masks": torch.ones(1, 64, 1400).byte()}
    found = []
    for enabled in (False, True):
        model = formula_weights(make.build(detector)).train()
        make.give_proposals(model, [target], (64, 1400))
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses = model([image], [target])
        found.append({name: loss.item() for name, loss in losses.items() if "reg" in name})
    assert found[1] == pytest.approx(found[0], rel=0.1, abs=0.01)
