"""Errors in FiftyOne, an app that shows, filters and sorts images (https://docs.voxel51.com)."""

from pathlib import Path
from types import ModuleType
from typing import Any

from data import declared_size

from ..evaluation import CORRECT, ERROR_KINDS
from .analysis import ErrorAnalysis

_KIND_NAMES = {code: name for name, code in ERROR_KINDS.items()} | {CORRECT: "correct"}


def require_fiftyone() -> ModuleType:
    """Import FiftyOne and start its database.

    Raises:
        ValueError: if it is not installed, or cannot start.
    """
    try:
        import fiftyone
    except ImportError as error:
        raise ValueError(f"FiftyOne cannot be imported ({error}); install it with: pip install fiftyone") from None
    try:
        fiftyone.list_datasets()
    except Exception as error:  # errors of FiftyOne, its configuration and its database have no common class
        raise ValueError(f"FiftyOne cannot start: {error}") from None
    return fiftyone


def fiftyone_dataset(analysis: ErrorAnalysis, image_dir: Path) -> Any:
    """Return a FiftyOne data set that is not kept when FiftyOne ends.

    Samples have the fields `ground_truth` and `predictions`. Each detection has the attributes `error` (a kind of
    errors, "correct", "found" for objects with a correct detection, or "ignored" in crowd regions) and `iou`. Suspect
    labels have their suspicion as a tag.

    Args:
        analysis: result of `analyse_errors`.
        image_dir: folder of the images.
    """
    fo = require_fiftyone()
    found, objects, names = analysis.errors.detections, analysis.errors.objects, analysis.class_names
    images = analysis.ground_truth["images"]
    suspects = [one for several in analysis.suspects.values() for one in several]
    row_tags = {one.detection: [one.suspicion] for one in suspects}
    object_tags = {one.object: [one.suspicion] for one in suspects}
    predictions: list[list] = [[] for _ in images]
    truths: list[list] = [[] for _ in images]

    def add(target: list[list], place: int, entry: dict[str, Any], label: int, **fields: Any) -> None:
        if size := declared_size(images[place]):  # an image that cannot be read has no size
            width, height = size
            x, y, w, h = entry["bbox"]
            box = [x / width, y / height, w / width, h / height]
            target[place].append(fo.Detection(label=names[label], bounding_box=box, **fields))

    for row in range(len(found.result)):
        error = "ignored" if found.ignored[row] else _KIND_NAMES[int(found.kind[row])]
        fields = {"confidence": float(found.score[row]), "error": error, "iou": float(found.iou[row])}
        tags = row_tags.get(row, [])
        add(predictions, found.image[row], analysis.detection(row), found.label[row], tags=tags, **fields)
    for row in range(len(objects.annotation)):
        fixable = objects.fixed_by[row]
        error = (
            "found" if objects.matched[row] >= 0 else "missed" if fixable < 0 else _KIND_NAMES[int(found.kind[fixable])]
        )
        fields = {"error": error, "iou": float(objects.best_iou[row]), "tags": object_tags.get(row, [])}
        add(truths, objects.image[row], analysis.true_object(row), objects.label[row], **fields)
    dataset = fo.Dataset()
    dataset.add_samples(
        [
            fo.Sample(
                filepath=str((image_dir / entry["file_name"]).absolute()),
                ground_truth=fo.Detections(detections=truths[place]),
                predictions=fo.Detections(detections=predictions[place]),
            )
            for place, entry in enumerate(images)
        ]
    )
    return dataset


def open_fiftyone(dataset: Any) -> None:
    """Open the app in a browser, and wait until its window is closed."""
    require_fiftyone().launch_app(dataset).wait()
