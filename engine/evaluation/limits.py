"""Ground truth that evaluation or the detector cannot reach, because both limit the number of detections."""

from collections import Counter
from typing import Any

from ..display import counted


def limit_problems(
    ground_truth: dict[str, Any], max_detections: int, *, option: str, per_image: tuple[str, int] | None = None
) -> list[str]:
    """Return a sentence for each limit on detections that keeps AP below 1.

    Args:
        ground_truth: loaded COCO instances file. Crowd regions do not count.
        max_detections: number of detections of a class that evaluation counts in an image.
        option: name of the option that sets `max_detections`.
        per_image: name of the detector's option for the number of detections per image, and its value.
    """
    annotations = [entry for entry in ground_truth["annotations"] if not entry["iscrowd"]]
    of_class = Counter((entry["image_id"], entry["category_id"]) for entry in annotations)
    problems = []
    images = {image for (image, _), count in of_class.items() if count > max_detections}
    if images:
        problems.append(
            f"{counted(len(images), 'image')} with more than {max_detections} objects of a class (up to "
            f"{max(of_class.values())}): evaluation counts {max_detections} detections of a class in an image, so AP "
            f"cannot reach 100; {option} counts more"
        )
    if per_image:
        name, most = per_image
        in_image = Counter(entry["image_id"] for entry in annotations)
        if above := sum(count > most for count in in_image.values()):
            problems.append(
                f"{counted(above, 'image')} with more than {most} objects (up to {max(in_image.values())}): the "
                f"detector returns at most {most} detections for an image ({name}), so AP cannot reach 100"
            )
    return problems
