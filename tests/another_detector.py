"""A detector unlike those of `models`: no pyramid, stretched images, no NMS, losses divided by the boxes of the step.

`main` adds it to `DETECTORS` in a separate process and runs tools one after the other. The process takes a JSON list of
command lines, and prints the exit code, output and errors of each tool as JSON.
"""

import contextlib
import io
import json
import runpy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import ResNet
from torchvision.ops import clip_boxes_to_image

from models import DETECTORS, DeformOptions, DetectorSpec
from models.detector import ClassRows
from models.ignored import is_point_ignored
from models.options import Affects, Fraction, PositiveFloat, PositiveInt
from models.resnet import stage_channels

ROOT = Path(__file__).resolve().parents[1]
NAME = "points"


@dataclass(frozen=True)
class PointOptions:
    """A box of each class at every place of C4 and C5."""

    channels: Annotated[PositiveInt, Affects.NETWORK] = 32
    """Width of the projections."""
    unit: Annotated[PositiveInt, Affects.MEANING] = 16
    """Pixels of a box whose sides are predicted as 0."""
    box_loss_weight: Annotated[PositiveFloat, Affects.RESULT] = 1.0
    """Weight of the loss of boxes."""
    score_threshold: Annotated[Fraction, Affects.RESULT] = 0.0
    """Detections below are dropped."""
    detections_per_image: Annotated[PositiveInt, Affects.RESULT] = 100
    """The most detections of an image."""


class Projections(nn.Module):
    """C4 and C5 of a ResNet at one width; the ResNet is `body`."""

    def __init__(self, body: ResNet, channels: int) -> None:
        super().__init__()
        widths = stage_channels(body)
        self.body = IntermediateLayerGetter(body, {"layer3": "c4", "layer4": "c5"})
        self.project = nn.ModuleDict({f"c{stage + 1}": nn.Conv2d(widths[stage], channels, 1) for stage in (3, 4)})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {name: self.project[name](features).relu() for name, features in self.body(images).items()}


class PointDetector(nn.Module):
    """Each location predicts class scores and a box; a ground-truth box is assigned to the location of its centre."""

    def __init__(self, body: ResNet, num_classes: int, options: PointOptions, transform: nn.Module) -> None:
        super().__init__()
        self.transform, self.options = transform, options
        self.backbone = Projections(body, options.channels)
        self.classes = nn.Conv2d(options.channels, num_classes, 1)
        self.sides = nn.Conv2d(options.channels, 4, 1)
        nn.init.constant_(self.classes.bias, -2.0)

    def forward(self, images: list[Tensor], targets: list[dict] | None = None) -> dict[str, Tensor] | list[dict]:
        sizes = [tuple(image.shape[-2:]) for image in images]
        batch, targets = self.transform(images, targets)
        maps = self.backbone(batch.tensors).values()
        wide = torch.promote_types(batch.tensors.dtype, torch.float32)
        logits = torch.cat([self.classes(features).flatten(2) for features in maps], 2).mT.to(wide)
        sides = torch.cat([self.sides(features).flatten(2) for features in maps], 2).mT.to(wide)
        centres = torch.cat([self._centres(features, batch.tensors) for features in maps]).to(wide)
        if self.training:
            assert targets is not None, "targets should not be none when in training mode"
            return self._losses(logits, sides, centres, targets)
        reach = self.options.unit / 2 * sides.exp()
        boxes = torch.cat([centres - reach[..., :2], centres + reach[..., 2:]], -1)
        found = [
            self._choose(scores, own, size)
            for scores, own, size in zip(logits.sigmoid(), boxes, batch.image_sizes, strict=True)
        ]
        return self.transform.postprocess(found, batch.image_sizes, sizes)

    def _centres(self, features: Tensor, images: Tensor) -> Tensor:
        """Pixels (x, y) of the places of a map, row by row."""
        height, width = features.shape[-2:]
        rows, columns = ((torch.arange(size, device=images.device) + 0.5) for size in (height, width))
        y, x = torch.meshgrid(rows * images.shape[-2] / height, columns * images.shape[-1] / width, indexing="ij")
        return torch.stack([x, y], -1).flatten(0, 1)

    def _losses(self, logits: Tensor, sides: Tensor, centres: Tensor, targets: list[dict]) -> dict[str, Tensor]:
        class_loss, box_loss = logits.new_zeros(()), sides.sum() * 0
        for own_logits, own_sides, target in zip(logits, sides, targets, strict=True):
            boxes, wanted = target["boxes"].to(sides.dtype), torch.zeros_like(own_logits)
            if len(boxes):
                places = torch.cdist((boxes[:, :2] + boxes[:, 2:]) / 2, centres).argmin(1)
                wanted[places, target["labels"] - 1] = 1
                reach = torch.cat([centres[places] - boxes[:, :2], boxes[:, 2:] - centres[places]], 1)
                true = (reach.clamp(min=1) / (self.options.unit / 2)).log()
                box_loss = box_loss + (own_sides[places] - true).abs().sum()
            counts = wanted.any(1) | ~is_point_ignored(centres, target)
            class_loss = class_loss + binary_cross_entropy_with_logits(
                own_logits[counts], wanted[counts], reduction="sum"
            )
        scale = 1 / (len(targets) * targets[0].get("step_boxes", 1.0))
        return {"loss_class": class_loss * scale, "loss_box": box_loss * scale * self.options.box_loss_weight}

    def _choose(self, scores: Tensor, boxes: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        """Take the best of all places and classes, without NMS."""
        best, order = scores.flatten().topk(min(self.options.detections_per_image, scores.numel()))
        order = order[best >= self.options.score_threshold]
        places, labels = order // scores.shape[1], order % scores.shape[1] + 1
        return {"boxes": clip_boxes_to_image(boxes[places], size), "labels": labels, "scores": best[: len(order)]}


def build(
    body: ResNet, num_classes: int, options: PointOptions, *, transform: nn.Module, dcn: DeformOptions
) -> PointDetector:
    """Build it; nothing but its ResNet is deformable."""
    return PointDetector(body, num_classes, options, transform)


SPEC = DetectorSpec(
    build,
    PointOptions,
    uses_fpn=False,
    resize="stretch",
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
    class_rows={r"classes\.(weight|bias)": ClassRows(background=False)},
    lr_factors={r"^sides\.": 2.0},
    tiny={"channels": 16},
)


def main() -> None:
    """Run tools with this detector among the others."""
    DETECTORS[NAME] = SPEC  # before the config makes a section of each
    sys.path.insert(0, str(ROOT / "tools"))
    results = []
    for tool, *arguments in json.loads(sys.argv[1]):
        out, err, code = io.StringIO(), io.StringIO(), 0
        sys.argv = [str(ROOT / "tools" / f"{tool}.py"), *arguments]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                runpy.run_path(sys.argv[0], run_name="__main__")
            except SystemExit as end:
                code = end.code or 0
        results.append((code, out.getvalue(), err.getvalue()))
    print(json.dumps(results))
