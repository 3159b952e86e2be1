"""AP of masks against pycocotools used as its authors do, and the way from masks to COCO results and back."""

import contextlib
import copy
import io
import json
import math

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from data import Batch, CocoDetection, eval_loader, eval_transform, load_annotations
from data.files import without_nan
from engine.evaluation.coco_eval import COCO_METRICS, coco_metrics, match_results
from engine.evaluation.detect import detect, evaluate, gather_results
from engine.evaluation.metrics import describe_metrics, scalar_metrics
from engine.evaluation.results import check_results

CPU = torch.device("cpu")
WIDTH, HEIGHT = 200, 160
CATEGORIES = [{"id": 90, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 17, "name": "hen"}]
MASK_METRICS = [f"mask_{name}" for name in COCO_METRICS]


def ellipse(x, y, w, h):
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return (((columns - x) / w) ** 2 + ((rows - y) / h) ** 2 <= 1).astype(np.uint8)


def packed(mask):
    rle = coco_mask.encode(np.asfortranarray(mask))
    return rle | {"counts": rle["counts"].decode()}


def runs(mask):
    """Run lengths as a list, by a loop."""
    counts, value = [0], 0
    for pixel in mask.T.flatten().tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return {"size": [HEIGHT, WIDTH], "counts": counts}


def corners(x, y, w, h):
    """An ellipse as a polygon."""
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    return [np.stack([x + w * np.cos(angles), y + h * np.sin(angles)], 1).round(2).flatten().tolist()]


def truth(*objects, images=1):
    """A COCO file of objects given as (image id, category id, segmentation, mask) or with a dict of more."""
    annotations = []
    for index, (image_id, category_id, segmentation, mask, *more) in enumerate(objects, start=1):
        bbox = coco_mask.toBbox(coco_mask.encode(np.asfortranarray(mask))).tolist()
        entry = {"id": index, "image_id": image_id, "category_id": category_id, "bbox": bbox, "iscrowd": 0}
        entry |= {"area": float(mask.sum()), "segmentation": segmentation}
        annotations.append(entry | (more[0] if more else {}))
    images = [{"id": n, "file_name": f"{n}.png", "width": WIDTH, "height": HEIGHT} for n in range(1, images + 1)]
    return {"images": images, "categories": CATEGORIES, "annotations": annotations}


def found(image_id, category_id, mask, score=0.9):
    bbox = coco_mask.toBbox(coco_mask.encode(np.asfortranarray(mask))).tolist()
    entry = {"image_id": image_id, "category_id": category_id, "bbox": bbox, "score": score}
    return entry | {"segmentation": packed(mask)}


def random_case(seed):
    """Ground truth of all sizes, kinds of outlines and crowd regions, and detections near it and elsewhere."""
    rng = np.random.default_rng(seed)
    objects, detections = [], []
    for image_id in range(1, 7):
        for _ in range(int(rng.integers(0, 6))):
            sides = rng.choice([7, 25, 60], 2) * rng.uniform(0.7, 1.3, 2)
            shape = [float(v) for v in [*rng.uniform(30, 130, 2), *sides]]
            mask, category = ellipse(*shape), int(rng.choice([3, 17, 90]))
            crowd = int(rng.random() < 0.2)
            outline = [runs(mask), packed(mask), corners(*shape)][0 if crowd else int(rng.integers(3))]
            objects.append((image_id, category, outline, mask, {"iscrowd": crowd}))
            for _ in range(int(rng.integers(0, 4))):
                near = [v + float(rng.normal(0, 0.1 * s)) for v, s in zip(shape, [*sides, *sides], strict=True)]
                kind = category if rng.random() < 0.8 else 3
                detections.append(found(image_id, kind, ellipse(*near), float(rng.random())))
    return truth(*objects, images=6), detections


def by_hand(ground_truth, detections, folder, kind, categories=None):
    """Evaluate as in the manual of pycocotools: both from files."""
    (folder / "gt.json").write_text(json.dumps(ground_truth))
    (folder / "dt.json").write_text(json.dumps(detections))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(folder / "gt.json"))
        evaluation = COCOeval(coco, coco.loadRes(str(folder / "dt.json")), kind)
        if categories:
            evaluation.params.catIds = categories
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [math.nan if value == -1 else value for value in evaluation.stats.tolist()]


def without(results, field):
    return [{key: value for key, value in entry.items() if key != field} for entry in results]


