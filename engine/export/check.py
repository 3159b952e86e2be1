"""An exported program beside the detector it was made of."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from .batches import MASKS

# Pixels, scores and probabilities of masks by which the two may differ.
BOX_TOLERANCE, SCORE_TOLERANCE, MASK_TOLERANCE = 1e-2, 1e-4, 1e-3
# Within these, detections of one class are taken for the same.
_NEAR = {"boxes": 1.0, "scores": 1e-2, MASKS: 0.1}
# A detection at the edge of a threshold can fall on either side of it: at the most one in so many.
_ONE_IN = 100


class DetectionDifference(NamedTuple):
    """How far two sets of detections are apart.

    Attributes:
        detections: in the first set.
        unmatched: number of detections in either set without a match in the other.
        box: largest difference of a side of partners, in pixels.
        score: largest difference of scores of partners.
        mask: largest difference of probabilities in masks of partners; None without masks.
    """

    detections: int
    unmatched: int
    box: float
    score: float
    mask: float | None = None

    @property
    def is_small(self) -> bool:
        """Whether the two sets are the same within the tolerances, but for one detection in 100."""
        return (
            self.unmatched * _ONE_IN <= self.detections
            and self.box <= BOX_TOLERANCE
            and self.score <= SCORE_TOLERANCE
            and (self.mask is None or self.mask <= MASK_TOLERANCE)
        )


def compare_detections(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> DetectionDifference:
    """Compare two sets of detections in any order.

    Args:
        ours: `boxes` `(n, 4)`, `labels` `(n,)`, `scores` `(n,)` and, where there are any, `masks` `(n, h, w)`.
        theirs: the same of any number.
    """
    apart = {key: _distances(ours[key], theirs[key]) for key in _NEAR if key in ours}
    is_partner = ours["labels"][:, None] == theirs["labels"]
    for key, distances in apart.items():
        is_partner = is_partner & (distances <= _NEAR[key])
    # the closest pairs in all; those that are no partners cost more than all others together
    cost = sum(distances / _NEAR[key] for key, distances in apart.items())
    cost = torch.where(is_partner, cost, len(apart) * (1.0 + sum(cost.shape)))
    pairs = [(i, j) for i, j in zip(*linear_sum_assignment(cost.numpy()), strict=True) if is_partner[i, j]]
    largest = {key: max((distances[pair].item() for pair in pairs), default=0.0) for key, distances in apart.items()}
    unmatched = sum(cost.shape) - 2 * len(pairs)
    return DetectionDifference(len(cost), unmatched, largest["boxes"], largest["scores"], largest.get(MASKS))


def _distances(ours: Tensor, theirs: Tensor) -> Tensor:
    """Give the largest difference of each of n things of any shape from each of m, `(n, m)`."""
    ours, theirs = ours[:, None].flatten(1), theirs[:, None].flatten(1)
    found = ours.new_empty(len(ours), len(theirs))
    for i, own in enumerate(ours):  # all at once, masks would take a lot of memory
        found[i] = (own - theirs).abs().amax(1)
    return found


class CheckResult(NamedTuple):
    """One batch by both.

    Attributes:
        name: of the picture.
        size: height and width in pixels that the program was given.
        images: in the batch.
        difference: the largest over the images, and sums of the counts.
        detector_s: time of the detector, which resizes too, and pastes masks into the picture.
        program_s: time of the program.
    """

    name: str
    size: tuple[int, int]
    images: int
    difference: DetectionDifference
    detector_s: float
    program_s: float


@torch.inference_mode()
def check_program(
    model: nn.Module, run: Callable[[Tensor], dict[str, Tensor]], pictures: Sequence[tuple[str, Tensor]]
) -> list[CheckResult]:
    """Run a detector and the program made of it on pictures: on each alone, and on a batch of it and its mirror image.

    The detector gets the pictures as they are, the program what the detector's own resizing makes of them.

    Args:
        model: the detector, on the CPU and in eval mode.
        run: from images `(B, 3, H, W)` to what `graphs.output_names` lists.
        pictures: names and pictures, `(3, H, W)` in [0, 1].
    """
    rows = []
    for name, picture in pictures:
        for batch in ([picture], [picture, picture.flip(-1)]):
            start = time.perf_counter()
            expected = _detect(model, batch)
            detector_s = time.perf_counter() - start
            resized = torch.stack([model.transform.resize_unnormalized(image) for image in batch])
            start = time.perf_counter()
            found = run(resized)
            program_s = time.perf_counter() - start
            size = tuple(resized.shape[-2:])
            differences = [
                compare_detections(theirs, _of_image(found, i, model.transform, size, tuple(picture.shape[-2:])))
                for i, theirs in enumerate(expected)
            ]
            rows.append(CheckResult(name, size, len(batch), _together(differences), detector_s, program_s))
    return rows


def _detect(model: nn.Module, batch: list[Tensor]) -> list[dict[str, Tensor]]:
    """Detect, with the masks as the heads give them, `(n, 28, 28)`, in place of those in the pictures.

    Pasted ones could not be compared closely: their boxes are cut to whole pixels, so that the smallest difference of a
    box can move a mask by one.
    """
    heads = getattr(model, "roi_heads", None)
    if heads is None or not heads.has_mask():
        return model(batch)
    masks = []
    with heads.register_forward_hook(lambda _module, _inputs, output: masks.extend(one[MASKS] for one in output[0])):
        found = model(batch)
    return [one | {MASKS: own[:, 0]} for one, own in zip(found, masks, strict=True)]


def _of_image(
    found: dict[str, Tensor], index: int, transform: nn.Module, size: tuple[int, int], original: tuple[int, int]
) -> dict[str, Tensor]:
    count = int(found["num_detections"][index])
    boxes = transform.postprocess([{"boxes": found["boxes"][index, :count]}], [size], [original])[0]["boxes"]
    others = [key for key in ("labels", "scores", MASKS) if key in found]
    return {"boxes": boxes} | {key: found[key][index, :count] for key in others}


def _together(differences: Sequence[DetectionDifference]) -> DetectionDifference:
    detections, unmatched, box, score, masks = zip(*differences, strict=True)
    return DetectionDifference(
        sum(detections), sum(unmatched), max(box), max(score), None if None in masks else max(masks)
    )
