"""What an evaluation costs: pycocotools' judging of drawn detections, for `benchmark.py loop`."""

import multiprocessing
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from engine.evaluation import coco_figures
from engine.comparison import extra_memory

# As in COCO: categories, the most detections of an image, sides of an image in pixels.
CATEGORIES, DETECTIONS, SIDES = 80, 100, (640, 480)
# Truth boxes of an image are from 1 to this, 7 on average.
MOST_TRUTH = 13
BOX_SIDES = (8, 240)


def measure_evaluation(images: int) -> dict[str, Any]:
    """Time `coco_figures` once, and take its peak of memory beyond its inputs, in a process of its own."""
    seconds = multiprocessing.Value("d", 0.0)  # seen from here too

    def prepare() -> Callable[[], None]:
        coco_figures(*draw_evaluation(1))
        arguments = draw_evaluation(images)

        def judge() -> None:
            start = time.perf_counter()
            coco_figures(*arguments)
            seconds.value = time.perf_counter() - start

        return judge

    memory = extra_memory(prepare, torch.device("cpu"))
    if memory is None:  # it has not run, or died of what shows here
        prepare()()
    return {
        "eval_images": images,
        "eval_detections": DETECTIONS * images,
        "eval_s": seconds.value,
        "eval_s_per_1000_images": 1000 * seconds.value / images,
        "eval_peak_gib": None if memory is None else memory / 2**30,
    }


def draw_evaluation(images: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Draw a COCO ground truth and COCO results, the same in every call.

    Half of an image's detections lie near a true box, four of five of them under its category; the others are anywhere
    and under any category.
    """
    rng = np.random.default_rng(0)
    annotations, results = [], []
    for image_id in range(1, images + 1):
        truth, kinds = draw_boxes(rng, int(rng.integers(1, MOST_TRUTH + 1)))
        for box, kind in zip(truth.tolist(), kinds.tolist(), strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": kind,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
        boxes, guesses = draw_boxes(rng, DETECTIONS)
        near = DETECTIONS // 2
        meant = rng.integers(len(truth), size=near)
        boxes[:near] = truth[meant] * rng.normal(1, 0.1, (near, 4))
        guesses[:near] = np.where(rng.random(near) < 0.8, kinds[meant], guesses[:near])
        scores = rng.random(DETECTIONS)
        scores[near:] *= 0.5
        results += [
            {"image_id": image_id, "category_id": kind, "bbox": box, "score": score}
            for kind, box, score in zip(guesses.tolist(), boxes.tolist(), scores.tolist(), strict=True)
        ]
    width, height = SIDES
    ground_truth = {
        "images": [{"id": image_id, "width": width, "height": height} for image_id in range(1, images + 1)],
        "categories": [{"id": kind, "name": f"class {kind}"} for kind in range(1, CATEGORIES + 1)],
        "annotations": annotations,
    }
    return ground_truth, results


def draw_boxes(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw boxes `(N, 4)`, x, y, width and height in pixels, and category ids `(N,)`."""
    sides = rng.uniform(*BOX_SIDES, (count, 2))
    corners = rng.random((count, 2)) * (SIDES - sides)
    return np.concatenate([corners, sides], axis=1), rng.integers(1, CATEGORIES + 1, count)
