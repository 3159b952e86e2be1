"""The figures of an analysis."""

from engine.errors.analysis import analyse_errors
from tests.engine.evaluation.scenes import random_scene


def test_figures(analysis):
    figures = analysis.as_json()
    assert {name: value for name, value in figures.items() if name.startswith(("errors_", "suspects_"))} == {
        "errors_class": 1,
        "errors_localization": 1,
        "errors_both": 1,
        "errors_duplicate": 1,
        "errors_background": 3,
        "errors_missed": 1,
        "suspects_missing_label": 1,
        "suspects_other_class": 1,
        "suspects_nothing_found": 2,
    }
    assert (figures["images"], figures["objects"], figures["detections"], figures["iou"]) == (4, 5, 9, "bbox")
    assert figures["per_class"]["dog\x1b"]["errors_background"] == 1
    assert figures["per_class"]["<b>&cat"]["errors_missed"] == 1
    assert figures["AP50"] == analysis.costs.ap


def test_classes_sum_to_the_whole():
    figures = analyse_errors(*random_scene(5), max_detections=6).as_json()
    assert figures["detections_left_out"] > 0
    assert figures["detections_ignored"] > 0
    for name in ("objects", "detections", *(name for name in figures if name.startswith("errors_"))):
        assert sum(row[name] for row in figures["per_class"].values()) == figures[name] > 0


def test_results_without_boxes_get_the_box_of_their_mask():
    truth, results = random_scene(5)
    masks = [{key: value for key, value in entry.items() if key != "bbox"} for entry in results]
    found = analyse_errors(truth, masks, kind="segm")
    whole = analyse_errors(truth, results, kind="segm").as_json()
    assert found.as_json()["errors_localization"] == whole["errors_localization"]
    assert all(len(entry["bbox"]) == 4 for entry in found.results)
