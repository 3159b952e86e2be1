"""A data set with one error of each kind and one suspect label of each suspicion."""

import pytest

from engine.errors.analysis import ErrorAnalysis, analyse_errors
from tests.engine.evaluation.scenes import annotation, scene

NAMES = {7: "<b>&cat", 3: "dog\x1b"}


def found(image: int, category: int, bbox: list[float], score: float) -> dict:
    return {"image_id": image, "category_id": category, "bbox": bbox, "score": score}


@pytest.fixture(scope="session")
def analysis() -> ErrorAnalysis:
    truth = scene(
        [
            annotation(1, 10, 7, [10, 10, 20, 20]),
            annotation(2, 10, 3, [60, 10, 20, 20]),
            annotation(3, 11, 3, [10, 10, 30, 30]),
            annotation(4, 11, 7, [60, 40, 10, 10]),
            annotation(5, 12, 3, [0, 0, 40, 40], iscrowd=1),
            annotation(6, 12, 3, [50, 10, 40, 30]),
        ],
        4,
        [7, 3],
    )
    for category in truth["categories"]:
        category["name"] = NAMES[category["id"]]
    truth["images"][3] |= {"file_name": "<i>far.jpg", "width": None, "height": None}
    results = [
        found(10, 7, [10, 10, 20, 20], 0.6),  # correct
        found(10, 7, [11, 10, 20, 20], 0.4),  # a duplicate
        found(10, 7, [60, 10, 20, 19], 0.9),  # another class
        found(11, 3, [25, 10, 30, 30], 0.8),  # a bad place
        found(11, 7, [25, 10, 30, 30], 0.3),  # both
        found(12, 3, [50, 10, 40, 30], 0.5),  # correct
        found(13, 3, [1, 2, 30, 40], 0.7),  # no object there
        found(13, 7, [1, 2, 31, 41], 0.65),  # the same place
        found(13, 7, [60, 2, 30, 40], 0.2),  # no object there, and not confident
    ]
    return analyse_errors(truth, results)
