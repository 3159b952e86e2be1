"""Classification of detections as true positive, wrong class, duplicate or false positive."""

from typing import NamedTuple

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
    iou = box_iou(boxes.float(), true_boxes.float())
    iou[iou < iou_threshold] = 0
    same_class = labels[:, None] == true_labels
    free = [True] * len(true_labels)
    types = [FALSE_POSITIVE] * len(labels)
    for index in scores.argsort(descending=True, stable=True).tolist():
        overlapping = [j for j in same_class[index].nonzero().flatten().tolist() if iou[index, j] > 0]
        candidates = [j for j in overlapping if free[j]]
        if candidates:
            free[max(candidates, key=lambda j: iou[index, j])] = False
            types[index] = TRUE_POSITIVE
        elif overlapping:
            types[index] = DUPLICATE
        elif iou[index].any():
            types[index] = WRONG_CLASS
    return ClassifiedDetections(types, [index for index, is_free in enumerate(free) if is_free])
