"""Classes of a run: those that `data.classes` makes, and the table of rare classes at the start."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from data import (
    CocoAnnotations,
    CocoDetection,
    balanced_weights,
    class_repeat_factors,
    count_classes,
    image_repeat_factors,
)
from data.classes import unknown_class

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


def class_weights(train: CocoAnnotations, asked: str | Mapping[str, float] | None) -> list[float] | None:
    """Return the weight of each class in the classification loss, by `train.class_weights`; None without weights.

    Raises:
        ValueError: if a name is not that of a class.
    """
    if asked is None:
        return None
    names = train.class_names
    if asked == "balanced":
        return balanced_weights(count_classes(train.arrays, len(names)).boxes).tolist()
    if unknown := [f"  - {unknown_class(name, names)}" for name in asked if name not in names]:
        raise ValueError("\n".join([f"train.class_weights does not fit the classes of {train.path}:", *unknown]))
    return [float(asked.get(name, 1)) for name in names]


def describe_rare_classes(
    dataset: CocoDetection,
    class_names: Sequence[str],
    *,
    threshold: float | None,
    epoch_images: int,
    weights: Sequence[float] | None = None,
) -> str | None:
    """Describe the effect of the options for rare classes, with a table of the rarest; None if all are off.

    Args:
        dataset: training set.
        class_names: names of its classes.
        threshold: `data.repeat_threshold`.
        epoch_images: number of images in an epoch.
        weights: weight of each class in the classification loss.
    """
    factors = class_repeats(dataset, len(class_names), threshold)
    if factors is None and weights is None:
        return None
    counts = count_classes(dataset.arrays, len(class_names))
    columns = {"class": class_names, "images": counts.images.tolist(), "boxes": counts.boxes.tolist()}
    lines = []
    if factors is not None:
        repeated = int((factors > 1).sum())
        effect = f"{counted(epoch_images, 'image')} in an epoch instead of {len(dataset):,}"
        lines.append(
            f"rare classes (data.repeat_threshold {threshold:g}): {repeated} of {len(class_names)} classes have a "
            f"factor above 1; {effect if repeated else 'no image is repeated'}"
        )
        columns["repeat factor"] = [f"{factor:.2f}" for factor in factors]
    if weights is not None:
        lines.append("rare classes (train.class_weights): the classification loss has a weight for each class")
        columns["loss weight"] = [f"{weight:.2f}" for weight in weights]
    order = np.argsort(counts.images, kind="stable").tolist()
    rows = [[column[index] for column in columns.values()] for index in order]
    lines.append(format_table([*columns], rows[:_MAX_ROWS]))
    if len(rows) > _MAX_ROWS:
        lines.append(f"  and {counted(len(rows) - _MAX_ROWS, 'class')} with more images")
    return "\n".join(lines)
