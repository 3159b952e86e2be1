"""A detector over a data set: from its boxes to COCO results and back, also in several processes."""

import itertools
import json
import logging

import pytest
import torch
from torch import nn

from data import Batch, CocoDetection, eval_loader, eval_transform, load_annotations
from engine.display.progress import log
from engine.distributed.preemption import StopRequest
from engine.distributed.processes import SINGLE_PROCESS
from engine.evaluation.detect import detect, evaluate, gather_results

CPU = torch.device("cpu")


def truth(*boxes, images=1):
    """A COCO file of a class 3 with boxes given as (image id, bbox)."""
    objects = [
        {"id": index, "image_id": image_id, "category_id": 3, "bbox": bbox, "iscrowd": 0, "area": bbox[2] * bbox[3]}
        for index, (image_id, bbox) in enumerate(boxes, start=1)
    ]
    entries = [{"id": n, "file_name": f"{n}.png", "width": 200, "height": 160} for n in range(1, images + 1)]
    categories = [{"id": 90, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 17, "name": "hen"}]
    return {"images": entries, "categories": categories, "annotations": objects}


class Oracle(nn.Module):
    """Returns prepared outputs, one per image."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = itertools.chain(outputs)
        self.modes, self.shapes = [], []

    def forward(self, images):
        self.modes.append(self.training)
        self.shapes += [(image.dtype, tuple(image.shape), torch.is_grad_enabled()) for image in images]
        return [next(self.outputs) for _ in images]


def test_sparse_category_ids_come_back(shapes, tmp_path):
    """Ids become labels 1, 2, ... in the data set and ids again in the results: repeating the ground truth has AP 1."""
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
    figures = evaluate(model, [batch], [3, 17, 90], truth((1, [1, 1, 9, 9])), device=CPU)
    assert figures["AP"] == 0
    assert model.modes == [False]
    assert model.training is training
    with pytest.raises(StopIteration):  # no output is left
        detect(model, [batch], [3, 17, 90], device=CPU)
    assert model.modes == [False, False]
    assert model.training is training


NOTHING = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0)}


IMAGE = torch.zeros(3, 8, 8, dtype=torch.uint8)


def test_an_unreadable_image_has_no_detection_and_is_logged(caplog):
    box = {"boxes": torch.tensor([[1.0, 1, 10, 10]]), "labels": torch.tensor([1]), "scores": torch.ones(1)}
    batches = [Batch([], [], 0.0, True, ["image 2.png is gone"]), Batch([IMAGE], [{"image_id": 1}], 0.5, True, [])]
    ground_truth = truth((1, [1, 1, 9, 9]), (2, [1, 1, 9, 9]), images=2)
    caplog.set_level(logging.WARNING, logger=log.name)
    figures = evaluate(Oracle([box]), batches, [3, 17, 90], ground_truth, device=CPU)
    assert figures["AR100"] == pytest.approx(0.5)
    assert "evaluated without detections: image 2.png is gone" in caplog.text


def test_a_stop_request_ends_an_evaluation_without_metrics():
    stop, model = StopRequest(), Oracle([NOTHING] * 3)

    def batches():
        for image_id in (1, 2, 3):
            if image_id == 2:
                stop.received = "SIGTERM"
            yield Batch([IMAGE], [{"image_id": image_id}], 1.0, True, [])

    assert evaluate(model, batches(), [3, 17, 90], truth(images=3), device=CPU, stop=stop) is None
    assert len(model.shapes) == 1


def interrupt_one(distributed):
    stop = StopRequest()
    if distributed.rank == 1:
        stop.received = "SIGTERM"
    batches = [Batch([IMAGE], [{"image_id": distributed.rank + 1}], 1.0, True, [])]
    ground_truth = truth((1, [1, 1, 9, 9]), images=2)
    return evaluate(
        Oracle([NOTHING]), batches, [3, 17, 90], ground_truth, device=CPU, distributed=distributed, stop=stop
    )


def test_one_process_that_is_asked_to_stop_stops_all(together):
    assert together(2, interrupt_one) == [None, None]


def gather_share(distributed, ground_truth, detections):
    images = [entry["id"] for entry in ground_truth["images"]][distributed.rank :: distributed.size]
    mine = [entry for image_id in images for entry in detections if entry["image_id"] == image_id]
    return gather_results(mine, ground_truth, distributed)


def test_results_of_several_processes_come_in_the_order_of_one(together):
    ground_truth = truth(images=8)
    ground_truth["images"].reverse()
    detections = [{"image_id": i, "score": score} for i in (8, 7, 5, 4, 3, 1) for score in (0.2, 0.9, 0.5)]
    assert gather_results(detections, ground_truth, SINGLE_PROCESS) is detections
    gathered, others = together(3, gather_share, ground_truth, detections)[:2]
    assert gathered == detections
    assert others is None
