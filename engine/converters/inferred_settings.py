"""Settings that a checkpoint does not contain, inferred from its source: input, stride, epsilon, classes."""

import re
from collections.abc import Sequence
from pathlib import Path

from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from data import load_categories
from data.json_file import read_bytes

from .architecture import has_statistics
from .arithmetic import EPS, INPUT_FORMATS
from .reading import SourceCheckpoint
from .source import Source

# torchvision's names by category id; "N/A" where COCO has none
_COCO = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
COCO = {index: name for index, name in enumerate(_COCO) if index and name != "N/A"}
# outputs of a detector whose labels are COCO's category ids, without the background
COCO_LABELS = len(_COCO) - 1


def infer_input_format(checkpoint: SourceCheckpoint, source: Source) -> str:
    """Infer the input format of a network, a key of `arithmetic.INPUT_FORMATS`.

    Some files of detectron2 contain the standard deviation, files of mmdetection the config. Otherwise the function
    returns the default of the framework.
    """
    std = checkpoint.tensors.get("pixel_std")
    if std is not None:
        return "bgr" if bool((std == 1).all()) else "bgr_std"
    text = checkpoint.config_text
    if re.search(r"to_rgb\s*=\s*False", text):
        return "bgr" if re.search(r"std\s*=\s*\[\s*1\.0\s*,", text) else "bgr_std"
    return (source.input_with_groups if _has_groups(checkpoint) else "") or source.input


def infer_stride_in_1x1(checkpoint: SourceCheckpoint, input_format: str) -> bool:
    """Whether bottlenecks have their stride in the first convolution, as networks of Caffe and MSRA (raw BGR).

    Networks with group norm and ResNeXts have it in the 3x3 convolution. A config of mmdetection in the file decides.
    """
    if not any(re.search(r"(conv3|branch2c\.conv)\.weight$", name) for name in checkpoint.tensors):
        return False
    if style := re.search(r"style\s*=\s*['\"](caffe|pytorch)", checkpoint.config_text):
        return style[1] == "caffe"
    return input_format == "bgr" and has_statistics(checkpoint.tensors) and not _has_groups(checkpoint)


def infer_norm(checkpoint: SourceCheckpoint) -> str:
    """Infer the norm of a converted network, a key of `models.NORMS`."""
    return "frozen_bn" if has_statistics(checkpoint.tensors) else "gn"


def _has_groups(checkpoint: SourceCheckpoint) -> bool:
    """Whether the 3x3 convolutions of bottlenecks have groups, as in ResNeXt."""
    pattern = r"(?:.*\.)?(?:layer1|res2|layers\.0)\.0\.conv2\.weight"
    first = next((tensor for name, tensor in checkpoint.tensors.items() if re.fullmatch(pattern, name)), None)
    return first is not None and first.dim() == 4 and first.shape[1] < first.shape[0]


def infer_eps(checkpoint: SourceCheckpoint, source: Source, classes: int | None) -> float:
    """Infer the epsilon of the batch norms: 0 for torchvision's COCO detectors with frozen norms."""
    is_frozen = not any(name.endswith("num_batches_tracked") for name in checkpoint.tensors)
    return 0.0 if source.background_first and classes == COCO_LABELS and is_frozen else EPS


def choose_classes(
    checkpoint: SourceCheckpoint, source: Source, classes: int, file: Path | None
) -> tuple[dict[int, str], list[int]]:
    """Return the class names of a detector.

    Args:
        checkpoint: source checkpoint.
        source: source framework.
        classes: number of foreground classes of the checkpoint.
        file: COCO annotation JSON, or a text file with one name per line. None: names in the checkpoint, or COCO's
            names if the number matches.

    Returns:
        Names by category id in ascending order, and the classes of the checkpoint, counted from 0, that they name.

    Raises:
        ValueError: if the names are unknown or their number does not match.
    """
    names = read_classes(file) if file else _default_classes(checkpoint, source, classes)
    if len(names) == classes:
        return names, [*range(classes)]
    if source.background_first and min(names) > 0 and max(names) <= classes:
        return names, [index - 1 for index in names]  # labels are category ids
    raise ValueError(f"the checkpoint has {classes} classes, but {file or 'COCO'} has {len(names)}")


def read_classes(file: Path) -> dict[int, str]:
    """Read class names by category id from a COCO annotation JSON, or from a text file with ids 1, 2, ...

    Raises:
        ValueError: if the file does not exist or contains no classes.
    """
    if file.suffix == ".json":
        return load_categories(file)
    try:
        lines = read_bytes(file, "class file").decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"class file {file} must be a COCO annotation JSON or a text file of names: {error}") from None
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise ValueError(f"class file {file} must contain classes, got no name")
    return dict(enumerate(names, start=1))


def _default_classes(checkpoint: SourceCheckpoint, source: Source, classes: int) -> dict[int, str]:
    given = checkpoint.class_names
    if given and len(given) == classes and sorted(given) != sorted(COCO.values()):
        return dict(enumerate(given, start=1))
    if classes == len(COCO) or (source.background_first and classes == COCO_LABELS):
        return COCO
    raise ValueError(
        f"the checkpoint has {classes} classes without names: add --classes FILE, a COCO annotation JSON or a text "
        "file with one name per line, in the order of training"
    )


def settings_table(
    input_format: str, eps: float, mask_scale: float | None, *, stride_in_1x1: bool
) -> Sequence[tuple[str, str]]:
    """Return the table rows of inferred settings."""
    is_bgr, is_raw = INPUT_FORMATS[input_format]
    return [
        ("input", f"{'BGR' if is_bgr else 'RGB'} - mean, {'in 0..255' if is_raw else 'divided by std'}"),
        ("stride of stages", f"in the {'first 1x1' if stride_in_1x1 else '3x3'} convolution"),
        ("batch norm epsilon", f"{eps:g}"),
        ("mask scale", "-" if mask_scale is None else f"{mask_scale:g}"),
    ]
