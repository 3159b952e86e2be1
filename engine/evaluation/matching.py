"""Classification of detections as true positive, wrong class, duplicate or false positive."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import box_iou

TRUE_POSITIVE, WRONG_CLASS, DUPLICATE, FALSE_POSITIVE = "true_positive", "wrong_class", "duplicate", "false_positive"
MATCH_TYPES = (TRUE_POSITIVE, WRONG_CLASS, DUPLICATE, FALSE_POSITIVE)


class ClassifiedDetections(NamedTuple):
    """Match types of the detections of one image.

    Attributes:
        detections: one of `MATCH_TYPES` per detection, in the order of the detections.
        missed: indices of the ground-truth boxes without a true positive.
    """

    detections: list[str]
    missed: list[int]


def classify_detections(
    boxes: Tensor,
    labels: Tensor,
    scores: Tensor,
    true_boxes: Tensor,
    true_labels: Tensor,
    *,
    iou_threshold: float = 0.5,
) -> ClassifiedDetections:
    """Match detections to ground truth as COCO does: in order of descending score, each box at most once.

    The type of a detection is the first of these that applies (TIDE, https://arxiv.org/abs/2008.08115):

    - "true_positive": a ground-truth box of its class with sufficient IoU is unmatched. The box with the highest IoU is
      matched.
    - "duplicate": a ground-truth box of its class with sufficient IoU is already matched.
    - "wrong_class": a ground-truth box of another class has sufficient IoU.
    - "false_positive": no ground-truth box has sufficient IoU.

    Args:
        boxes: `(n, 4)` xyxy pixels.
        labels: `(n,)`.
        scores: `(n,)`.
        true_boxes: `(m, 4)` ground-truth boxes, xyxy pixels.
        true_labels: `(m,)` labels of the ground truth.
        iou_threshold: minimum IoU, in (0, 1].
    """
    order = scores.argsort(descending=True, stable=True)
    iou = box_iou(boxes[order].float(), true_boxes.float()).cpu().numpy()
    same_class = (labels[order][:, None] == true_labels).cpu().numpy()
    matched = match_greedily(iou * same_class, iou_threshold)
    overlapping = iou >= iou_threshold
    types = np.select(
        [matched >= 0, (overlapping & same_class).any(axis=1), overlapping.any(axis=1)],
        [TRUE_POSITIVE, DUPLICATE, WRONG_CLASS],
        FALSE_POSITIVE,
    )
    free = sorted({*range(len(true_labels))} - {*matched.tolist()})
    return ClassifiedDetections(types[order.argsort().cpu().numpy()].tolist(), free)


def match_greedily(iou: NDArray[np.floating], threshold: float) -> NDArray[np.int64]:
    """Match detections to objects: the best detection chooses first, and each object is matched at most once.

    Args:
        iou: `(n, m)` IoU of detections, best first, and objects; 0 where they have different classes.
        threshold: minimum IoU, in (0, 1].

    Returns:
        `(n,)` index of the matched object, the free one with the highest IoU; -1 for none.
    """
    matched = np.full(len(iou), -1)
    free = iou.copy()
    for row in np.flatnonzero((iou >= threshold).any(axis=1)):
        column = free[row].argmax()
        if free[row, column] >= threshold:
            matched[row] = column
            free[:, column] = 0
    return matched
