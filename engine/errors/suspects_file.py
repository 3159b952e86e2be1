"""Suspect labels as a COCO file, which labelling tools load."""

from itertools import chain
from typing import Any

from .analysis import ErrorAnalysis
from .suspects import Suspect


def suspects_dataset(analysis: ErrorAnalysis, *, description: str) -> dict[str, Any]:
    """Return suspect labels as a COCO instances file of the images concerned.

    Each annotation has `attributes`: `suspected` is one of `SUSPICIONS`, `annotation_id` the id of a labelled object in
    the annotation file, `detected` the class of the detection. `score` is the score of the detection.

    Args:
        analysis: result of `analyse_errors`.
        description: description of the file.
    """
    annotations = [
        _annotation(analysis, one) | {"id": index, "iscrowd": 0}
        for index, one in enumerate(chain(*analysis.suspects.values()), start=1)
    ]
    images = {entry["image_id"] for entry in annotations}
    return {
        "info": {"description": description},
        "images": [
            {key: value for key, value in entry.items() if value is not None}  # a size that is not known
            for entry in analysis.ground_truth["images"]
            if entry["id"] in images
        ],
        "categories": analysis.ground_truth["categories"],
        "annotations": annotations,
    }


def _annotation(analysis: ErrorAnalysis, one: Suspect) -> dict[str, Any]:
    attributes: dict[str, Any] = {"suspected": one.suspicion}
    found = analysis.detection(one.detection) if one.detection >= 0 else {}
    labelled = analysis.true_object(one.object) if one.object >= 0 else {}
    if found:
        attributes["detected"] = analysis.class_names[analysis.errors.detections.label[one.detection]]
    if labelled:
        attributes["annotation_id"] = labelled.get("file_id", labelled["id"])
    source = labelled or found
    entry = {key: source[key] for key in ("image_id", "category_id", "bbox")}
    entry["area"] = source.get("area", source["bbox"][2] * source["bbox"][3])
    entry |= {"segmentation": source.get("segmentation") or [], "attributes": attributes}
    return entry | ({"score": found["score"]} if found else {})
