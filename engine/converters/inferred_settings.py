"""What a checkpoint does not say outright and its maker must be known for: input, stride, epsilon, classes."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from .arithmetic import EPS, INPUT_FORMATS
from .reading import SourceCheckpoint
from .source import Source

# torchvision's names by category id; "N/A" where COCO has none
_COCO = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
COCO = {index: name for index, name in enumerate(_COCO) if index and name != "N/A"}
# outputs of a detector whose labels are COCO's category ids, without the background
COCO_LABELS = len(_COCO) - 1


def infer_input_format(checkpoint: SourceCheckpoint, source: Source) -> str:
    """Say what a network was fed, a key of `arithmetic.INPUT_FORMATS`.

    detectron2 keeps the standard deviations in some of its files, mmdetection its whole config; without them it is what
    the framework's common models have.
    """
    std = checkpoint.tensors.get("pixel_std")
    if std is not None:
        return "bgr" if bool((std == 1).all()) else "bgr_std"
    text = checkpoint.config_text
    if re.search(r"to_rgb\s*=\s*False", text):
        return "bgr" if re.search(r"std\s*=\s*\[\s*1\.0\s*,", text) else "bgr_std"
    return source.input


def infer_stride_in_1x1(checkpoint: SourceCheckpoint, input_format: str) -> bool:
    """Whether bottlenecks have their stride in the first convolution, as those of Caffe and MSRA, which see raw BGR."""
    has_bottlenecks = any(re.search(r"(conv3|branch2c\.conv)\.weight$", name) for name in checkpoint.tensors)
    return has_bottlenecks and (
        input_format == "bgr" or bool(re.search(r"style\s*=\s*['\"]caffe", checkpoint.config_text))
    )


def infer_eps(checkpoint: SourceCheckpoint, source: Source, classes: int | None) -> float:
    """Say the epsilon of the batch norms: torchvision's own detectors on COCO, whose norms are frozen, have none."""
    is_frozen = not any(name.endswith("num_batches_tracked") for name in checkpoint.tensors)
    return 0.0 if source.background_first and classes == COCO_LABELS and is_frozen else EPS


def choose_classes(
    checkpoint: SourceCheckpoint, source: Source, classes: int, file: Path | None
) -> tuple[dict[int, str], list[int]]:
    """Name the classes of a detector.

    Args:
        checkpoint: the checkpoint.
        source: whose it is.
        classes: how many foreground classes it has.
        file: COCO annotation JSON, or text with a name a line; None: those in the checkpoint, or COCO's if the number
            fits.

    Returns:
        Names by category id in rising order, and which classes of the checkpoint, counted from 0, these are.

    Raises:
        ValueError: if the classes are not known or do not fit.
    """
    names = read_classes(file) if file else _default_classes(checkpoint, source, classes)
    if len(names) == classes:
        return names, [*range(classes)]
    if source.background_first and min(names) > 0 and max(names) <= classes:
        return names, [index - 1 for index in names]  # labels are category ids
    raise ValueError(f"the checkpoint has {classes} classes, {file or 'COCO'} names {len(names)}")


def read_classes(file: Path) -> dict[int, str]:
    """Read names by category id: from a COCO annotation JSON, or a text file, whose lines get the ids 1, 2, ...

    Raises:
        ValueError: if there is no such file or no classes in it.
    """
    if not file.is_file():
        raise ValueError(f"class file {file} does not exist (resolved: {file.resolve()})")
    try:
        text = file.read_text(encoding="utf-8")
        if file.suffix != ".json":
            names = dict(enumerate((line.strip() for line in text.splitlines() if line.strip()), start=1))
        else:
            names = {item["id"]: str(item["name"]) for item in json.loads(text)["categories"]}
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"class file {file} must be a COCO annotation JSON or a text of names: {error!r}") from None
    if not names or not all(type(index) is int for index in names):
        raise ValueError(f"class file {file} must name at least one class, and ids must be whole numbers")
    return {index: names[index] for index in sorted(names)}


def _default_classes(checkpoint: SourceCheckpoint, source: Source, classes: int) -> dict[int, str]:
    given = checkpoint.class_names
    if given and len(given) == classes and sorted(given) != sorted(COCO.values()):
        return dict(enumerate(given, start=1))
    if classes == len(COCO) or (source.background_first and classes == COCO_LABELS):
        return COCO
    raise ValueError(
        f"the checkpoint has {classes} classes, whose names it does not tell: give --classes FILE, a COCO annotation "
        "JSON or a text with a name a line, in the order of training"
    )


def settings_table(
    input_format: str, eps: float, mask_scale: float | None, *, stride_in_1x1: bool
) -> Sequence[tuple[str, str]]:
    """Rows that tell what was taken for granted."""
    is_bgr, is_raw = INPUT_FORMATS[input_format]
    return [
        ("input", f"{'BGR' if is_bgr else 'RGB'} less the mean, {'in 0..255' if is_raw else 'over the deviations'}"),
        ("strides of stages", f"in the {'first 1x1' if stride_in_1x1 else '3x3'} convolution"),
        ("epsilon of batch norms", f"{eps:g}"),
        ("scale of masks", "-" if mask_scale is None else f"{mask_scale:g}"),
    ]
