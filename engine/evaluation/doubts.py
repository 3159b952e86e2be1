"""Signs that COCO results do not mean what evaluation reads: another box format, copies, or unused detections."""

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import groupby
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_convert, box_iou

from data import declared_size
from data.shown import shown

from ..display import counted

_LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "(x, y, width, height)": lambda boxes: box_convert(boxes, "xywh", "xyxy"),
    "(x1, y1, x2, y2)": lambda boxes: boxes,
    "(center x, center y, width, height)": lambda boxes: box_convert(boxes, "cxcywh", "xyxy"),
    "(y, x, height, width)": lambda boxes: box_convert(boxes[:, [1, 0, 3, 2]], "xywh", "xyxy"),
    "(y1, x1, y2, x2)": lambda boxes: boxes[:, [1, 0, 3, 2]],
}
_UNITS = {"pixels": None, "fractions of the image size": 1.0, "percent of the image size": 100.0}
_EXPECTED = next(iter(_LAYOUTS)), next(iter(_UNITS))
# Number of images whose boxes are compared with the ground truth.
_MOST_IMAGES = 200
# Another format is reported if the mean IoU is at least this, and larger by at least the second value.
_LEAST_IOU, _LEAST_GAIN = 0.5, 0.3
_MATCH_IOU = 0.5
_LEAST_MATCHES, _WRONG_CLASS_SHARE = 5, 0.8


def result_doubts(ground_truth: dict[str, Any], results: list[dict[str, Any]], max_detections: int) -> list[str]:
    """Return the doubts about checked COCO results, one sentence for each kind.

    Args:
        ground_truth: loaded COCO instances file.
        results: results of `check_results`.
        max_detections: number of detections of a class that evaluation counts in an image.
    """
    return [*_doubtful_entries(ground_truth, results), *_uncounted(results, max_detections)] + (
        [] if any(not entry.get("bbox") for entry in results) else [*_other_conventions(ground_truth, results)]
    )


def _doubtful_entries(ground_truth: dict[str, Any], results: list[dict[str, Any]]) -> Iterator[str]:
    sizes = {entry["id"]: declared_size(entry) for entry in ground_truth["images"]}
    empty, outside, scores, copies = [], [], [], []
    seen = set()
    for index, entry in enumerate(results):
        bbox, score = entry.get("bbox"), entry["score"]
        if bbox and min(bbox[2:]) == 0:
            empty.append(f"detection {index}: bbox {shown(bbox)}")
        elif bbox and (size := sizes[entry["image_id"]]) and _is_outside(bbox, size):
            outside.append(f"detection {index}: bbox {shown(bbox)} in image {entry['image_id']} of {size[0]}x{size[1]}")
        if not 0 <= score <= 1:
            scores.append(f"detection {index}: score {shown(score)}")
        key = (entry["image_id"], entry["category_id"], *(bbox or ()), score, str(entry.get("segmentation")))
        if key in seen:
            copies.append(f"detection {index}")
        seen.add(key)
    for found, what in (
        (empty, "have a bbox of width or height 0, which matches no object"),
        (outside, "are outside of their image"),
        (scores, "have a score outside of 0 to 1; AP uses only the order of the scores"),
        (copies, "are exact copies of earlier detections; evaluation counts each copy as a false positive"),
    ):
        if found:
            yield f"{len(found)} of {counted(len(results), 'detection')} {what}; the first: {found[0]}"


def _is_outside(bbox: list[float], size: tuple[int, int]) -> bool:
    x, y, w, h = bbox
    return x >= size[0] or y >= size[1] or x + w <= 0 or y + h <= 0


def _uncounted(results: list[dict[str, Any]], max_detections: int) -> Iterator[str]:
    per_class = Counter((entry["image_id"], entry["category_id"]) for entry in results)
    images = {image for (image, _), count in per_class.items() if count > max_detections}
    if images:
        yield (
            f"{counted(len(images), 'image')} with more than {max_detections} detections of a class (up to "
            f"{max(per_class.values())}): evaluation counts the {max_detections} with the highest scores"
        )


def _other_conventions(ground_truth: dict[str, Any], results: list[dict[str, Any]]) -> Iterator[str]:
    """Compare the boxes with the ground truth in all formats that other tools write."""
    sums: Counter[tuple[str, str]] = Counter()
    boxes = matches = wrong_class = 0
    for size, found, labels, true_boxes, true_labels in _samples(ground_truth, results):
        boxes += len(found)
        for layout, to_xyxy in _LAYOUTS.items():
            for unit, whole in _UNITS.items():
                scale = 1 if whole is None else torch.tensor([*size, *size]) / whole
                best = box_iou(to_xyxy(found) * scale, true_boxes).nan_to_num(0).max(dim=1)
                sums[layout, unit] += float(best.values.sum())
                if (layout, unit) == _EXPECTED:
                    matched = best.values >= _MATCH_IOU
                    matches += int(matched.sum())
                    wrong_class += int((labels != true_labels[best.indices])[matched].sum())
    if not boxes:
        return
    (layout, unit), total = sums.most_common(1)[0]
    here, there = sums[_EXPECTED] / boxes, total / boxes
    if there >= _LEAST_IOU and there - here >= _LEAST_GAIN:
        yield (
            f"the boxes seem to be {layout} in {unit}, but COCO results have {_EXPECTED[0]} in {_EXPECTED[1]}: the "
            f"mean IoU with the best ground-truth box is {there:.2f} instead of {here:.2f}"
        )
    elif all(max(entry["bbox"]) <= 1 for entry in results):
        yield "all boxes end at or below 1: they seem to be fractions of the image size, and evaluation expects pixels"
    if matches >= _LEAST_MATCHES and wrong_class >= _WRONG_CLASS_SHARE * matches:
        yield (
            f"{wrong_class} of {matches} boxes that match an object have another category_id than the object; "
            "category_id must be an id of the annotation file, not a label"
        )


def _samples(
    ground_truth: dict[str, Any], results: list[dict[str, Any]]
) -> Iterator[tuple[tuple[int, int], Tensor, Tensor, Tensor, Tensor]]:
    """Yield size, boxes, categories, and true xyxy boxes and categories of images; as many boxes as objects."""
    by_image = itemgetter("image_id")
    truths = {
        image: [*entries] for image, entries in groupby(sorted(ground_truth["annotations"], key=by_image), by_image)
    }
    sizes = {entry["id"]: declared_size(entry) for entry in ground_truth["images"]}
    used = 0
    for image, entries in groupby(sorted(results, key=by_image), by_image):
        if used == _MOST_IMAGES:
            return
        if image not in truths or not sizes[image]:
            continue
        used += 1
        truth = truths[image]
        best = sorted(entries, key=itemgetter("score"), reverse=True)[: len(truth)]
        true_boxes = box_convert(torch.tensor([entry["bbox"] for entry in truth], dtype=torch.float64), "xywh", "xyxy")
        yield (
            sizes[image],
            torch.tensor([entry["bbox"] for entry in best], dtype=torch.float64),
            torch.tensor([entry["category_id"] for entry in best]),
            true_boxes,
            torch.tensor([entry["category_id"] for entry in truth]),
        )
