"""Non-maximum suppression (NMS) of a whole batch in one call, with an output shape independent of the data."""

import torch
from torch import Tensor
from torch.nn.functional import pad
from torchvision.ops import nms


def suppress(boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float) -> Tensor:
    """Return which candidates NMS keeps, separately for each class of each set.

    NMS runs once for all sets and classes: an offset per set and class moves the boxes apart. Offsets are float64,
    because float32 would lose fractions of a pixel with many classes.

    Args:
        boxes: `(S, N, 4)`, candidates of S sets, shared by the classes of a set.
        scores: `(S, C, N)`, score of each candidate for each of C classes.
        iou_threshold: IoU above which NMS removes the candidate with the lower score.
        score_threshold: candidates at or below this score are removed first.

    Returns:
        `(S, C, N)` bool.
    """
    sets, classes, candidates = torch.where(scores > score_threshold)
    apart = (boxes.amax() - boxes.amin()).double() + 1
    moved = boxes[sets, candidates].double() + ((sets * scores.shape[1] + classes) * apart)[:, None]
    # torchvision's fake kernel makes the exporter assume that nms keeps two boxes or more. These two boxes are outside
    # of all others, so nms always keeps them.
    outside = boxes.amin().double() - torch.tensor([[4.0, 4, 3, 3], [2, 2, 1, 1]], device=boxes.device)
    own_scores = scores[sets, classes, candidates].double()
    kept = nms(torch.cat([moved, outside]), pad(own_scores, (0, 2)), iou_threshold)
    kept = kept[kept < moved.shape[0]]
    keep = torch.zeros_like(scores, dtype=torch.bool)
    keep[sets[kept], classes[kept], candidates[kept]] = True
    return keep


# One operator, which an exporter can translate to the NMS of another format.
@torch.library.custom_op("resnet_dcn::suppress", mutates_args=())
def suppress_as_operator(boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float) -> Tensor:
    """`suppress` as the operator `torch.ops.resnet_dcn.suppress`."""
    return suppress(boxes, scores, iou_threshold, score_threshold)


@suppress_as_operator.register_fake
def _(boxes, scores, iou_threshold, score_threshold):
    return torch.empty_like(scores, dtype=torch.bool)
