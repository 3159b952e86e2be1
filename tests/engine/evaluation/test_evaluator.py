"""COCO figures against pycocotools used as its authors do, and the way from boxes to COCO results and back."""

import contextlib
import io
import itertools
import json
import logging
import math

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

from data import Batch, CocoDetection, eval_loader, eval_transform, load_annotations
from data.files import without_nan
from engine.display.progress import log
from engine.distributed.preemption import StopRequest
from engine.distributed.processes import ALONE
from engine.evaluation.evaluator import (
    COCO_FIGURES,
    check_results,
    coco_figures,
    detect,
    evaluate,
    gather_results,
)

CPU = torch.device("cpu")
CATEGORIES = [{"id": 90, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 17, "name": "hen"}]


def truth(*annotations, images=1):
    """A COCO file with annotations given as (image id, category id, bbox) or with a dict of more."""
    listed = []
    for index, (image_id, category_id, bbox, *more) in enumerate(annotations, start=1):
        entry = {"id": index, "image_id": image_id, "category_id": category_id, "bbox": bbox, "iscrowd": 0}
        listed.append(entry | {"area": bbox[2] * bbox[3]} | (more[0] if more else {}))
    pictures = [{"id": n, "file_name": f"{n}.png", "width": 200, "height": 160} for n in range(1, images + 1)]
    return {"images": pictures, "categories": CATEGORIES, "annotations": listed}


def found(image_id, category_id, bbox, score=0.9):
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, "score": score}


def random_case(seed):
    """Truth of all sizes with crowd regions, and detections near it and elsewhere."""
    rng = np.random.default_rng(seed)
    boxes, detections = [], []
    for image_id in range(1, 9):
        for _ in range(int(rng.integers(0, 7))):
            side = rng.choice([12, 50, 130], 2)
            x, y, w, h = (float(v) for v in [*rng.uniform(0, 60, 2), *(side * rng.uniform(0.7, 1.3, 2))])
            category = int(rng.choice([3, 17, 90]))
            boxes.append((image_id, category, [x, y, w, h], {"iscrowd": int(rng.random() < 0.15), "area": w * h * 0.7}))
            for _ in range(int(rng.integers(0, 4))):
                near = [v + float(rng.normal(0, 0.08 * s)) for v, s in zip((x, y, w, h), (w, h, w, h), strict=True)]
                kind = category if rng.random() < 0.8 else 3
                detections.append(found(image_id, kind, near, float(rng.random())))
    return truth(*boxes, images=8), detections


def by_hand(ground_truth, detections, folder, categories=None):
    """What the manual of pycocotools says: both from files."""
    (folder / "gt.json").write_text(json.dumps(ground_truth))
    (folder / "dt.json").write_text(json.dumps(detections))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(folder / "gt.json"))
        judge = COCOeval(coco, coco.loadRes(str(folder / "dt.json")), "bbox")
        if categories:
            judge.params.catIds = categories
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge.stats.tolist()


@pytest.mark.parametrize("seed", range(4))
def test_figures_are_those_of_pycocotools(seed, tmp_path):
    ground_truth, detections = random_case(seed)
    stats = by_hand(ground_truth, detections, tmp_path)
    assert 0.1 < stats[0] < 0.9
    figures = coco_figures(ground_truth, detections)
    assert [figures[name] for name in COCO_FIGURES] == stats
    for category in CATEGORIES:
        alone = by_hand(ground_truth, detections, tmp_path, [category["id"]])[0]
        assert figures["per_class"][category["name"]] == pytest.approx(alone, abs=1e-12)
    assert list(figures["per_class"]) == ["cat", "hen", "dog"]
    again = coco_figures(ground_truth, detections)  # nothing of the truth was used up
    assert [again[name] for name in COCO_FIGURES] == stats


