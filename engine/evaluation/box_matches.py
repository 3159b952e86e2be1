"""Detected boxes, matched with ground truth at one IoU, class by class as COCO does."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from data import declared_size

from .coco_eval import class_keys
from .metrics import MAX_DETECTIONS
from .overlap import result_shapes
from .tide import BACKGROUND_IOU, MATCH_IOU, places


class BoxMatches(NamedTuple):
    """Detections and objects of a data set. Crowd regions are not objects.

    Attributes:
        class_names: class names of `per_class` in `coco_metrics`.
        image_ids: image ids.
        images: `(D,)` image of each detection, an index of `image_ids`. Detections are sorted by image, then by
            descending score.
        classes: `(D,)` class of each detection, an index of `class_names`.
        scores: `(D,)`.
        partners: `(D,)` index of the object of its class that a detection matches, -1 for none.
        ignored: `(D,)` whether a detection matches a crowd region of its class; it is neither correct nor wrong.
        true_images: `(G,)` image of each object.
        true_classes: `(G,)` class of each object.
        empty_images: indices of the images without objects and crowd regions.
        pairs: `(P, 2)` detections and objects of the same image and of any class, with at least `BACKGROUND_IOU`.
        ious: `(P,)` IoU of each pair.
    """

    class_names: list[str]
    image_ids: list[int]
    images: NDArray[np.intp]
    classes: NDArray[np.intp]
    scores: NDArray[np.float64]
    partners: NDArray[np.intp]
    ignored: NDArray[np.bool_]
    true_images: NDArray[np.intp]
    true_classes: NDArray[np.intp]
    empty_images: NDArray[np.intp]
    pairs: NDArray[np.intp]
    ious: NDArray[np.float64]

    @property
    def objects(self) -> NDArray[np.intp]:
        """Number of objects of each class, `(C,)`."""
        return np.bincount(self.true_classes, minlength=len(self.class_names))


def match_boxes(
    ground_truth: dict[str, Any], results: Sequence[dict[str, Any]], *, max_detections: int = MAX_DETECTIONS
) -> BoxMatches:
    """Match detections to objects at `MATCH_IOU`, equal to pycocotools for objects of all sizes.

    In order of descending score, a detection takes the free object of its class with the highest IoU. So the matches
    above any score are those of the detections above this score alone.

    Args:
        ground_truth: loaded COCO instances file.
        results: COCO results, see `check_results`. Results without `bbox` have the boxes around their masks.
        max_detections: number of detections of a class that are counted in an image.
    """
    image_ids = [entry["id"] for entry in ground_truth["images"]]
    category_ids = sorted(entry["id"] for entry in ground_truth["categories"])
    sizes = {entry["id"]: declared_size(entry) for entry in ground_truth["images"]}
    annotations = ground_truth["annotations"]
    found = _Boxes(*places(ground_truth, results), _boxes(result_shapes(results, sizes, "bbox")))
    true = _Boxes(*places(ground_truth, annotations), _boxes([entry["bbox"] for entry in annotations]))
    scores = np.array([entry["score"] for entry in results], dtype=float)
    order = np.lexsort((-scores, found.images))
    ranks = _ranks(found.images[order] * len(category_ids) + found.classes[order])
    order = order[ranks < max_detections]
    found, scores = _Boxes(*(values[order] for values in found)), scores[order]
    order = np.argsort(true.images, kind="stable")
    crowd = np.array([bool(entry.get("iscrowd")) for entry in annotations], dtype=bool)[order]
    true = _Boxes(*(values[order] for values in true))

    pairs, ious = _overlaps(found, true, crowd)
    partners = _match(found, true, crowd, pairs, ious)
    objects = np.append(np.where(crowd, -1, np.cumsum(~crowd) - 1), -1)  # crowd regions, and the partner -1, are none
    of_objects = ~crowd[pairs[:, 1]]
    return BoxMatches(
        class_names=class_keys(ground_truth, category_ids),
        image_ids=image_ids,
        images=found.images,
        classes=found.classes,
        scores=scores,
        partners=objects[partners],
        ignored=np.append(crowd, False)[partners],
        true_images=true.images[~crowd],
        true_classes=true.classes[~crowd],
        empty_images=np.setdiff1d(np.arange(len(image_ids)), true.images),
        pairs=np.stack([pairs[of_objects, 0], objects[pairs[of_objects, 1]]], axis=1),
        ious=ious[of_objects],
    )


class _Boxes(NamedTuple):
    """Indices of class and image, and boxes `(n, 4)` as x, y, width, height."""

    classes: NDArray[np.intp]
    images: NDArray[np.intp]
    boxes: NDArray[np.float64]


def _boxes(boxes: list) -> NDArray[np.float64]:
    return np.array(boxes, dtype=float).reshape(-1, 4)


def _ranks(groups: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return the number of earlier elements of the same group for each element."""
    order = np.argsort(groups, kind="stable")
    _, first, sizes = np.unique(groups[order], return_index=True, return_counts=True)
    ranks = np.empty_like(order)
    ranks[order] = np.arange(len(groups)) - np.repeat(first, sizes)
    return ranks


def _overlaps(found: _Boxes, true: _Boxes, crowd: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return the pairs `(P, 2)` with an IoU of at least `BACKGROUND_IOU`, and their IoU, which pycocotools defines."""
    pairs, ious = [np.empty((0, 2), dtype=np.intp)], [np.empty(0)]
    for image in np.intersect1d(found.images, true.images):
        (start, end), (first, last) = (np.searchsorted(part.images, [image, image + 1]) for part in (found, true))
        iou = coco_mask.iou(found.boxes[start:end], true.boxes[first:last], crowd[first:last])
        near = np.argwhere(iou >= BACKGROUND_IOU)
        pairs.append(near + np.array([start, first]))
        ious.append(iou[near[:, 0], near[:, 1]])
    return np.concatenate(pairs), np.concatenate(ious)


def _match(
    found: _Boxes,
    true: _Boxes,
    crowd: NDArray[np.bool_],
    pairs: NDArray[np.intp],
    ious: NDArray[np.float64],
) -> NDArray[np.intp]:
    """Return the annotation that each detection matches, -1 for none."""
    fits = (ious >= MATCH_IOU) & (found.classes[pairs[:, 0]] == true.classes[pairs[:, 1]])
    pairs, ious = pairs[fits], ious[fits]
    detections, annotations = pairs.T
    # objects before crowd regions, then descending IoU; among equal ones pycocotools takes the last
    order = np.lexsort((-annotations, -ious, crowd[annotations], detections))
    partners, is_crowd = [-1] * len(found.images), crowd.tolist()
    taken = [False] * len(is_crowd)
    for detection, annotation in pairs[order].tolist():
        if partners[detection] < 0 and not taken[annotation]:
            partners[detection] = annotation
            taken[annotation] = not is_crowd[annotation]  # a crowd region has any number of detections
    return np.array(partners, dtype=np.intp)
