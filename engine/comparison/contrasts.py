"""The images on which two detectors differ most, to both sides."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_convert

from data import CocoAnnotations, CocoDetection, eval_transform

from ..drawing import MISSED, draw_verdicts
from ..matching import RIGHT, judge_detections

SCORE_THRESHOLD = 0.5


class Contrast(NamedTuple):
    """An image on which one detector makes more mistakes than the other.

    Attributes:
        image_id: of the annotation file.
        file_name: of the picture.
        base: how often each verdict of `judge_detections` fell on a detection, and objects that were missed.
        other: the same of the other detector.
        pictures: `(3, h, w)` uint8 of the base and of the other, see `draw_verdicts`.
    """

    image_id: int
    file_name: str
    base: Counter[str]
    other: Counter[str]
    pictures: tuple[Tensor, Tensor]

    @property
    def fewer(self) -> int:
        """How many mistakes fewer the other makes than the base."""
        return mistakes(self.base) - mistakes(self.other)


def find_contrasts(
    split: CocoAnnotations,
    base: Iterable[Mapping[str, Any]],
    other: Iterable[Mapping[str, Any]],
    count: int,
    *,
    score_threshold: float = SCORE_THRESHOLD,
) -> list[Contrast]:
    """Find and draw the images where the numbers of mistakes of two detectors differ most.

    Half of them are such where the other makes fewer mistakes, half where it makes more, as far as there are any;
    within each half the largest difference comes first, and among equals the smaller image id.

    Args:
        split: what is to be found.
        base: COCO results of one detector.
        other: of the other.
        count: images to give at most.
        score_threshold: detections below do not count and are not drawn.
    """
    dataset = CocoDetection(split, eval_transform())
    sides = [by_image(split, results, score_threshold) for results in (base, other)]
    found = {}
    for entry in dataset.entries:
        truth = _truth(split, entry["id"])
        found[entry["id"]] = [_count(side[entry["id"]], truth) for side in sides]
    chosen = choose_images({key: mistakes(one) - mistakes(two) for key, (one, two) in found.items()}, count)
    place = {entry["id"]: index for index, entry in enumerate(dataset.entries)}
    contrasts = []
    for image_id in chosen:
        image, target = dataset[place[image_id]]
        pictures = [
            draw_verdicts(image, target, side[image_id], split.class_names, score_threshold=score_threshold)
            for side in sides
        ]
        name = dataset.entries[place[image_id]]["file_name"]
        contrasts.append(Contrast(image_id, name, *found[image_id], (pictures[0], pictures[1])))
    return contrasts


def choose_images(fewer: Mapping[int, int], count: int) -> list[int]:
    """Choose `count` image ids by how many mistakes fewer the other makes: first the best, then the worst.

    Where one side has less than its half, the other fills up; images without a difference are never chosen.
    """
    better = sorted((key for key, value in fewer.items() if value > 0), key=lambda key: (-fewer[key], key))
    worse = sorted((key for key, value in fewer.items() if value < 0), key=lambda key: (fewer[key], key))
    half = max(count // 2, count - len(better))
    kept = worse[:half]
    return better[: count - len(kept)] + kept


def mistakes(verdicts: Counter[str]) -> int:
    """Count everything that is not right: wrong, double and needless detections, and missed objects."""
    return verdicts.total() - verdicts[RIGHT]


def by_image(
    split: CocoAnnotations, results: Iterable[Mapping[str, Any]], score_threshold: float = 0.0
) -> dict[int, dict[str, Tensor]]:
    """Turn COCO results into `boxes` (xyxy), `labels` and `scores` for each image of a split, also those with none."""
    label = {category_id: index for index, category_id in enumerate(split.category_ids, start=1)}
    entries: dict[int, list[tuple]] = {entry["id"]: [] for entry in split.images}
    for result in results:
        if result["score"] >= score_threshold:
            entries[result["image_id"]].append((result["bbox"], label[result["category_id"]], result["score"]))
    return {image_id: _tensors(found) for image_id, found in entries.items()}


def _tensors(found: Sequence[tuple]) -> dict[str, Tensor]:
    boxes = torch.tensor([bbox for bbox, _, _ in found], dtype=torch.float32).reshape(-1, 4)
    return {
        "boxes": box_convert(boxes, "xywh", "xyxy"),
        "labels": torch.tensor([label for _, label, _ in found], dtype=torch.int64),
        "scores": torch.tensor([score for _, _, score in found], dtype=torch.float32),
    }


def _truth(split: CocoAnnotations, image_id: int) -> dict[str, Tensor]:
    label = {category_id: index for index, category_id in enumerate(split.category_ids, start=1)}
    return _tensors([(entry["bbox"], label[entry["category_id"]], 1.0) for entry in split.boxes[image_id]])


def _count(detections: dict[str, Tensor], truth: dict[str, Tensor]) -> Counter[str]:
    verdicts = judge_detections(
        detections["boxes"], detections["labels"], detections["scores"], truth["boxes"], truth["labels"]
    )
    return Counter(verdicts.detections) + Counter({MISSED: len(verdicts.missed)})