def test_perfect_detections_have_ap_1_and_none_have_ap_0():
    boxes = [(1, 3, [10, 20, 30, 40]), (1, 90, [50, 50, 100, 100]), (2, 17, [0, 0, 20, 20])]
    ground_truth = truth(*boxes, images=2)
    figures = coco_figures(ground_truth, [found(*box) for box in boxes])
    assert [figures[name] for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")] == pytest.approx([1.0] * 7)
    assert figures["per_class"] == pytest.approx({"cat": 1, "hen": 1, "dog": 1})
    assert all(isinstance(figures[name], float) for name in COCO_FIGURES)
    figures = coco_figures(ground_truth, [])
    assert [figures[name] for name in COCO_FIGURES] == [0.0] * 12
    assert figures["per_class"] == {"cat": 0.0, "hen": 0.0, "dog": 0.0}


def test_an_annotation_of_id_0_is_counted(tmp_path):
    raw = truth((1, 3, [10, 20, 30, 40]))
    raw["annotations"][0]["id"] = 0
    (tmp_path / "val.json").write_text(json.dumps(raw))
    assert by_hand(raw, [found(1, 3, [10, 20, 30, 40])], tmp_path)[0] == 0  # the trap of pycocotools
    split = load_annotations(tmp_path, tmp_path / "val.json", check_images="never")
    assert coco_figures(split.raw, [found(1, 3, [10, 20, 30, 40])])["AP"] == pytest.approx(1)


def test_detections_in_a_crowd_are_no_false_positives():
    boxes = [(1, 3, [10, 10, 20, 20]), (1, 3, [60, 10, 80, 100], {"iscrowd": 1})]
    detections = [found(1, 3, [10, 10, 20, 20], 0.5), found(1, 3, [70, 20, 30, 30], 0.9)]
    assert coco_figures(truth(*boxes), detections)["AP"] == pytest.approx(1)
    boxes[1][3]["iscrowd"] = 0
    assert coco_figures(truth(*boxes), detections)["AP"] < 0.6


def test_without_truth_there_is_no_figure():
    figures = coco_figures(truth(), [found(1, 3, [1, 2, 3, 4])])
    assert all(math.isnan(figures[name]) for name in COCO_FIGURES)
    assert all(math.isnan(ap) for ap in figures["per_class"].values())
    written = json.loads(json.dumps(without_nan(figures), allow_nan=False))
    assert written == dict.fromkeys(COCO_FIGURES) | {"per_class": {"cat": None, "hen": None, "dog": None}}
    some = coco_figures(truth((1, 3, [10, 10, 20, 20])), [])
    assert (some["AP"], some["APs"]) == (0, 0)
    assert math.isnan(some["APl"])
    assert math.isnan(some["per_class"]["dog"])


def test_classes_of_one_name_are_told_apart():
    ground_truth = truth((1, 3, [10, 10, 20, 20]))
    ground_truth["categories"] = [{"id": 3, "name": "cat"}, {"id": 4, "name": "cat"}, {"id": 5}]
    assert list(coco_figures(ground_truth, [])["per_class"]) == ["cat (3)", "cat (4)", "5"]


GOOD = found(1, 3, [1, 2, 3, 4])


@pytest.mark.parametrize(
    ("results", "said"),
    [
        ({"AP": 1}, "must be a list of detections, got dict"),
        (3, "must be a list of detections, got int"),
        ([GOOD, 1], "detection 1: needs a mapping .* got 1"),
        ([GOOD, GOOD, None], "detection 2: needs a mapping .* got None"),
        ([GOOD | {"image_id": 99}], "detection 0: image_id 99 is not in the annotation file"),
        ([GOOD, GOOD | {"category_id": 1}], "detection 1: category_id 1 is not in the annotation file"),
        ([{"category_id": 3, "bbox": [1, 2, 3, 4], "score": 1}], "detection 0: image_id None"),
        ([GOOD | {"image_id": "1"}], "image_id '1'"),
        ([GOOD | {"image_id": [1]}], r"image_id \[1\]"),
        ([GOOD | {"bbox": [1, 2, 3]}], r"detection 0: needs bbox \[x, y, width, height\].*got bbox \[1, 2, 3\]"),
        ([GOOD | {"bbox": None}], "got bbox None"),
        ([GOOD | {"bbox": [1, 2, 3, math.nan]}], "finite numbers, got bbox .*nan"),
        ([GOOD | {"score": math.inf}], "score inf"),
        ([GOOD | {"score": "high"}], "score 'high'"),
        ([{k: v for k, v in GOOD.items() if k != "score"}], "score None"),
    ],
)
def test_bad_results_name_the_entry(results, said):
    with pytest.raises(ValueError, match=said):
        coco_figures(truth((1, 3, [10, 10, 20, 20])), results)
    with pytest.raises(ValueError, match=said):
        check_results(truth(), results)


class Oracle(nn.Module):
    """Gives prepared outputs, one an image."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = itertools.chain(outputs)
        self.modes, self.shapes = [], []

    def forward(self, images):
        self.modes.append(self.training)
        self.shapes += [(image.dtype, tuple(image.shape), torch.is_grad_enabled()) for image in images]
        return [next(self.outputs) for _ in images]


def test_sparse_category_ids_come_back(shapes, tmp_path):
    """Ids become labels 1, 2, ... in the data set and ids again in the results: repeating the truth has AP 1."""
    raw = json.loads((shapes / "annotations/val.json").read_text())
    ids = {1: 90, 2: 5, 3: 44, 4: 1, 5: 13}
    for category in raw["categories"]:
        category["id"] = ids[category["id"]]
    for annotation in raw["annotations"]:
        annotation["category_id"] = ids[annotation["category_id"]]
    (tmp_path / "val.json").write_text(json.dumps(raw))
    split = load_annotations(shapes / "val", tmp_path / "val.json")
    assert split.category_ids == [1, 5, 13, 44, 90]

    dataset = CocoDetection(split, eval_transform())
    targets = [dataset[index][1] for index in range(len(dataset))]
    outputs = [{key: t[key] for key in ("boxes", "labels")} | {"scores": torch.ones(len(t["labels"]))} for t in targets]
    oracle = Oracle(outputs)
    loader = eval_loader(dataset, batch_size=4, workers=0)
    results = detect(oracle, loader, split.category_ids, device=CPU)
    expected = [(a["image_id"], a["category_id"]) for a in raw["annotations"]]
    assert [(entry["image_id"], entry["category_id"]) for entry in results] == expected
    for entry, annotation in zip(results, raw["annotations"], strict=True):
        assert entry["bbox"] == pytest.approx(annotation["bbox"], abs=0.01)
    assert oracle.shapes == [(torch.float32, (3, 80, 96), False)] * 6

    figures = evaluate(Oracle(outputs), loader, split.category_ids, split.raw, device=CPU)
    assert figures["AP"] > 0.99
    wrong = evaluate(Oracle(outputs), loader, split.category_ids[::-1], split.raw, device=CPU)
    assert wrong["AP"] < 0.5


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_model_is_restored(training):
    batch = Batch([torch.zeros(3, 8, 8, dtype=torch.uint8)], [{"image_id": 1}], 1.0, True, [])
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0)}
    model = Oracle([nothing]).train(training)
    figures = evaluate(model, [batch], [3, 17, 90], truth((1, 3, [1, 1, 9, 9])), device=CPU)
    assert figures["AP"] == 0
    assert model.modes == [False]
    assert model.training is training
    with pytest.raises(StopIteration):  # no output is left
        detect(model, [batch], [3, 17, 90], device=CPU)
    assert model.modes == [False, False]
    assert model.training is training


NOTHING = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0)}
IMAGE = torch.zeros(3, 8, 8, dtype=torch.uint8)


def test_an_image_that_could_not_be_read_has_no_detection_and_is_told(caplog):
    box = {"boxes": torch.tensor([[1.0, 1, 10, 10]]), "labels": torch.tensor([1]), "scores": torch.ones(1)}
    batches = [Batch([], [], 0.0, True, ["image 2.png is gone"]), Batch([IMAGE], [{"image_id": 1}], 0.5, True, [])]
    ground_truth = truth((1, 3, [1, 1, 9, 9]), (2, 3, [1, 1, 9, 9]), images=2)
    caplog.set_level(logging.WARNING, logger=log.name)
    figures = evaluate(Oracle([box]), batches, [3, 17, 90], ground_truth, device=CPU)
    assert figures["AR100"] == pytest.approx(0.5)
    assert "counts as without a detection: image 2.png is gone" in caplog.text


def test_a_stop_request_ends_an_evaluation_without_figures():
    stop, model = StopRequest(), Oracle([NOTHING] * 3)

    def batches():
        for image_id in (1, 2, 3):
            if image_id == 2:
                stop.received = "SIGTERM"
            yield Batch([IMAGE], [{"image_id": image_id}], 1.0, True, [])

    assert evaluate(model, batches(), [3, 17, 90], truth(images=3), device=CPU, stop=stop) is None
    assert len(model.shapes) == 1


def gather_share(world, ground_truth, detections):
    images = [entry["id"] for entry in ground_truth["images"]][world.rank :: world.size]
    mine = [entry for image_id in images for entry in detections if entry["image_id"] == image_id]
    return gather_results(mine, ground_truth, world)


def test_results_of_several_processes_come_in_the_order_of_one(together):
    ground_truth, detections = random_case(0)
    ground_truth["images"].reverse()
    order = [entry["id"] for entry in ground_truth["images"]]
    detections.sort(key=lambda entry: order.index(entry["image_id"]))
    assert gather_results(detections, ground_truth, ALONE) is detections
    gathered, others = together(3, gather_share, ground_truth, detections)[:2]
    assert gathered == detections
    assert others is None


def interrupt_one(world):
    stop = StopRequest()
    if world.rank == 1:
        stop.received = "SIGTERM"
    batches = [Batch([IMAGE], [{"image_id": world.rank + 1}], 1.0, True, [])]
    ground_truth = truth((1, 3, [1, 1, 9, 9]), images=2)
    return evaluate(Oracle([NOTHING]), batches, [3, 17, 90], ground_truth, device=CPU, world=world, stop=stop)


def test_one_process_that_is_asked_to_stop_stops_all(together):
    assert together(2, interrupt_one) == [None, None]
