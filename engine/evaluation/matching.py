"""What becomes of each detection of an image: right, or wrong in which way."""

from typing import NamedTuple

from torch import Tensor
from torchvision.ops import box_iou

TRUE_POSITIVE, WRONG_CLASS, DUPLICATE, FALSE_POSITIVE = "true_positive", "wrong_class", "duplicate", "false_positive"
MATCH_TYPES = (TRUE_POSITIVE, WRONG_CLASS, DUPLICATE, FALSE_POSITIVE)


class ClassifiedDetections(NamedTuple):
    """How the detections of one image compare with its true boxes.

    Attributes:
        detections: one of `MATCH_TYPES` for each detection, in the order they were given.
        missed: indices of the true boxes that no detection of their class found.
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
    """Match detections to true boxes as COCO does: the best score chooses first, each true box is found once.

    A detection is "true_positive" if a free true box of its class overlaps it by `iou_threshold` or more; it takes
    the one that overlaps most. Else it is a "duplicate" if such a box is taken, of the "wrong_class" if a true box of
    another class overlaps it so much, and "false_positive" if none does.

    Args:
        boxes: `(n, 4)` xyxy pixels.
        labels: `(n,)`.
        scores: `(n,)`.
        true_boxes: `(m, 4)` xyxy pixels.
        true_labels: `(m,)`.
        iou_threshold: overlap, in (0, 1], from which on a detection is about an object.
    """
    enough = box_iou(boxes.float(), true_boxes.float())
    enough[enough < iou_threshold] = 0
    same = labels[:, None] == true_labels
    free = [True] * len(true_labels)
    error_types = [FALSE_POSITIVE] * len(labels)
    for index in scores.argsort(descending=True, stable=True).tolist():
        mine = [j for j in same[index].nonzero().flatten().tolist() if enough[index, j] > 0]
        candidates = [j for j in mine if free[j]]
        if candidates:
            free[max(candidates, key=lambda j: enough[index, j])] = False
            error_types[index] = TRUE_POSITIVE
        elif mine:
            error_types[index] = DUPLICATE
        elif enough[index].any():
            error_types[index] = WRONG_CLASS
    return ClassifiedDetections(error_types, [index for index, is_free in enumerate(free) if is_free])
