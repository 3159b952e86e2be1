"""Images with the largest differences between two detectors, in both directions."""

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
    """An image on which one detector has more errors than the other.

    Attributes:
        image_id: image id in the annotation file.
        file_name: file name of the image.
        base: detections of the base by match type, see `classify_detections`, and missed objects.
        other: the same for the other detector.
        images: drawings of base and other, `(3, h, w)` uint8, see `draw_classified`.
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
        """Errors of the base minus errors of the other detector."""
        return count_errors(self.base) - count_errors(self.other)


def find_largest_differences(
    split: CocoAnnotations,
    base: Sequence[Mapping[str, Any]],
    other: Sequence[Mapping[str, Any]],
    count: int,
    *,
    score_threshold: float = SCORE_THRESHOLD,
) -> list[ImageDifference]:
    """Find and draw the images with the largest difference in the number of errors.

    If possible, one half are images where the other detector has fewer errors, one half where it has more. Each half
    is sorted by difference, then by image id. Errors are counted on boxes. Masks are drawn if a detector has them.

    Args:
        split: annotations; with masks if one of the detectors has masks.
        base: COCO results of the base.
        other: COCO results of the other detector.
        count: maximum number of images.
        score_threshold: detections with a lower score are ignored.
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
    """Return at most `count` image ids with the largest differences: first positive ones, then negative ones.

    If one direction has too few images, the other direction fills up. Images without a difference are skipped.
    """
    better = sorted((key for key, value in fewer.items() if value > 0), key=lambda key: (-fewer[key], key))
    worse = sorted((key for key, value in fewer.items() if value < 0), key=lambda key: (fewer[key], key))
    half = max(count // 2, count - len(better))
    kept = worse[:half]
    return better[: count - len(kept)] + kept


def count_errors(error_types: Counter[str]) -> int:
    """Count wrong classes, duplicates, false positives and missed objects."""
    return error_types.total() - error_types[TRUE_POSITIVE]


def by_image(
    split: CocoAnnotations, results: Iterable[Mapping[str, Any]], score_threshold: float = 0.0
) -> dict[int, list[Mapping[str, Any]]]:
    """Group COCO results of at least this score by image id; images without results have an empty list."""
    entries: dict[int, list[Mapping[str, Any]]] = {image_id: [] for image_id in split.arrays.image_ids.tolist()}
    for result in results:
        if result["score"] >= score_threshold:
            entries[result["image_id"]].append(result)
    return entries


def _tensors(split: CocoAnnotations, found: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Convert results of one image to `boxes` (xyxy), `labels` and `scores`."""
    label = {category_id: index for index, category_id in enumerate(split.category_ids, start=1)}
    boxes = torch.tensor([entry["bbox"] for entry in found], dtype=torch.float32).reshape(-1, 4)
    return {
        "boxes": box_convert(boxes, "xywh", "xyxy"),
        "labels": torch.tensor([label[entry["category_id"]] for entry in found], dtype=torch.int64),
        "scores": torch.tensor([entry["score"] for entry in found], dtype=torch.float32),
    }


def _masks(found: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> dict[str, Tensor]:
    """Return the `masks` of the results of one image of size (width, height), if they have masks."""
    if not has_masks(found):
        return {}
    return {"masks": torch.from_numpy(decode_masks([entry["segmentation"] for entry in found], size))}


def _count(detections: dict[str, Tensor], true_boxes: Tensor, true_labels: Tensor) -> Counter[str]:
    error_types = classify_detections(
        detections["boxes"], detections["labels"], detections["scores"], true_boxes, true_labels
    )
    return Counter(error_types.detections) + Counter({MISSED: len(error_types.missed)})
