"""The table of detectors, and functions that build them from the plain values of a config or checkpoint."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torchvision.models.resnet import ResNet

from .band_files import RGB
from .cascade_rcnn import CASCADE_MASK_RCNN_SPEC, CASCADE_RCNN_SPEC
from .detector import DeformOptions, DetectorSpec
from .faster_rcnn import FASTER_RCNN_SPEC
from .fcos import FCOS_SPEC
from .fpn import FpnOptions
from .mask_rcnn import MASK_RCNN_SPEC
from .options import current_names, marks_of, read_options
from .resize import Resize
from .resnet import check_name, resnet
from .retinanet import RETINANET_SPEC

DETECTORS: dict[str, DetectorSpec] = {
    "faster_rcnn": FASTER_RCNN_SPEC,
    "mask_rcnn": MASK_RCNN_SPEC,
    "cascade_rcnn": CASCADE_RCNN_SPEC,
    "cascade_mask_rcnn": CASCADE_MASK_RCNN_SPEC,
    "retinanet": RETINANET_SPEC,
    "fcos": FCOS_SPEC,
}
_MARKS = {
    **marks_of(resnet, "model.backbone"),
    **marks_of(FpnOptions, "model.fpn"),
    **{
        key: marks for name, spec in DETECTORS.items() for key, marks in marks_of(spec.options, f"model.{name}").items()
    },
}


def with_current_names(config: Mapping[str, Any], *, is_written: bool = False) -> dict[str, Any]:
    """Return a copy of a config as plain values, with the options of its "model" under their current names.

    Args:
        config: see `build_detector`.
        is_written: see `models.options.current_names`.

    Raises:
        ValueError: if an option is given under an old and a current name.
    """
    return current_names(config, _MARKS, is_written=is_written)


def build_resize(spec: DetectorSpec, data: Mapping[str, Any]) -> Resize:
    """Return the resizing of a detector's images, from the "data" section of a config, see `build_detector`.

    Raises:
        ValueError: If the kind of resizing is unknown.
    """
    sizes = data.get("min_size", 800)
    sizes = (sizes,) if isinstance(sizes, int) else tuple(sizes)
    return Resize(data.get("resize") or spec.resize, sizes, data.get("max_size", 1333), data.get("eval_size"))


def build_body(config: Mapping[str, Any]) -> ResNet:
    """Return the ResNet of a config with random weights, see `build_detector`."""
    model = config.get("model", {})
    options = {key: value for key, value in model.get("backbone", {}).items() if key != "weights"}
    channels = config.get("data", {}).get("channels", RGB)
    return resnet(**options, dcn_backend=model.get("dcn_backend", "auto"), in_channels=channels)


def normalization(spec: DetectorSpec, data: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel, from the "data" section of a config, see `build_detector`.

    Raises:
        ValueError: If their number is not that of the channels, or if they are not set for other images than RGB.
    """
    channels = data.get("channels", RGB)
    mean, std = data.get("mean"), data.get("std")
    if channels == RGB:
        mean, std = mean or spec.mean, std or spec.std
    if mean is None or std is None:
        raise ValueError(f"data.mean and data.std must be set for data.channels {channels}: the detector's are for RGB")
    for name, values in (("data.mean", mean), ("data.std", std)):
        if len(values) != channels:
            raise ValueError(f"{name} must have a value for each of {channels} channels, got {len(values)}")
    return tuple(mean), tuple(std)


def build_detector(config: Mapping[str, Any], num_classes: int, *, body: ResNet | None = None) -> nn.Module:
    """Build the detector of a config with random weights.

    Deformable layers in the head have the settings of those in the ResNet.

    Args:
        config: Plain values with the keys of a config. The section "model" is read, and of "data" the image size, the
            channels, mean and standard deviation.
            Missing keys have their defaults.
        num_classes: Number of foreground classes.
        body: ResNet to use; None builds the ResNet of the config.

    Returns:
        The detector in train mode, see `models.detector`.

    Raises:
        ValueError: If a name is unknown, a value is invalid, or parts do not match.

    Example:
        ```python
        model = build_detector({"model": {"detector": "fcos", "fcos": {"num_dcn_convs": 1}}}, num_classes=3)
        ```
    """
    config = with_current_names(config)
    model, data = config.get("model", {}), config.get("data", {})
    name = model.get("detector", "faster_rcnn")
    check_name("detector", name, [*DETECTORS])
    if num_classes < 1:
        raise ValueError(f"`num_classes` must be at least 1, got {num_classes}")
    spec = DETECTORS[name]
    body = build_body(config) if body is None else body
    backbone = model.get("backbone", {})
    dcn = {key: backbone[key] for key in ("modulation", "offset_groups", "mask_scale") if key in backbone}
    return spec.build(
        body,
        num_classes,
        read_options(spec.options, model.get(name, {}), f"model.{name}"),
        **({"fpn": read_options(FpnOptions, model.get("fpn", {}), "model.fpn")} if spec.uses_fpn else {}),
        transform=build_resize(spec, data).transform(*normalization(spec, data)),
        dcn=DeformOptions(**dcn, backend=model.get("dcn_backend", "auto")),
    )
