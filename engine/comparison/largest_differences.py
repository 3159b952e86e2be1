"""The images on which two detectors differ most, to both sides."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_convert

from data import CocoAnnotations, CocoDetection, decode_masks, eval_transform

from ..display import draw_ground_truth
from ..evaluation import MISSED, TRUE_POSITIVE, classify_detections, draw_classified, has_masks

SCORE_THRESHOLD = 0.5


class ImageDifference(NamedTuple):
    """An image on which one detector makes more mistakes than the other.

    Attributes:
        image_id: of the annotation file.
        file_name: of the picture.
        base: how often each error_type of `classify_detections` fell on a detection, and objects that were missed.
        other: the same of the other detector.
        images: `(3, h, w)` uint8 of the base and of the other, see `draw_classified`.
        ground_truth: `(3, h, w)` uint8, see `draw_ground_truth`.
    """

    image_id: int
    file_name: str
    base: Counter[str]
    other: Counter[str]
    images: tuple[Tensor, Tensor]
    ground_truth: Tensor

    @property
    def fewer_errors(self) -> int:
        """How many mistakes fewer the other makes than the base."""
        return count_errors(self.base) - count_errors(self.other)


def find_largest_differences(
    split: CocoAnnotations,
    base: Sequence[Mapping[str, Any]],
    other: Sequence[Mapping[str, Any]],
    count: int,
    *,
    score_threshold: float = SCORE_THRESHOLD,
) -> list[ImageDifference]:
    """Find and draw the images where the numbers of mistakes of two detectors differ most.

    Half of them are such where the other makes fewer mistakes, half where it makes more, as far as there are any;
    within each half the largest difference comes first, and among equals the smaller image id. What counts are boxes;
    masks are drawn too, of a detector that has them, and of the truth where one of the two has.

    Args:
        split: what is to be found; with masks if one of the detectors has them.
        base: COCO results of one detector.
        other: of the other.
        count: images to give at most.
        score_threshold: detections below do not count and are not drawn.
    """
    dataset = CocoDetection(split, eval_transform(), masks=any(has_masks(results) for results in (base, other)))
    sides = [by_image(split, results, score_threshold) for results in (base, other)]
    found = {}
    arrays = split.arrays
    for place, image_id in enumerate(arrays.image_ids.tolist()):
        truth = [torch.from_numpy(values[arrays.span(place)]) for values in (arrays.boxes, arrays.labels)]
        found[image_id] = [_count(_tensors(split, side[image_id]), *truth) for side in sides]
    chosen = choose_images({key: count_errors(one) - count_errors(two) for key, (one, two) in found.items()}, count)
    places = {image_id: place for place, image_id in enumerate(found)}
    shown = []
    for image_id in chosen:
        image, target = dataset[places[image_id]]
        size = image.shape[2], image.shape[1]
        drawn = [_tensors(split, side[image_id]) | _masks(side[image_id], size) for side in sides]
        one, two = (
            draw_classified(image, target, detections, split.class_names, score_threshold=score_threshold)
            for detections in drawn
        )
        name = arrays.file_name(places[image_id])
        truth = draw_ground_truth(image, target, split.class_names)
        shown.append(ImageDifference(image_id, name, *found[image_id], (one, two), truth))
    return shown


def choose_images(fewer: Mapping[int, int], count: int) -> list[int]:
    """Choose `count` image ids by how many mistakes fewer the other makes: first the best, then the worst.

    Where one side has less than its half, the other fills up; images without a difference are never chosen.
    """
    better = sorted((key for key, value in fewer.items() if value > 0), key=lambda key: (-fewer[key], key))
    worse = sorted((key for key, value in fewer.items() if value < 0), key=lambda key: (fewer[key], key))
    half = max(count // 2, count - len(better))
    kept = worse[:half]
    return better[: count - len(kept)] + kept


def count_errors(error_types: Counter[str]) -> int:
    """Count everything that is not right: wrong, double and needless detections, and missed objects."""
    return error_types.total() - error_types[TRUE_POSITIVE]


def by_image(
    split: CocoAnnotations, results: Iterable[Mapping[str, Any]], score_threshold: float = 0.0
) -> dict[int, list[Mapping[str, Any]]]:
    """Give each image of a split its COCO results with so high a score, also where it has none."""
    entries: dict[int, list[Mapping[str, Any]]] = {image_id: [] for image_id in split.arrays.image_ids.tolist()}
    for result in results:
        if result["score"] >= score_threshold:
            entries[result["image_id"]].append(result)
    return entries


def _tensors(split: CocoAnnotations, found: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Turn results of one image into `boxes` (xyxy), `labels` and `scores`."""
    label = {category_id: index for index, category_id in enumerate(split.category_ids, start=1)}
    boxes = torch.tensor([entry["bbox"] for entry in found], dtype=torch.float32).reshape(-1, 4)
    return {
        "boxes": box_convert(boxes, "xywh", "xyxy"),
        "labels": torch.tensor([label[entry["category_id"]] for entry in found], dtype=torch.int64),
        "scores": torch.tensor([entry["score"] for entry in found], dtype=torch.float32),
    }


def _masks(found: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> dict[str, Tensor]:
    """The `masks` of results of one image of (width, height), if they have any."""
    if not has_masks(found):
        return {}
    return {"masks": torch.from_numpy(decode_masks([entry["segmentation"] for entry in found], size))}


def _count(detections: dict[str, Tensor], true_boxes: Tensor, true_labels: Tensor) -> Counter[str]:
    error_types = classify_detections(
        detections["boxes"], detections["labels"], detections["scores"], true_boxes, true_labels
    )
    return Counter(error_types.detections) + Counter({MISSED: len(error_types.missed)})
