"""`DetectorSpec`: the record of a detector, which the rest of the project reads, and the contract of a detector.

`tests/models/test_detectors.py` tests the contract for all of `DETECTORS`:

1. In train mode `model(images, targets)` returns a dict of losses whose names start with "loss_". In eval mode
   `model(images)` returns a list of dicts with `boxes` (xyxy pixels of the input image), `labels`, `scores` and, if
   `has_masks`, `masks`, in descending order of scores. Images are `(channels, H, W)` in [0, 1], labels count from 1.
   Training images are not resized by the detector.
2. Losses are means over the images of a batch, or sums over them divided by `len(images) * target["step_boxes"]`. The
   result of a step therefore does not depend on how its images are split into batches and processes.
3. `model.backbone.body` is torchvision's `IntermediateLayerGetter` on the ResNet. `model.transform`, an argument of
   the builder, normalises, pads and resizes images, see `models.transform`.
4. Everything random in training is drawn from `target["seed"]`.
5. Every trained parameter has a gradient after every batch, also after a batch without any box.
6. Images of any size work in eval mode. In train mode all images that `Resize` produces work.
7. No loss depends on the background in the regions `target["ignored"]` `(k, 4)`, see `models.ignored`. Objects in them
   are learned. The key may be absent.
8. `set_class_weights` weights the classification loss, or raises an error if no head has a buffer `class_weights`.
9. The options contain `score_threshold` and `detections_per_image`, and `nms_threshold` only if the detector has NMS.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class DeformOptions:
    """Settings of a detector's deformable layers, see `dcn.DeformConv2d`."""

    modulation: bool = True
    offset_groups: int = 1
    mask_scale: float = 2.0
    backend: str = "auto"


class ClassRows(NamedTuple):
    """The rows of a tensor that belong to classes.

    Attributes:
        each: Rows per class. None: `num_anchors * num_classes` rows, with the class index varying fastest.
        background: Whether the first rows belong to the background or to an unused output.
    """

    each: int | None = 1
    background: bool = True


@dataclass(frozen=True)
class DetectorSpec:
    """The properties of a detector that the rest of the project uses.

    Attributes:
        build: `build(body, num_classes, options, transform=, dcn=)` returns the detector in train mode. `body` is a
            ResNet of `models.resnet`, to which the function adds a neck. `num_classes` is the number of foreground
            classes, at least 1. `options` is an instance of the type below. `transform` becomes `model.transform`, see
            `Resize.transform`. `dcn` contains the `DeformOptions` of deformable layers outside of the ResNet. With
            `uses_fpn` the function also takes `FpnOptions` as `fpn=`. It raises `ValueError` for invalid options.
        options: Frozen dataclass of its options, annotated as described in `models.options`.
        has_masks: Whether the detector is trained on masks and returns them.
        uses_fpn: Whether the detector uses the options of the feature pyramid.
        resize: Kind of `Resize`, unless `data.resize` is set.
        mean: Mean of each channel for normalisation of RGB, unless `data.mean` is set.
        std: Standard deviation of each channel, unless `data.std` is set.
        class_rows: Rows of classes in tensors, by regular expression of the whole tensor name.
        lr_factors: Factor of `train.lr`, by regular expression of the parameter name.
        weight_decay_factors: Factor of `train.weight_decay`, by regular expression of the parameter name.
        export: "module:class" of its ONNX graph, which only `engine/export/` imports; None without ONNX export.
        tiny: Options of a small network for images of about 100 pixels, for tests and benchmarks.
        tiny_fpn: Options of the feature pyramid of this small network.
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
