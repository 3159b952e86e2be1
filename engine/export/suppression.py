"""Non-maximum suppression of a whole batch at once, with an output whose shape does not depend on the numbers."""

import torch
from torch import Tensor
from torch.nn.functional import pad
from torchvision.ops import nms


def suppress(boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float) -> Tensor:
    """Say which candidates are kept when each class of each set is suppressed by itself.

    Every class of every set is moved to a place of its own, so that one call serves all. This is done in float64, where
    it changes no overlap: in float32 the places of many classes are too far out for tenths of a pixel.

    Args:
        boxes: `(S, N, 4)`, the candidates of S sets; the classes of a set share them.
        scores: `(S, C, N)`, of each candidate in each of C classes.
        iou_threshold: IoU above which the lower of two candidates of a class is dropped.
        score_threshold: candidates at or below it take no part, and are not kept.

    Returns:
        `(S, C, N)` bool.
    """
    sets, classes, candidates = torch.where(scores > score_threshold)
    apart = (boxes.amax() - boxes.amin()).double() + 1
    moved = boxes[sets, candidates].double() + ((sets * scores.shape[1] + classes) * apart)[:, None]
    # An exported program may only run where nms keeps two or more, as torchvision tells the exporter. These two lie
    # outside of everything, and are always kept.
    outside = boxes.amin().double() - torch.tensor([[4.0, 4, 3, 3], [2, 2, 1, 1]], device=boxes.device)
    own_scores = scores[sets, classes, candidates].double()
    kept = nms(torch.cat([moved, outside]), pad(own_scores, (0, 2)), iou_threshold)
    kept = kept[kept < moved.shape[0]]
    keep = torch.zeros_like(scores, dtype=torch.bool)
    keep[sets[kept], classes[kept], candidates[kept]] = True
    return keep


# One operator, in whose place an exporter can put that of another format.
@torch.library.custom_op("resnet_dcn::suppress", mutates_args=())
def suppress_as_operator(boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float) -> Tensor:
    """`suppress`, which an exported program has as `torch.ops.resnet_dcn.suppress`."""
    return suppress(boxes, scores, iou_threshold, score_threshold)


@suppress_as_operator.register_fake
def _(boxes, scores, iou_threshold, score_threshold):
    return torch.empty_like(scores, dtype=torch.bool)
