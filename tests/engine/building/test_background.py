"""Images without boxes at the start of a run."""

from types import SimpleNamespace

import numpy as np
import pytest

from engine.building.background import describe_images_without_boxes


def split_of(*boxes_of_images):
    counts = np.array(boxes_of_images)
    return SimpleNamespace(arrays=type("Arrays", (), {"counts": counts, "__len__": lambda _: len(counts)})())


FULL = split_of(2, 1)


@pytest.mark.parametrize(
    ("counts", "keep", "is_warning", "begins"),
    [
        ([1] * 11 + [0], False, False, "1 of 12 training images (8.3%) has no box and is not used. "),
        ([1] * 9 + [0], False, True, "1 of 10 training images (10.0%) has no box and is not used. "),
        ([0, 3, 0], False, True, "2 of 3 training images (66.7%) have no box and are not used. "),
        ([0, 3, 0, 1], True, False, "2 of 4 training images (50.0%) have no box; training uses them as background ("),
        ([0, 3, 0], True, True, "2 of 3 training images (66.7%) have no box; training uses them as background ("),
    ],
)
def test_training_images(counts, keep, is_warning, begins):
    ((found, message),) = describe_images_without_boxes(split_of(*counts), FULL, keep=keep)
    assert found is is_warning
    assert message.startswith(begins)
    assert ("data.keep_images_without_boxes=true" in message) is not keep
    assert message.endswith("33.3%") is (keep and is_warning)


def test_validation_images():
    ((is_warning, message),) = describe_images_without_boxes(FULL, split_of(0, 2, 0, 1, 0), keep=False)
    assert not is_warning
    assert message == "3 of 5 val images (60.0%) have no box: AP counts every detection there as a false positive"
    assert not list(describe_images_without_boxes(FULL, FULL, keep=False))