@pytest.mark.parametrize("seed", range(3))
def test_metrics_are_those_of_pycocotools(seed, tmp_path):
    ground_truth, detections = random_case(seed)
    before = copy.deepcopy([entry["segmentation"] for entry in ground_truth["annotations"]])
    figures = coco_metrics(ground_truth, detections)
    assert [entry["segmentation"] for entry in ground_truth["annotations"]] == before
    boxes = by_hand(ground_truth, without(detections, "segmentation"), tmp_path, "bbox")
    # without boxes pycocotools uses the areas of the masks
    masks = by_hand(ground_truth, without(detections, "bbox"), tmp_path, "segm")
    assert 0.05 < masks[0] < 0.9
    assert masks != boxes
    assert [figures[name] for name in COCO_METRICS] == pytest.approx(boxes, rel=1e-12, abs=0, nan_ok=True)
    assert [figures[name] for name in MASK_METRICS] == pytest.approx(masks, rel=1e-12, abs=0, nan_ok=True)
    for category in CATEGORIES:
        alone = by_hand(ground_truth, without(detections, "bbox"), tmp_path, "segm", [category["id"]])[0]
        assert figures["mask_per_class"][category["name"]] == pytest.approx(alone, abs=1e-12)
    assert coco_metrics(ground_truth, without(detections, "segmentation")).keys() == {*COCO_METRICS, "per_class"}
    assert scalar_metrics(figures).keys() == {*COCO_METRICS, *MASK_METRICS}


def test_results_without_boxes_use_the_boxes_around_the_masks(tmp_path):
    ground_truth, detections = random_case(3)
    results = without(detections, "bbox")
    boxes, masks = (by_hand(ground_truth, results, tmp_path, kind) for kind in ("bbox", "segm"))
    for same in (results, [entry | {"bbox": []} for entry in results]):
        figures = coco_metrics(ground_truth, same)
        assert [figures[name] for name in COCO_METRICS] == pytest.approx(boxes, rel=1e-12, abs=0, nan_ok=True)
        assert [figures[name] for name in MASK_METRICS] == pytest.approx(masks, rel=1e-12, abs=0, nan_ok=True)
    assert figures["AP"] == coco_metrics(ground_truth, detections)["AP"]
    assert match_results(ground_truth, results).evalImgs  # for the comparison of runs


def test_size_classes_go_by_the_mask(tmp_path):
    """A thin ring has a large box and a medium mask: its size category is that of the mask."""
    ring = ellipse(100, 80, 60, 60) - ellipse(100, 80, 55, 55)
    assert 32**2 < ring.sum() < 96**2 < 120**2
    figures = coco_metrics(truth((1, 3, packed(ring), ring)), [found(1, 3, ring)])
    assert (figures["mask_APm"], figures["mask_APl"]) == (pytest.approx(1), pytest.approx(math.nan, nan_ok=True))


def test_one_object_has_one_figure_whatever_its_outline_is_written_as():
    rows = [[20, 10, 120, 10, 120, 90, 20, 90]]
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[10:90, 20:120] = 1
    shifted = np.roll(mask, 12, axis=1)
    results = [found(1, 3, mask, 0.6), found(1, 3, shifted, 0.9)]
    outlines = [rows, runs(mask), packed(mask)]
    figures = [coco_metrics(truth((1, 3, outline, mask)), results) for outline in outlines]
    assert without_nan(figures[0]) == without_nan(figures[1]) == without_nan(figures[2])
    assert figures[0]["mask_AP"] == pytest.approx(0.5 + 6 / 20)  # the shifted one counts up to an IoU of 0.75


def test_perfect_masks_have_ap_1_and_shifted_ones_less():
    shapes = [(60, 50, 30, 20), (130, 90, 60, 60), (90, 120, 8, 9)]
    masks = [ellipse(*shape) for shape in shapes]
    ground_truth = truth(*((1, 3, packed(mask), mask) for mask in masks))
    figures = coco_metrics(ground_truth, [found(1, 3, mask) for mask in masks])
    assert [figures[f"mask_{name}"] for name in ("AP", "APs", "APm", "APl", "AR100")] == pytest.approx([1.0] * 5)
    assert figures["mask_per_class"]["cat"] == pytest.approx(1)
    shifted = coco_metrics(ground_truth, [found(1, 3, np.roll(mask, 4, axis=0)) for mask in masks])
    assert 0.2 < shifted["mask_AP"] < 0.9
    # the same boxes around other masks
    stripes = (np.arange(WIDTH) % 3 == 0).astype(np.uint8)
    halves = [found(1, 3, mask) | {"segmentation": packed(mask * stripes)} for mask in masks]
    assert coco_metrics(ground_truth, halves)["AP"] == pytest.approx(1)
    assert coco_metrics(ground_truth, halves)["mask_AP"] < 0.2


