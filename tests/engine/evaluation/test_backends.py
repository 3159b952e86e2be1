"""faster-coco-eval against pycocotools, and the choice between them."""

import importlib.metadata
import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.cocoeval import COCOeval

from engine.evaluation import backends
from engine.evaluation.backends import coco_eval_class, describe_backend
from engine.evaluation.coco_eval import coco_metrics
from engine.evaluation.metrics import scalar_metrics

WIDTH, HEIGHT = 150, 110
CATEGORIES = [{"id": key, "name": name} for key, name in ((90, "dog"), (3, "cat"), (17, "hen"), (5, "ape"))]


@pytest.fixture(autouse=True)
def forget():
    """Each test finds out again what is installed."""
    backends._faster_problem.cache_clear()
    yield
    backends._faster_problem.cache_clear()


def random_case(seed, masks, most):
    """Ground truth with crowds, detections near it and elsewhere with equal scores, and one class without any box."""
    rng = np.random.default_rng(seed)
    annotations, detections = [], []

    def segmentation(x, y, w, h):
        mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
        mask[int(y) : int(y + h) + 1, int(x) : int(x + w) + 1] = 1
        mask[int(y) : int(y + h / 2), int(x) : int(x + w / 3)] = 0
        rle = coco_mask.encode(mask)
        return {"size": rle["size"], "counts": rle["counts"].decode()}

    def entry(image, category, box):
        own = {"image_id": image, "category_id": int(category), "bbox": [float(v) for v in box]}
        return own | ({"segmentation": segmentation(*box)} if masks else {})

    for image in range(1, 8):
        boxes = []
        for _ in range(rng.integers(0, 7)):
            size = rng.choice([6, 20, 100], 2) * rng.uniform(0.5, 1.0, 2)
            box = np.array([*rng.uniform(0, np.array([WIDTH, HEIGHT]) - size), *size]).round(1)
            own = entry(image, rng.choice([90, 3, 17]), box)
            own |= {"id": len(annotations) + 1, "iscrowd": int(rng.random() < 0.15), "area": size.prod() * 0.8}
            annotations.append(own)
            boxes.append((box, own["category_id"]))
        for _ in range(rng.integers(0, most)):
            if boxes and rng.random() < 0.7:
                box, category = boxes[rng.integers(len(boxes))]
                box = np.maximum(box + rng.normal(0, rng.choice([0, 1, 6]), 4), [0, 0, 0.5, 0.5])
            else:
                box, category = rng.uniform(1, 60, 4), rng.choice([90, 3, 17, 5])
            detections.append(entry(image, category, box) | {"score": round(float(rng.random()), 1)})
    images = [{"id": n, "file_name": f"{n}.png", "width": WIDTH, "height": HEIGHT} for n in range(1, 9)]
    order = rng.permutation(len(detections))
    return {"images": images, "categories": CATEGORIES, "annotations": annotations}, [detections[n] for n in order]


@settings(max_examples=10)
@given(
    seed=st.integers(0, 2**32 - 1), masks=st.booleans(), most=st.sampled_from([2, 30, 300]), limit=st.integers(100, 250)
)
def test_both_backends_have_the_same_figures(seed, masks, most, limit):
    pytest.importorskip("faster_coco_eval")
    case = random_case(seed, masks, most if not masks else min(most, 30))
    ours, theirs = (
        coco_metrics(*case, max_detections=limit, backend=backend) for backend in ("pycocotools", "faster_coco_eval")
    )
    assert [*ours] == [*theirs]
    assert len(ours) >= 13 + 13 * bool(masks and case[1])
    flat = [scalar_metrics(part) | part["per_class"] | part.get("mask_per_class", {}) for part in (ours, theirs)]
    for name, value in flat[0].items():
        assert flat[1][name] == pytest.approx(value, abs=1e-12, nan_ok=True), name
    assert math.isnan(flat[1]["ape"])


def test_without_ground_truth_or_detections():
    pytest.importorskip("faster_coco_eval")
    truth, detections = random_case(3, False, 20)
    for case in ((truth | {"annotations": []}, detections), (truth, []), (truth | {"annotations": []}, [])):
        ours, theirs = (coco_metrics(*case, backend=backend) for backend in ("pycocotools", "faster_coco_eval"))
        assert scalar_metrics(theirs) == pytest.approx(scalar_metrics(ours), abs=1e-12, nan_ok=True)


def installed(monkeypatch, found):
    def version(name):
        if name == "faster-coco-eval" and found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found if name == "faster-coco-eval" else importlib.metadata.version(name)

    monkeypatch.setattr(backends, "version", version)


@pytest.mark.parametrize(
    ("found", "problem"),
    [(None, "it is not installed"), ("1.6.9", r"version 1\.7 or later is required, got 1\.6\.9")],
)
def test_faster_coco_eval_is_used_if_it_is_new_enough(monkeypatch, found, problem):
    installed(monkeypatch, found)
    assert coco_eval_class("auto") is coco_eval_class("pycocotools") is COCOeval
    assert describe_backend("auto") == f"pycocotools {importlib.metadata.version('pycocotools')}"
    with pytest.raises(ValueError, match=f"eval.backend faster_coco_eval cannot be used: {problem}; pip install"):
        coco_eval_class("faster_coco_eval")


def test_a_broken_installation_is_not_used(monkeypatch):
    installed(monkeypatch, "1.10.0")
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    assert coco_eval_class("auto") is COCOeval
    with pytest.raises(ValueError, match=r"its import failed \(ModuleNotFoundError"):
        coco_eval_class("faster_coco_eval")


def test_auto_uses_faster_coco_eval():
    library = pytest.importorskip("faster_coco_eval")
    assert coco_eval_class("auto") is library.COCOeval_faster
    assert describe_backend("auto") == f"faster-coco-eval {library.__version__}"
