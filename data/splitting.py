"""Split a data set into train, val and test: stratified by class, with groups of images that stay together."""

import math
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from .coco_file import DatasetError, Problem

FOLDER = "folder"
_NAMES = ("train", "val", "test")
_TOLERANCE = 1e-6


def parse_fractions(text: str) -> dict[str, float]:
    """Return the fraction of each split of a text such as "0.8/0.2" (train, val) or "0.7/0.2/0.1" (and test).

    Raises:
        ValueError: If it is not two or three fractions above 0 with the sum 1.
    """
    try:
        fractions = [float(part) for part in text.split("/")]
    except ValueError:
        fractions = []
    if not (
        len(fractions) in (2, 3)
        and all(0 < part < 1 for part in fractions)
        and math.isclose(sum(fractions), 1, abs_tol=_TOLERANCE)
    ):
        raise ValueError(
            "a split must be two or three fractions above 0 whose sum is 1, such as 0.8/0.2 (train/val) or "
            f"0.7/0.2/0.1 (train/val/test), got {text!r}"
        )
    return dict(zip(_NAMES, fractions, strict=False))


def group_names(file_names: Sequence[str], rule: str) -> list[str]:
    """Return the name of each image's group.

    Args:
        file_names: Names relative to the image folder, with "/".
        rule: "folder" for the folder of an image, or a regular expression that is searched in its name. Its first group
            is the name of the image's group, or the whole match without a group.

    Raises:
        ValueError: If the rule is not a regular expression.
        DatasetError: If an image does not match it.
    """
    if rule == FOLDER:
        return [str(PurePosixPath(name).parent) for name in file_names]
    try:
        pattern = re.compile(rule)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"a group must be {FOLDER!r} or a regular expression, got {rule!r}: {error}") from None
    matches = [pattern.search(name) for name in file_names]
    missing = [name for name, match in zip(file_names, matches, strict=True) if match is None]
    if missing:
        raise DatasetError(str(Problem(f"images whose name has no match of the group {rule!r}", missing)))
    return [match[1] or "" if pattern.groups else match[0] for match in matches]


def join_groups(count: int, links: Iterable[tuple[int, int]]) -> NDArray[np.int64]:
    """Return the group of each of `count` images, such that linked images, also over others, share one."""
    pairs = np.array([*links], dtype=np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(pairs), dtype=np.int8), pairs.T), shape=(count, count))
    return connected_components(graph, directed=False)[1]


def links_of(names: Sequence[str]) -> list[tuple[int, int]]:
    """Return links between each two consecutive images with the same name of a group."""
    last: dict[str, int] = {}
    links = []
    for index, name in enumerate(names):
        if name in last:
            links.append((last[name], index))
        last[name] = index
    return links


def stratify(
    groups: NDArray[np.int64], has_class: NDArray[np.bool_], fractions: Sequence[float], seed: int
) -> NDArray[np.int64]:
    """Return the split of each image; groups stay whole, and each class is divided by the fractions if possible.

    The order is that of iterative stratification (Sechidis et al., 2011): the class with the fewest images left comes
    first, with its largest groups. Each group goes to the split with the smallest chi-square statistic of its numbers
    of images, in total and of each class. A split without the class comes first if no other group may be left for it.

    Args:
        groups: Group of each image, `(images,)`.
        has_class: Whether an image has a class, `(images, classes)`.
        fractions: Fraction of each split.
        seed: Seed of the order of groups of the same size, and of the choice between splits that are equally good.
    """
    names, owner = np.unique(groups, return_inverse=True)
    columns = np.column_stack([has_class[:, has_class.any(0)], np.ones(len(groups), dtype=bool)])  # and all images
    counts = np.zeros((len(names), columns.shape[1]), dtype=np.int64)
    np.add.at(counts, owner, columns)
    wanted = np.outer(fractions, counts.sum(0))
    held = np.zeros_like(wanted)
    draw = random.Random(seed)
    order = draw.sample(range(len(names)), len(names))
    split_of = np.full(len(names), -1)
    while (split_of < 0).any():
        left = counts[split_of < 0, :-1].sum(0)
        column = int(np.where(left, left, len(groups) + 1).argmin()) if left.any() else -1
        waiting = [group for group in order if split_of[group] < 0 and counts[group, column]]
        waiting.sort(key=lambda group: -counts[group, column])
        for place, group in enumerate(waiting):
            candidates = range(len(fractions))
            # a split without any image, or without the class, while just enough groups are left for each such split
            for kind, left in ((column, len(waiting) - place), (-1, (split_of < 0).sum())):
                empty = np.flatnonzero(held[:, kind] == 0)
                candidates = empty if left <= len(empty) else candidates
            worse = (counts[group] * (2 * (held - wanted) + counts[group]) / wanted).sum(1)
            chosen = min(candidates, key=lambda split: (round(worse[split], 9), draw.random()))
            split_of[group] = chosen
            held[chosen] += counts[group]
    return split_of[owner]


def class_matrix(images: Sequence[Mapping[str, Any]], annotations: Iterable[Mapping[str, Any]]) -> NDArray[np.bool_]:
    """Return whether each image has each category that occurs, `(images, categories)`, in the order of their ids."""
    row = {image["id"]: index for index, image in enumerate(images)}
    pairs = {(row[annotation["image_id"]], annotation["category_id"]) for annotation in annotations}
    column = {key: index for index, key in enumerate(sorted({category for _, category in pairs}))}
    matrix = np.zeros((len(images), len(column)), dtype=bool)
    for image, category in pairs:
        matrix[image, column[category]] = True
    return matrix


def split_dataset(
    raw: Mapping[str, Any], fractions: Mapping[str, float], links: Iterable[tuple[int, int]], seed: int
) -> tuple[dict[str, dict[str, Any]], int]:
    """Split a COCO data set.

    Args:
        raw: COCO data set, whose images are in an order that does not depend on the file system.
        fractions: Fraction of each split by its name.
        links: Pairs of indices of images that must stay together.
        seed: See `stratify`.

    Returns:
        The COCO data set of each split, and the number of groups.

    Raises:
        DatasetError: If there are fewer groups than splits.
    """
    images = raw["images"]
    groups = join_groups(len(images), links)
    count = len({*groups.tolist()})
    if count < len(fractions):
        raise DatasetError(f"{len(fractions)} splits need at least {len(fractions)} groups of images, got {count}")
    split_of = stratify(groups, class_matrix(images, raw["annotations"]), [*fractions.values()], seed)
    where = {image["id"]: split for image, split in zip(images, split_of.tolist(), strict=True)}
    result = {
        name: {
            **raw,
            "images": [image for image in images if where[image["id"]] == index],
            "annotations": [each for each in raw["annotations"] if where[each["image_id"]] == index],
        }
        for index, name in enumerate(fractions)
    }
    return result, count
