"""Detectors and batches for tests; the `tiny` options of each record make a detector small."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from dcn import DeformConv2d
from models import DETECTORS, DetectorSpec, resnet
from models.options import Deforms, field_annotations
from tests import another_detector
from tests.detectors import SIZES, assemble


@pytest.fixture(params=[*DETECTORS, another_detector.NAME])
def detector(request, monkeypatch) -> str:
    """Return each name of the table of detectors, and the tests' additional one, in the table during the test."""
    if request.param not in DETECTORS:
        monkeypatch.setitem(DETECTORS, request.param, another_detector.SPEC)
    return request.param


@pytest.fixture
def spec(detector) -> DetectorSpec:
    """The record of `detector`."""
    return DETECTORS[detector]


@pytest.fixture
def head_dcn(spec) -> dict[str, int]:
    """Return options that make a layer in each part of the head deformable, if it has such options."""
    return {name: 1 for name, kind in field_annotations(spec.options).items() if Deforms.LAYERS in get_args(kind)}


def build(detector: str, num_classes: int = 3, *, stages: tuple[int, ...] = (2, 3, 4), **options) -> nn.Module:
    """Build a detector on levels 2 to 5 and "pool", with six deformable layers in its ResNet-18."""
    torch.manual_seed(0)
    body = resnet("resnet18", dcn_v2_stages=stages, norm="gn")
    fpn = {**DETECTORS[detector].tiny_fpn, "levels": [2, 3, 4, 5]}
    return assemble(detector, body, num_classes, fpn=fpn, **SIZES | options)


def tiny(detector: str, norm: str = "frozen_bn", **options) -> nn.Module:
    """Build a detector in float64 for images of about 100 pixels, whose offsets are not whole numbers."""
    torch.manual_seed(0)
    network = resnet("resnet18", dcn_v2_stages=[2], norm=norm)
    spec = DETECTORS[detector]
    model = assemble(detector, network, fpn=spec.tiny_fpn, **{**spec.tiny, **options})
    for module in model.modules():
        if isinstance(module, DeformConv2d):
            nn.init.normal_(module.conv_offset.weight, std=0.01)
    return model.double().train()


def two_images(*, masks: bool = False) -> tuple[list[Tensor], list[dict]]:
    """Return two images of different sizes; one target has the highest class, the other no box."""
    images = [torch.rand(3, 64, 80), torch.rand(3, 90, 64)]
    boxes = torch.tensor([[8.0, 10, 40, 50], [30, 20, 70, 60]])
    targets = [
        {"boxes": boxes, "labels": torch.tensor([1, 3]), "image_id": 1},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "image_id": 2},
    ]
    return images, _with_masks(images, targets) if masks else targets


def four_images(size: tuple[int, int] = (96, 128), *, masks: bool = False) -> tuple[list[Tensor], list[dict]]:
    """Return four images in float64 with 2, 0, 4 and 5 boxes, and the seeds of their samples."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    scale = torch.tensor(size[::-1])
    targets = []
    for index, count in enumerate((2, 0, 4, 5)):
        corners = draw(count, 2) * scale / 2
        boxes = torch.cat([corners, corners + (0.15 + 0.3 * draw(count, 2)) * scale], 1)
        labels = torch.randint(1, 4, (count,), generator=generator)
        targets.append({"boxes": boxes, "labels": labels, "seed": 10**17 + 7919 * index})
    images = [draw(3, *size) for _ in targets]
    return images, _with_masks(images, targets) if masks else targets


def _with_masks(images: list[Tensor], targets: list[dict]) -> list[dict]:
    """Add the ellipse inside of each box as a mask, `(n, H, W)` uint8."""
    masked = []
    for image, target in zip(images, targets, strict=True):
        height, width = image.shape[-2:]
        y, x = torch.arange(height)[:, None] + 0.5, torch.arange(width) + 0.5
        masks = torch.zeros(len(target["boxes"]), height, width, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, target["boxes"].tolist(), strict=True):
            mask[((2 * x - x1 - x2) / (x2 - x1)) ** 2 + ((2 * y - y1 - y2) / (y2 - y1)) ** 2 <= 1] = 1
        masked.append(target | {"masks": masks})
    return masked


def give_proposals(model: nn.Module, targets: list[dict], size: tuple[int, int]) -> None:
    """Replace the proposals by shifted ground truth and other boxes, so that rounding decides no label."""

    def proposals(target: dict) -> Tensor:
        boxes = target["boxes"].double()
        sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
        moved = [
            boxes + sides * torch.tensor(shift, dtype=torch.float64) for shift in ((0.1, 0, 0.1, -0.05), (0, 0.4) * 2)
        ]
        corners = torch.rand(40, 2, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        others = torch.cat([corners, corners + 0.5], 1) / 1.5 * torch.tensor([*size[::-1]] * 2)
        return torch.cat([*moved, others])

    def give(module: nn.Module, inputs: tuple, out: tuple) -> tuple:
        return [proposals(target).to(boxes.dtype) for target, boxes in zip(targets, out[0], strict=True)], out[1]

    if hasattr(model, "rpn"):
        model.rpn.register_forward_hook(give)


def losses_and_gradients(
    model: nn.Module, images: list[Tensor], targets: list[dict], split: list[int]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return sums over the parts of a batch, each weighted by its fraction of the images."""
    model.zero_grad()
    losses = {}
    for part in torch.arange(len(images)).split(split):
        found = model([images[i] for i in part], [targets[i] for i in part])
        share = len(part) / len(images)
        sum(share * loss for loss in found.values()).backward()
        losses = {name: losses.get(name, 0) + share * loss.detach() for name, loss in found.items()}
    return losses, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal_however_split(
    model: nn.Module, images: list[Tensor], targets: list[dict], splits: list[tuple[int, ...]]
) -> None:
    """Check that losses and gradients of a batch equal those of its parts, to ten digits."""
    losses, gradients = losses_and_gradients(model, images, targets, [len(images)])
    assert all(loss.isfinite() for loss in losses.values())
    for split in splits:
        torch.manual_seed(sum(split[1:]))  # the global state must not matter
        parts, part_gradients = losses_and_gradients(model, images, targets, [*split])
        torch.testing.assert_close(parts, losses, rtol=1e-10, atol=0)
        assert part_gradients.keys() == gradients.keys()
        for name, gradient in gradients.items():
            scale = gradient.abs().max().item()
            torch.testing.assert_close(part_gradients[name], gradient, rtol=0, atol=1e-10 * scale, msg=name)


@pytest.fixture
def make() -> SimpleNamespace:
    """Return the functions of this file."""
    functions: list[Callable] = [build, tiny, two_images, four_images, give_proposals, assert_equal_however_split]
    return SimpleNamespace(**{function.__name__: function for function in functions})
