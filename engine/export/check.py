"""Comparison of an exported program with its detector."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from .batches import MASKS

# Maximum difference in pixels, scores and mask probabilities.
BOX_TOLERANCE, SCORE_TOLERANCE, MASK_TOLERANCE = 1e-2, 1e-4, 1e-3
# Detections of one class within these differences can be matched.
_NEAR = {"boxes": 1.0, "scores": 1e-2, MASKS: 0.1}
# Scores at a threshold can fall on either side: at most one detection in 100 may be unmatched.
_ONE_IN = 100


class DetectionDifference(NamedTuple):
    """Difference between two sets of detections.

    Attributes:
        detections: number of detections in the first set.
        unmatched: number of detections in either set without a match in the other.
        box: largest difference of box coordinates of matched detections, in pixels.
        score: largest difference of scores of matched detections.
        mask: largest difference of mask probabilities of matched detections; None without masks.
    """

    detections: int
    unmatched: int
    box: float
    score: float
    mask: float | None = None

    @property
    def is_small(self) -> bool:
        """Whether the sets agree within the tolerances, except for one unmatched detection in 100."""
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
    # assignment with the smallest total cost; a forbidden pair costs more than all allowed pairs together
    cost = sum(distances / _NEAR[key] for key, distances in apart.items())
    cost = torch.where(is_partner, cost, len(apart) * (1.0 + sum(cost.shape)))
    pairs = [(i, j) for i, j in zip(*linear_sum_assignment(cost.numpy()), strict=True) if is_partner[i, j]]
    largest = {key: max((distances[pair].item() for pair in pairs), default=0.0) for key, distances in apart.items()}
    unmatched = sum(cost.shape) - 2 * len(pairs)
    return DetectionDifference(len(cost), unmatched, largest["boxes"], largest["scores"], largest.get(MASKS))


def _distances(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return the largest absolute difference of each of n items to each of m, `(n, m)`, for items of any shape."""
    ours, theirs = ours[:, None].flatten(1), theirs[:, None].flatten(1)
    found = ours.new_empty(len(ours), len(theirs))
    for i, own in enumerate(ours):  # one at a time: all pairs of masks would need much memory
        found[i] = (own - theirs).abs().amax(1)
    return found


class CheckResult(NamedTuple):
    """Result of one batch.

    Attributes:
        name: name of the image.
        size: height and width of the program's input, in pixels.
        images: batch size.
        difference: largest differences over the images, and sums of the counts.
        detector_s: seconds of the detector, including resizing and pasting of masks.
        program_s: seconds of the program.
    """

    name: str
    size: tuple[int, int]
    images: int
    difference: DetectionDifference
    detector_s: float
    program_s: float


@torch.inference_mode()
def check_program(
    model: nn.Module, run: Callable[[Tensor], dict[str, Tensor]], images: Sequence[tuple[str, Tensor]]
) -> list[CheckResult]:
    """Compare a detector and its exported program, on each image alone and on a batch with its horizontal flip.

    The detector gets the original images, the program gets images resized by the detector's transform.

    Args:
        model: detector on the CPU, in eval mode.
        run: program, from images `(B, 3, H, W)` to the outputs of `graphs.output_names`.
        images: names and images, `(channels, H, W)` in [0, 1].
    """
    rows = []
    for name, original in images:
        for batch in ([original], [original, original.flip(-1)]):
            start = time.perf_counter()
            expected = _detect(model, batch)
            detector_s = time.perf_counter() - start
            resized = torch.stack([model.transform.resize_unnormalized(image) for image in batch])
            start = time.perf_counter()
            found = run(resized)
            program_s = time.perf_counter() - start
            size = tuple(resized.shape[-2:])
            differences = [
                compare_detections(theirs, _of_image(found, i, model.transform, size, tuple(original.shape[-2:])))
                for i, theirs in enumerate(expected)
            ]
            rows.append(CheckResult(name, size, len(batch), _combine(differences), detector_s, program_s))
    return rows


def _detect(model: nn.Module, batch: list[Tensor]) -> list[dict[str, Tensor]]:
    """Detect, and return the masks of the heads, `(n, 28, 28)`, instead of masks pasted into the images.

    Pasted masks are not comparable: boxes are rounded to whole pixels, so a small difference moves a mask by a pixel.
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


def _combine(differences: Sequence[DetectionDifference]) -> DetectionDifference:
    detections, unmatched, box, score, masks = zip(*differences, strict=True)
    return DetectionDifference(
        sum(detections), sum(unmatched), max(box), max(score), None if None in masks else max(masks)
    )
