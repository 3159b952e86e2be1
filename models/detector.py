"""What a detector is: one record for each, from which everything else is read.

The contract of a detector, which `tests/models/test_detectors.py` tests over all of `DETECTORS`:

1. In train mode `model(images, targets)` returns a dict of losses whose names begin with "loss_", in eval mode
   `model(images)` a list of dicts with `boxes` (xyxy pixels of the image given), `labels`, `scores` and, where the
   record says so, `masks`; the best detection stands first. Images are `(3, H, W)` in [0, 1], labels count from 1. In
   training, images are taken as they come.
2. Losses are means over the images of a batch, or sums over them divided by `len(images) * target["step_boxes"]`. So it
   changes nothing how the images of a step are split into batches and processes.
3. `model.backbone.body` is torchvision's `IntermediateLayerGetter` on the ResNet. `model.transform`, which the builder
   gets, normalises, pads and resizes images, see `models.transform`; training images are resized before.
4. Everything random in training is drawn from `target["seed"]`.
5. Every parameter that is trained has a gradient after every batch, also one without any box.
6. Images of any size work in eval mode, and in train mode what `Resize` makes of any image.
7. The options hold `score_threshold` and `detections_per_image`, and `nms_threshold` only where there is NMS.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class DeformOptions:
    """How the deformable layers of a detector are made; see `dcn.DeformConv2d`."""

    modulation: bool = True
    offset_groups: int = 1
    mask_scale: float = 2.0
    backend: str = "auto"


class ClassRows(NamedTuple):
    """Rows of a tensor that belong to classes.

    Attributes:
        each: how many a class has, one after the other. None: one for each anchor of a place, the classes of an anchor
            side by side.
        background: whether the first ones are those of the background, or of an output that stays unused.
    """

    each: int | None = 1
    background: bool = True


@dataclass(frozen=True)
class DetectorSpec:
    """All that the rest of the project needs to know of a detector.

    Attributes:
        build: `build(body, num_classes, options, transform=, dcn=)` returns the detector in train mode. `body` is a
            ResNet of `models.resnet`, on which it puts its own neck; `num_classes` are the foreground classes, at least
            1, and `options` of the type below. `transform` is what becomes `model.transform`, of `Resize.transform`.
            `dcn` are the `DeformOptions` of layers that are deformable outside the ResNet. With `uses_fpn` it takes the
            `FpnOptions` as `fpn=` too. It raises `ValueError` for what does not fit.
        options: frozen dataclass of its options, whose annotations are those of `models.options`.
        has_masks: whether it learns from masks and detects them.
        uses_fpn: whether the options of the feature pyramid are its options too.
        resize: how images are resized unless `data.resize` says otherwise: a kind of `Resize`.
        mean: of the pixels of each channel, which are normalised by it.
        std: their standard deviation.
        class_rows: the rows of classes in tensors, by regular expression of a tensor's whole name.
        lr_factors: by regular expression of a parameter's name, its learning rate over `train.lr`.
        weight_decay_factors: by regular expression of a parameter's name, its weight decay over `train.weight_decay`.
        export: "module:class" of its graph for ONNX, which only `engine/export/` imports; None: it has none.
        tiny: options with which it is small and fits images of about a hundred pixels, for tests and benchmarks.
        tiny_fpn: options of the pyramid that go with them.
    """

    build: Callable[..., nn.Module]
    options: type
    has_masks: bool = False
    uses_fpn: bool = True
    resize: str = "shortest"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    class_rows: Mapping[str, ClassRows] = field(default_factory=dict)
    lr_factors: Mapping[str, float] = field(default_factory=dict)
    weight_decay_factors: Mapping[str, float] = field(default_factory=dict)
    export: str | None = None
    tiny: Mapping[str, Any] = field(default_factory=dict)
    tiny_fpn: Mapping[str, Any] = field(default_factory=lambda: {"levels": [2, 3], "out_channels": 16})
