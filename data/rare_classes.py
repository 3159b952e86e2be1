"""Repeat-factor sampling and class weights: more training on classes that few images or boxes have."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from .arrays import AnnotationArrays

# Error of the sum of factors whose sum is a whole number.
_ROUNDING = 1e-6
# The effective number of boxes is at most 1 / (1 - _BETA).
_BETA = 0.999


class ClassCounts(NamedTuple):
    """How much of the training data each class has.

    Attributes:
        images: `(num_classes,)` int64, images with a box of the class.
        boxes: `(num_classes,)` int64, boxes of the class.
    """

    images: NDArray[np.int64]
    boxes: NDArray[np.int64]


def count_classes(arrays: AnnotationArrays, num_classes: int) -> ClassCounts:
    """Count the images and the boxes of each class.

    Args:
        arrays: All images of a split.
        num_classes: Number of classes; class c has label c + 1.
    """
    owners = np.repeat(np.arange(len(arrays)), arrays.counts)
    classes = arrays.labels - 1
    pairs = np.unique(owners * num_classes + classes)
    return ClassCounts(*(np.bincount(each, minlength=num_classes) for each in (pairs % num_classes, classes)))


def class_repeat_factors(image_counts: NDArray[np.int64], num_images: int, threshold: float) -> NDArray[np.float64]:
    """Return the repeat factor of each class, `max(1, sqrt(threshold / f))`, https://arxiv.org/abs/1908.03195.

    Args:
        image_counts: Number of images with each class, `(num_classes,)`. A class without images has the factor 1.
        num_images: Number of images; f is the fraction of them that contain a class.
        threshold: Fraction of images below which classes are repeated.
    """
    return np.maximum(1.0, np.sqrt(threshold * num_images / np.where(image_counts, image_counts, np.inf)))


def image_repeat_factors(
    arrays: AnnotationArrays, images: Sequence[int], class_factors: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the repeat factor of each image: the largest factor of its classes, 1 without boxes.

    Args:
        arrays: All images of a split.
        images: Indices of the images.
        class_factors: Factor of each class, `(num_classes,)`.
    """
    factors = np.ones(len(arrays))
    np.maximum.at(factors, np.repeat(np.arange(len(arrays)), arrays.counts), class_factors[arrays.labels - 1])
    return factors[images]


def balanced_weights(box_counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return a weight of each class by its effective number of boxes, https://arxiv.org/abs/1901.05555.

    The weight of n boxes is proportional to (1 - b) / (1 - b^n) with b = 0.999: to 1/n for few boxes, and constant for
    some thousand. The mean over the classes with boxes is 1; classes without boxes have 1.

    Args:
        box_counts: Number of boxes of each class, `(num_classes,)`.
    """
    weights = np.ones(len(box_counts))
    has_boxes = box_counts > 0
    inverse = 1 / (1 - _BETA ** box_counts[has_boxes].astype(np.float64))
    weights[has_boxes] = inverse / inverse.mean() if len(inverse) else 1
    return weights


def with_whole_sum(factors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return repeat factors `(n,)` scaled up so that their sum is the next whole number."""
    total = factors.sum()
    return factors * (np.ceil(total - _ROUNDING) / total) if len(factors) else factors


def draw_counts(factors: NDArray[np.float64], generator: torch.Generator) -> NDArray[np.int64]:
    """Draw how often each image is used: its factor rounded up or down, and on average its factor.

    Systematic sampling: the factors are lengths on a line in random order, and each image gets the marks that fall on
    its length, which have a distance of 1. The sum of the counts is then the same for each position of the first mark.

    Args:
        factors: Repeat factors `(n,)` of at least 1 with a whole sum, see `with_whole_sum`.
        generator: Source of the order and of the position of the first mark.
    """
    counts = np.zeros(len(factors), dtype=np.int64)
    if len(factors):
        order = torch.randperm(len(factors), generator=generator).numpy()
        ends = np.cumsum(factors[order])
        marks = np.floor(ends + torch.rand((), generator=generator, dtype=torch.float64).item())
        marks[-1] = round(ends[-1])  # which rounding errors of the sum could move
        counts[order] = np.diff(marks, prepend=0)
    return counts