def test_masks_in_a_crowd_are_no_false_positives():
    alone, crowd, inside = ellipse(40, 40, 20, 20), ellipse(130, 90, 60, 50), ellipse(120, 90, 20, 30)
    results = [found(1, 3, alone, 0.5), found(1, 3, inside, 0.9)]
    ground_truth = truth((1, 3, packed(alone), alone), (1, 3, runs(crowd), crowd, {"iscrowd": 1}))
    assert coco_metrics(ground_truth, results)["mask_AP"] == pytest.approx(1)
    ground_truth["annotations"][1]["iscrowd"] = 0
    assert coco_metrics(ground_truth, results)["mask_AP"] < 0.6


def test_masks_are_evaluated_without_detections():
    mask = ellipse(40, 40, 20, 20)
    figures = coco_metrics(truth((1, 3, packed(mask), mask)), [], masks=True)
    assert figures["mask_AP"] == 0
    assert figures["mask_per_class"]["cat"] == 0
    assert math.isnan(figures["mask_APl"])
    assert describe_metrics(figures) == "AP 0.0, AP50 0.0, AP75 0.0, mask AP 0.0"
    assert "mask_AP" not in coco_metrics(truth((1, 3, None, mask)), [])
    json.dumps(without_nan(figures), allow_nan=False)


SMALL = ellipse(40, 40, 20, 20)
GOOD = found(1, 3, SMALL)


@pytest.mark.parametrize(
    ("results", "said"),
    [
        ([GOOD, GOOD | {"segmentation": None}], "detection 1 has no segmentation"),
        (without([GOOD], "bbox") + without([GOOD], "segmentation"), "detection 1 has no segmentation"),
        (
            [GOOD | {"segmentation": packed(SMALL.T)}],
            r"detection 0 must have run lengths of size \[160, 200\] .*, got \[200, 160\]",
        ),
        (
            [GOOD, GOOD | {"segmentation": packed(SMALL) | {"counts": "0"}}],
            "detection 1 must have run lengths of 32000 pixels .*, got 0",
        ),
        ([GOOD | {"segmentation": [[1, 2, 3, 4]]}], "detection 0 has a polygon that is not a list"),
        ([GOOD | {"bbox": [1, 2, 3]}], r"detection 0: expected bbox \[x, y, width, height\]"),
        (
            without([GOOD | {"score": "high"}], "bbox"),
            "detection 0: expected a finite score, got bbox None, score 'high'",
        ),
        ([1, GOOD], "detection 0: expected a mapping"),
    ],
)
def test_bad_results_name_the_entry(results, said):
    with pytest.raises(ValueError, match=said):
        coco_metrics(truth((1, 3, packed(SMALL), SMALL)), results)
    with pytest.raises(ValueError, match=said):
        check_results(truth(), results)


def test_ground_truth_without_a_mask_is_an_error():
    for segmentation, said in ((None, "has no segmentation"), ([[1, 2, 3, 4, 5, math.nan]], "not pixels")):
        with pytest.raises(ValueError, match=f"masks cannot be evaluated: annotation 1 .*{said}"):
            coco_metrics(truth((1, 3, segmentation, SMALL)), [GOOD])


@pytest.mark.parametrize("segmentation", [None, [], [[1, 2, 3]], {"size": [HEIGHT, WIDTH], "counts": "~"}])
def test_objects_without_a_mask_are_ignored_if_asked_for(segmentation, tmp_path):
    """The others have the metrics of pycocotools with a rectangular crowd region in their place."""
    ground_truth, detections = random_case(1)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    changed, expected = copy.deepcopy(ground_truth), copy.deepcopy(ground_truth)
    for place in (0, 3, 5):
        x, y, w, h = ground_truth["annotations"][place]["bbox"]
        inside = (columns >= x) & (columns < x + w) & (rows >= y) & (rows < y + h)
        changed["annotations"][place]["segmentation"] = segmentation
        expected["annotations"][place] |= {"segmentation": runs(inside.astype(np.uint8)), "iscrowd": 1}
    figures = coco_metrics(changed, detections, ignore_unmasked=True)
    masks = by_hand(expected, without(detections, "bbox"), tmp_path, "segm")
    assert [figures[name] for name in MASK_METRICS] == pytest.approx(masks, rel=1e-12, abs=0, nan_ok=True)
    boxes = coco_metrics(ground_truth, detections, masks=False)
    assert without_nan({name: figures[name] for name in boxes}) == without_nan(boxes)
    with pytest.raises(ValueError, match="masks cannot be evaluated: annotation 1 has"):
        coco_metrics(changed, detections)


