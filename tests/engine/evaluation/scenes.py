"""Small data sets with detections that have errors of all kinds."""

import random
from typing import Any

SIZE = (100, 80)


def annotation(key: int, image: int, category: int, bbox: list[float], iscrowd: int = 0) -> dict[str, Any]:
    """An annotation whose mask is its box."""
    x, y, w, h = bbox
    polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
    return {
        "id": key,
        "image_id": image,
        "category_id": category,
        "bbox": bbox,
        "area": w * h,
        "iscrowd": iscrowd,
        "segmentation": [polygon],
    }


def scene(annotations: list[dict[str, Any]], images: int, categories: list[int]) -> dict[str, Any]:
    """A COCO file with images 10, 11, ... of `SIZE`."""
    width, height = SIZE
    return {
        "images": [
            {"id": 10 + index, "file_name": f"{index}.jpg", "width": width, "height": height} for index in range(images)
        ],
        "categories": [{"id": key, "name": f"class {key}"} for key in categories],
        "annotations": annotations,
    }


def random_scene(seed: int, images: int = 25, classes: int = 4) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Annotations, some of them crowds, and detections: some near them, some with another class, some anywhere.

    Masks of detections are their boxes, rounded.
    """
    draw = random.Random(seed)
    categories = [3 * index + 1 for index in range(classes)]
    annotations, results = [], []

    def found(image: int, category: int, bbox: list[float], score: float) -> None:
        x, y, w, h = (round(value) for value in bbox)
        left, top = min(max(x, 0), SIZE[0] - 1), min(max(y, 0), SIZE[1] - 1)
        right, bottom = min(max(x + w, left + 1), SIZE[0]), min(max(y + h, top + 1), SIZE[1])
        counts = [left * SIZE[1] + top]
        for column in range(right - left):
            counts += [bottom - top, SIZE[1] - bottom + top] if column < right - left - 1 else [bottom - top]
        counts.append(SIZE[0] * SIZE[1] - sum(counts))
        mask = {"size": [SIZE[1], SIZE[0]], "counts": counts}
        results.append({"image_id": image, "category_id": category, "bbox": bbox, "score": score, "segmentation": mask})

    for image in range(10, 10 + images):
        for _ in range(draw.randrange(7)):
            w, h = draw.uniform(5, 30), draw.uniform(5, 30)
            x, y = draw.uniform(0, SIZE[0] - w), draw.uniform(0, SIZE[1] - h)
            category = draw.choice(categories)
            crowd = int(draw.random() < 0.1)
            annotations.append(annotation(len(annotations) + 1, image, category, [x, y, w, h], crowd))
            for _ in range(draw.randrange(4)):
                spread = draw.choice([0.02, 0.15, 0.4])
                bbox = [x + draw.gauss(0, spread) * w, y + draw.gauss(0, spread) * h]
                bbox += [w * (1 + spread * draw.random()), h * (1 + spread * draw.random())]
                found(image, category if draw.random() < 0.7 else draw.choice(categories), bbox, draw.random())
        for _ in range(draw.randrange(4)):
            w, h = draw.uniform(5, 30), draw.uniform(5, 30)
            bbox = [draw.uniform(0, SIZE[0] - w), draw.uniform(0, SIZE[1] - h), w, h]
            found(image, draw.choice(categories), bbox, 0.8 * draw.random())
    return scene(annotations, images, categories), results
