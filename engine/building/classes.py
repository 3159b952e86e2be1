"""Classes of a run: those that `data.classes` makes, and the table of rare classes at the start."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from data import CocoAnnotations, CocoDetection, class_repeat_factors, count_classes, image_repeat_factors

from ..display import counted, format_table

_MAX_ROWS = 20


def describe_changes(splits: Mapping[str, CocoAnnotations]) -> list[str]:
    """Describe the effect of `data.classes` on splits by name; an empty list without it."""
    return [f"data.classes in {name}: {split.classes_kept}" for name, split in splits.items() if split.classes_kept]


def class_repeats(dataset: CocoDetection, num_classes: int, threshold: float | None) -> NDArray[np.float64] | None:
    """Return the repeat factor of each class of a training set, `(num_classes,)`; None without a threshold."""
    if threshold is None:
        return None
    counts = count_classes(dataset.arrays, num_classes)
    return class_repeat_factors(counts.images, len(dataset), threshold)


def image_repeats(dataset: CocoDetection, num_classes: int, threshold: float | None) -> NDArray[np.float64] | None:
    """Return the repeat factor of each image of a training set, `(images,)`; None without a threshold."""
    factors = class_repeats(dataset, num_classes, threshold)
    return None if factors is None else image_repeat_factors(dataset.arrays, dataset.images, factors)


def describe_rare_classes(
    dataset: CocoDetection, class_names: Sequence[str], *, threshold: float | None, epoch_images: int
) -> str | None:
    """Describe the effect of the options for rare classes, with a table of the rarest; None if all are off.

    Args:
        dataset: training set.
        class_names: names of its classes.
        threshold: `data.repeat_threshold`.
        epoch_images: number of images in an epoch.
    """
    factors = class_repeats(dataset, len(class_names), threshold)
    if factors is None:
        return None
    repeated = int((factors > 1).sum())
    counts = count_classes(dataset.arrays, len(class_names))
    order = np.argsort(counts.images, kind="stable")
    rows = [
        (class_names[i], int(counts.images[i]), int(counts.boxes[i]), f"{factors[i]:.2f}" if counts.images[i] else "-")
        for i in order
    ]
    effect = f"{counted(epoch_images, 'image')} in an epoch instead of {len(dataset):,}"
    lines = [
        f"rare classes (data.repeat_threshold {threshold:g}): {repeated} of {len(class_names)} classes have a factor "
        f"above 1; {effect if repeated else 'no image is repeated'}",
        format_table(("class", "images", "boxes", "repeat factor"), rows[:_MAX_ROWS]),
        *([f"  and {counted(len(rows) - _MAX_ROWS, 'class')} with more images"] if len(rows) > _MAX_ROWS else []),
    ]
    return "\n".join(lines)