def test_an_image_without_a_stated_size_may_have_detections_but_no_truth():
    ground_truth = truth((1, 3, packed(SMALL), SMALL), images=2)
    del ground_truth["images"][1]["width"]
    elsewhere = GOOD | {"image_id": 2, "segmentation": runs(SMALL)}
    assert coco_metrics(ground_truth, [GOOD, elsewhere])["mask_AP"] == pytest.approx(1)
    ground_truth["annotations"][0]["image_id"] = 2
    with pytest.raises(ValueError, match="its image has no width and height"):
        coco_metrics(ground_truth, [GOOD])


class Oracle(torch.nn.Module):
    """Returns the ground truth of a data set, image after image."""

    def __init__(self, dataset, spoil=lambda masks: masks):
        super().__init__()
        self.outputs = []
        for _, target in (dataset[index] for index in range(len(dataset))):
            masks = spoil(target["masks"][:, None].float() * 0.9)
            output = {"boxes": target["boxes"], "labels": target["labels"], "masks": masks}
            self.outputs.append(output | {"scores": torch.linspace(1, 0.5, len(masks))})

    def forward(self, images):
        return [self.outputs.pop(0) for _ in images]


def test_a_detector_that_finds_nothing_yet_has_a_mask_ap_of_0():
    model = Oracle([])
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0)}
    model.outputs = [nothing | {"masks": torch.zeros(0, 1, HEIGHT, WIDTH)}, nothing]
    batch = Batch([torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8)], [{"image_id": 1}], 1.0, True, [])
    ground_truth = truth((1, 3, packed(SMALL), SMALL))
    assert evaluate(model, [batch], [3, 17, 90], ground_truth, masks=True, device=CPU)["mask_AP"] == 0
    assert "mask_AP" not in evaluate(model, [batch], [3, 17, 90], ground_truth, device=CPU)


@pytest.fixture
def drawn(shapes):
    """The val split of drawn shapes, with masks."""
    split = load_annotations(shapes / "val", shapes / "annotations/val.json", invalid_masks="raise")
    return split, CocoDetection(split, eval_transform(), masks=True)


def test_masks_of_the_data_set_come_back(drawn):
    split, dataset = drawn
    loader = eval_loader(CocoDetection(split, eval_transform()), batch_size=4, workers=0)
    results = detect(Oracle(dataset), loader, split.category_ids, device=CPU)
    for result, annotation in zip(results, split.raw["annotations"], strict=True):
        area = coco_mask.area(result["segmentation"] | {"counts": result["segmentation"]["counts"].encode()})
        assert area == pytest.approx(annotation["area"], rel=0.15)
    figures = evaluate(Oracle(dataset), loader, split.category_ids, split.raw, masks=True, device=CPU)
    assert (figures["AP"], figures["mask_AP"]) == (pytest.approx(1), pytest.approx(1))
    assert without_nan(coco_metrics(split.raw, results)).items() <= without_nan(figures).items()
    shifted = Oracle(dataset, lambda masks: masks.roll(3, -1))
    figures = evaluate(shifted, loader, split.category_ids, split.raw, masks=True, device=CPU)
    assert figures["AP"] == pytest.approx(1)
    assert figures["mask_AP"] < 0.9


def gather_share(distributed, ground_truth, detections):
    images = [entry["id"] for entry in ground_truth["images"]][distributed.rank :: distributed.size]
    mine = [entry for image_id in images for entry in detections if entry["image_id"] == image_id]
    return gather_results(mine, ground_truth, distributed)


def evaluate_share(distributed, split, dataset):
    batches = [
        Batch([image], [{"image_id": target["image_id"]}], 1.0, True, [])
        for image, target in (dataset[index] for index in range(distributed.rank, len(dataset), distributed.size))
    ]
    model = Oracle(torch.utils.data.Subset(dataset, range(distributed.rank, len(dataset), distributed.size)))
    return evaluate(model, batches, split.category_ids, split.raw, masks=True, device=CPU, distributed=distributed)


def test_masks_of_several_processes_come_together(together, drawn):
    ground_truth, detections = random_case(0)
    detections.sort(key=lambda entry: entry["image_id"])
    gathered, other = together(2, gather_share, ground_truth, detections)
    assert gathered == detections
    assert other is None
    one, two = together(2, evaluate_share, *drawn)
    assert without_nan(one) == without_nan(two)
    assert one["mask_AP"] == pytest.approx(1)
