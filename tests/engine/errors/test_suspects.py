"""Suspect labels, planted and found."""

import json

import numpy as np
import pytest

from data import load_annotations
from engine.errors.analysis import analyse_errors
from engine.errors.suspects import MISSING_LABEL, NOTHING_FOUND, OTHER_CLASS, confident_scores
from engine.errors.suspects_file import suspects_dataset
from engine.evaluation.tide import find_errors
from tests.engine.errors.conftest import found
from tests.engine.evaluation.scenes import annotation, scene


def planted(analysis) -> dict[str, list[tuple]]:
    """Score of the detection and id of the annotation of each suspect."""
    return {
        suspicion: [
            (
                analysis.detection(one.detection)["score"] if one.detection >= 0 else None,
                analysis.true_object(one.object)["id"] if one.object >= 0 else None,
            )
            for one in several
        ]
        for suspicion, several in analysis.suspects.items()
    }


def test_all_suspicions(analysis):
    assert planted(analysis) == {
        MISSING_LABEL: [(0.7, None)],
        OTHER_CLASS: [(0.9, 2)],
        NOTHING_FOUND: [(None, 3), (None, 4)],  # the larger one first
    }
    # the median score of the correct detections of each class
    assert confident_scores(analysis.errors).tolist() == [0.5, 0.6]


def test_a_lower_score_finds_more(analysis):
    everything = analyse_errors(analysis.ground_truth, analysis.results, suspect_score=0.0)
    assert planted(everything)[MISSING_LABEL] == [(0.7, None), (0.2, None)]
    nothing = analyse_errors(analysis.ground_truth, analysis.results, suspect_score=1.0)
    assert planted(nothing) == {MISSING_LABEL: [], OTHER_CLASS: [], NOTHING_FOUND: [(None, 3), (None, 4)]}


def test_without_any_correct_detection_nothing_is_confident():
    truth = scene([annotation(1, 10, 7, [0, 0, 20, 20])], 1, [7])
    errors = find_errors(truth, [found(10, 7, [50, 50, 20, 20], 0.9)])
    assert np.isinf(confident_scores(errors)).all()


@pytest.mark.parametrize(("score", "is_suspect"), [(0.8, True), (0.5, False)])
def test_a_correct_detection_with_a_higher_score_clears_a_label(score, is_suspect):
    truth = scene([annotation(1, 10, 7, [0, 0, 20, 20])], 1, [3, 7])
    results = [found(10, 7, [0, 0, 20, 20], 0.6), found(10, 3, [0, 0, 20, 20], score)]
    assert bool(analyse_errors(truth, results, suspect_score=0.5).suspects[OTHER_CLASS]) == is_suspect


def test_crowd_regions_explain_detections():
    truth = scene([annotation(1, 10, 7, [0, 0, 50, 50], 1)], 1, [3, 7])
    results = [found(10, 3, [40, 40, 20, 20], 0.9), found(10, 3, [48, 48, 20, 20], 0.8)]  # a quarter and 1 % inside
    several = planted(analyse_errors(truth, results, suspect_score=0.5))
    assert several[MISSING_LABEL] == [(0.8, None)]


def test_the_file_is_a_data_set(analysis, tmp_path):
    dataset = suspects_dataset(analysis, description="suspects")
    dataset["images"][-1] |= {"width": 100, "height": 80}  # as the measured size of a file
    (tmp_path / "suspects.json").write_text(json.dumps(dataset))
    read = load_annotations(tmp_path, tmp_path / "suspects.json", check_images="never")
    assert [entry["id"] for entry in read.raw["images"]] == [10, 11, 13]  # without the image that has no suspects
    entries = [(entry["image_id"], entry["category_id"], entry["bbox"]) for entry in read.raw["annotations"]]
    assert entries == [
        (13, 3, [1, 2, 30, 40]),
        (10, 3, [60, 10, 20, 20]),
        (11, 3, [10, 10, 30, 30]),
        (11, 7, [60, 40, 10, 10]),
    ]
    assert [entry["attributes"] for entry in dataset["annotations"]] == [
        {"suspected": "missing_label", "detected": "dog\x1b"},
        {"suspected": "other_class", "detected": "<b>&cat", "annotation_id": 2},
        {"suspected": "nothing_found", "annotation_id": 3},
        {"suspected": "nothing_found", "annotation_id": 4},
    ]
    assert [entry.get("score") for entry in dataset["annotations"]] == [0.7, 0.9, None, None]
    assert dataset["annotations"][1]["segmentation"]
