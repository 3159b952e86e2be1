"""An exported program beside the detector it was made of."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torchvision.models.detection.transform import resize_boxes

# Pixels and scores by which the two may differ.
BOX_TOLERANCE, SCORE_TOLERANCE = 1e-2, 1e-4
# Within these, detections of one class are taken for the same.
_NEAR_PIXELS, _NEAR_SCORE = 1.0, 1e-2
# A detection at the edge of a threshold can fall on either side of it: at the most one in so many.
_ONE_IN = 100


class Difference(NamedTuple):
    """How far two sets of detections are apart.

    Attributes:
        detections: in the first set.
        alone: detections of either set without a partner in the other, of the same class and in nearly the same place.
        box: largest difference of a side of partners, in pixels.
        score: largest difference of scores of partners.
    """

    detections: int
    alone: int
    box: float
    score: float

    @property
    def is_small(self) -> bool:
        """Whether the two sets are the same within the tolerances, but for one detection in 100."""
        return self.box <= BOX_TOLERANCE and self.score <= SCORE_TOLERANCE and self.alone * _ONE_IN <= self.detections


def compare(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> Difference:
    """Compare two sets of detections, `boxes` `(n, 4)`, `labels` `(n,)` and `scores` `(n,)` each, in any order."""
    boxes = (ours["boxes"][:, None] - theirs["boxes"]).abs().amax(-1) if len(theirs["boxes"]) else torch.zeros(0, 0)
    scores = (ours["scores"][:, None] - theirs["scores"]).abs()
    is_partner = (ours["labels"][:, None] == theirs["labels"]) & (scores <= _NEAR_SCORE)
    is_partner = is_partner & (boxes <= _NEAR_PIXELS) if boxes.numel() else is_partner
    if not is_partner.numel():
        return Difference(len(scores), sum(scores.shape), 0.0, 0.0)
    # the closest pairs in all; those that are no partners cost more than all others together
    cost = torch.where(is_partner, boxes / _NEAR_PIXELS + scores / _NEAR_SCORE, 2.0 * (1 + sum(scores.shape)))
    pairs = [(i, j) for i, j in zip(*linear_sum_assignment(cost.numpy()), strict=True) if is_partner[i, j]]
    return Difference(
        len(scores),
        sum(scores.shape) - 2 * len(pairs),
        max((boxes[pair].item() for pair in pairs), default=0.0),
        max((scores[pair].item() for pair in pairs), default=0.0),
    )


class Row(NamedTuple):
    """One batch by both.

    Attributes:
        name: of the picture.
        size: height and width in pixels that the program was given.
        images: in the batch.
        difference: the largest over the images, and sums of the counts.
        detector_s: time of the detector, which resizes too.
        program_s: time of the program.
    """

    name: str
    size: tuple[int, int]
    images: int
    difference: Difference
    detector_s: float
    program_s: float


@torch.inference_mode()
def run_beside(
    model: nn.Module, run: Callable[[Tensor], dict[str, Tensor]], pictures: Sequence[tuple[str, Tensor]]
) -> list[Row]:
    """Run a detector and the program made of it on pictures: on each alone, and on a batch of it and its mirror image.

    The detector gets the pictures as they are, the program what the detector's own resizing makes of them.

    Args:
        model: the detector, on the CPU and in eval mode.
        run: from images `(B, 3, H, W)` to what `batches.OUTPUTS` lists.
        pictures: names and pictures, `(3, H, W)` in [0, 1].
    """
    rows = []
    for name, picture in pictures:
        for batch in ([picture], [picture, picture.flip(-1)]):
            start = time.perf_counter()
            expected = model(batch)
            detector_s = time.perf_counter() - start
            resized = torch.stack([model.transform.resize(image)[0] for image in batch])
            start = time.perf_counter()
            found = run(resized)
            program_s = time.perf_counter() - start
            size = tuple(resized.shape[-2:])
            differences = [
                compare(theirs, _of_image(found, i, size, tuple(picture.shape[-2:])))
                for i, theirs in enumerate(expected)
            ]
            rows.append(Row(name, size, len(batch), _together(differences), detector_s, program_s))
    return rows


def _of_image(
    found: dict[str, Tensor], index: int, size: tuple[int, int], original: tuple[int, int]
) -> dict[str, Tensor]:
    count = int(found["num_detections"][index])
    boxes = resize_boxes(found["boxes"][index, :count], list(size), list(original))
    return {"boxes": boxes, "labels": found["labels"][index, :count], "scores": found["scores"][index, :count]}


def _together(differences: Sequence[Difference]) -> Difference:
    detections, alone, box, score = zip(*differences, strict=True)
    return Difference(sum(detections), sum(alone), max(box), max(score))
