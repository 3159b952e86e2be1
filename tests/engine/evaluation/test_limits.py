"""Images with more objects than evaluation or the detector counts."""

import pytest

from engine.evaluation.limits import limit_problems


def truth(*images, crowd=0):
    """Annotations: for each image the number of objects of each class."""
    annotations = [
        {"image_id": image, "category_id": category, "iscrowd": crowd}
        for image, classes in enumerate(images, start=1)
        for category, count in enumerate(classes, start=1)
        for _ in range(count)
    ]
    return {"annotations": annotations}


def test_images_with_more_objects_of_a_class_are_counted():
    (problem,) = limit_problems(truth((101, 3), (150, 0), (100, 100)), 100, option="eval.max_detections")
    assert problem == (
        "2 images with more than 100 objects of a class (up to 150): evaluation counts 100 detections of a class in an "
        "image, so AP cannot reach 100; eval.max_detections counts more"
    )


def test_images_with_more_objects_than_the_detector_returns_are_counted():
    (problem,) = limit_problems(
        truth((75, 75), (5,)), 100, option="x", per_image=("model.fcos.detections_per_image", 100)
    )
    assert problem == (
        "1 image with more than 100 objects (up to 150): the detector returns at most 100 detections for an image "
        "(model.fcos.detections_per_image), so AP cannot reach 100"
    )


@pytest.mark.parametrize("content", [truth((100, 100)), truth((150,), crowd=1), truth()])
def test_no_problem(content):
    assert limit_problems(content, 100, option="x") == []
