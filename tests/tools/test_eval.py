"""tools/eval.py: the figures of a checkpoint, and those of a results file."""

import json
import re
import shutil
from pathlib import Path

import pytest
from torchvision.ops import box_convert

from data import CocoDetection, eval_transform, load_annotations
from data.files import without_nan
from data.segmentation import encode_masks
from engine.evaluation.coco_eval import COCO_METRICS, coco_metrics
from models.checkpoint import load_checkpoint

TOOL = Path(__file__).resolve().parents[2] / "tools/eval.py"


@pytest.fixture(scope="module")
def judged(run_process, plain_run, tmp_path_factory):
    """What a process said of last.pt, and the folder that it wrote into."""
    folder = tmp_path_factory.mktemp("judged")
    options = ["--config", plain_run / "config.yaml", "--checkpoint", plain_run / "last.pt", "data.num_workers=0"]
    outputs = ["--json", folder / "deep/figures.json", "--detections", folder / "detections.json"]
    outputs += ["--html", folder / "page.html"]
    return run_process(TOOL, *options, *outputs, cwd=folder), folder


def test_a_checkpoint_has_the_figures_of_its_training(judged, plain_run):
    (code, out, err), folder = judged
    assert (code, err) == (0, "")
    figures = json.loads((folder / "deep/figures.json").read_text())
    last = [json.loads(line) for line in (plain_run / "metrics.jsonl").read_text().splitlines()][-1]
    assert {name: figures[name] for name in COCO_METRICS} == {name: last[f"val/{name}"] for name in COCO_METRICS}
    assert figures["per_class"] == {
        tag.removeprefix("val_per_class/"): ap for tag, ap in last.items() if tag.startswith("val_per_class/")
    }
    assert figures["AR100"] > 0  # else equality says little

    for name in COCO_METRICS:
        shown = "-" if figures[name] is None else f"{100 * figures[name]:.1f}"
        assert re.search(rf"^  {name} +{shown} ", out, re.MULTILINE), name
    assert len(figures["per_class"]) == 5
    for name, ap in figures["per_class"].items():
        assert re.search(rf"^  {name} +\d+ +{100 * ap:.1f} ", out, re.MULTILINE), name
    assert "(weights of step 12) on 6 images of" in out
    assert "images of val are not checked again: " in out
    assert "\x1b" not in out


def test_best_thresholds_are_those_of_the_training(judged, plain_run):
    (_, out, _), folder = judged
    figures = json.loads((folder / "deep/figures.json").read_text())
    metrics = without_nan(load_checkpoint(plain_run / "last.pt")["metrics"])
    names = [name for name in metrics if name.startswith(("score_threshold", "per_class_", "F1", "empty_"))]
    assert len(names) == 10
    assert {name: figures[name] for name in names} == {name: metrics[name] for name in names}
    last = [json.loads(line) for line in (plain_run / "metrics.jsonl").read_text().splitlines()][-1]
    assert last["val/F1"] == figures["F1"]
    assert last["val/score_threshold"] == figures["score_threshold"]
    lost = sum(figures["per_class_missed"].values())
    confused = sum(entry["objects"] for entry in figures["confusions"])
    assert sum(figures["per_class_correct"].values()) + confused + lost == sum(figures["per_class_objects"].values())
    assert f"objects at these thresholds: {sum(figures['per_class_correct'].values())} of " in out
    assert "<h2>Confusion matrix</h2>" in (folder / "page.html").read_text()
    events = b"".join(file.read_bytes() for file in plain_run.glob("events.out.tfevents.*"))
    assert events.count(b"val/score_curves") == events.count(b"val/confusion_matrix") == 1


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_run_needs_no_config(judged, run_tool, plain_run, tmp_path, checkpoint):
    run = shutil.copytree(plain_run, tmp_path / "run")
    arguments = ["data.num_workers=0", "--batch-size", 2, "--device", "cpu", "--json", tmp_path / "figures.json"]
    given = run / "last.pt" if checkpoint else run
    code, out, err = run_tool("eval", *([given, *arguments] if checkpoint else [*arguments, given]))
    assert (code, err) == (0, "")
    expected = json.loads((judged[1] / "deep/figures.json").read_text())
    assert json.loads((tmp_path / "figures.json").read_text()) == expected
    assert (run / "last.detections.json").is_file()
    assert f"{run / 'last.pt'} (weights of step 12)" in out


def test_its_detections_are_coco_results(judged, run_tool, shapes, tmp_path):
    (_, out, _), folder = judged
    detections = json.loads((folder / "detections.json").read_text())
    assert detections
    assert set(detections[0]) == {"image_id", "category_id", "bbox", "score"}
    assert f"detections: {folder / 'detections.json'} ({len(detections)})" in out
    files = ["--results", folder / "detections.json", "--annotations", shapes / "annotations/val.json"]
    code, again, err = run_tool("eval", *files, "--json", tmp_path / "again.json")
    assert (code, err) == (0, "")
    assert json.loads((tmp_path / "again.json").read_text()) == json.loads((folder / "deep/figures.json").read_text())
    tables = [text[text.index("  metric") : text.index("\n\nmetrics:")] for text in (out, again)]
    assert tables[0] == tables[1]
    assert not list(tmp_path.glob("*.partial"))


def test_detections_lie_beside_the_checkpoint(run_tool, dcn_run, tmp_path):
    dcn_run = shutil.copytree(dcn_run, tmp_path / "run")
    # overrides may stand anywhere
    files = ["--config", dcn_run / "config.yaml", "data.num_workers=0", "--checkpoint", dcn_run / "best.pt"]
    code, out, _ = run_tool("eval", *files, "train.batch_size=3", "model.fcos.score_threshold=0.6")
    assert code == 0
    assert "these options have no effect:\n  - model.fcos.score_threshold: model.detector is faster_rcnn\n" in out
    assert f"detections: {dcn_run / 'best.detections.json'} (" in out
    assert json.loads((dcn_run / "best.detections.json").read_text())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not valid JSON"),
        ("3", "must be a list of detections, got int"),
        ('{"AP": 1}', "must be a list of detections, got dict"),
        (
            '{"images": [], "annotations": []}',
            "got dict (a data set); tools/predict.py --annotations writes COCO results",
        ),
        ("[1]", "detection 0: expected a mapping"),
        ('[{"image_id": 99}]', "detection 0: image_id 99 is not in the annotation file"),
        ('[{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3], "score": 1}]', "expected bbox [x, y, width, height]"),
    ],
)
def test_results_that_are_none(run_tool, shapes, tmp_path, content, said):
    (tmp_path / "results.json").write_text(content)
    files = ["--results", tmp_path / "results.json", "--annotations", shapes / "annotations/val.json"]
    code, out, err = run_tool("eval", *files)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert said in err


def renamed(tmp_path, shapes) -> list[str]:
    raw = json.loads((shapes / "annotations/val.json").read_text())
    raw["categories"].pop(0)
    kept = {category["id"] for category in raw["categories"]}
    raw["annotations"] = [entry for entry in raw["annotations"] if entry["category_id"] in kept]
    (tmp_path / "val.json").write_text(json.dumps(raw))
    return [f"data.val.annotations={tmp_path}/val.json"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--checkpoint", "no.pt"], "checkpoint no.pt does not exist (resolved: /"),
        (["--config", "no.yaml"], "config no.yaml does not exist"),
        (["data.val.images=nowhere"], "image folder nowhere does not exist (resolved: /"),
        (["device=cuda:99"], "device 'cuda:99' is not available"),
        (["model.backbone.dcn_v2_stages=[2]"], "model.backbone.dcn_v2_stages: [] in the checkpoint, [2] in the config"),
        (renamed, "differ from those of "),
        (["--json", "/proc/none/figures.json"], "/proc/none"),
    ],
)
def test_errors_are_one_message(run_tool, plain_run, shapes, tmp_path, arguments, said):
    if callable(arguments):
        arguments = arguments(tmp_path, shapes)
    files = {"--config": plain_run / "config.yaml", "--checkpoint": plain_run / "last.pt"}
    files["--detections"] = tmp_path / "detections.json"
    options = [text for option, file in files.items() if option not in arguments for text in (option, file)]
    code, _, err = run_tool("eval", *options, *arguments, cwd=tmp_path)
    assert code == 2
    assert err.startswith("error: ")
    assert said in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--config", "demo"],
        ["--checkpoint", "a.pt"],
        ["--results", "a.json"],
        ["--annotations", "a.json"],
        ["--config", "demo", "--checkpoint", "a.pt", "--results", "a.json"],
        ["--config", "demo", "--results", "a.json", "--annotations", "b.json"],
        ["runs/a", "--config", "demo"],
        ["runs/a", "--checkpoint", "a.pt"],
        ["runs/a", "--results", "a.json", "--annotations", "b.json"],
        ["data.num_workers=0"],
        ["runs/a", "runs/b"],
    ],
)
def test_either_a_checkpoint_or_results(run_tool, arguments):
    code, _, err = run_tool("eval", *arguments)
    assert code == 2
    expected = "expected one RUN" if "runs/b" in arguments else "give either RUN, or --config and --checkpoint, or"
    assert expected in err


@pytest.fixture
def with_masks(shapes, tmp_path):
    """Results with the true masks, but for every other one moved, and the arguments that judge them."""
    split = load_annotations(shapes / "val", shapes / "annotations/val.json", invalid_masks="raise")
    results = []
    for index, (_, target) in enumerate(CocoDetection(split, eval_transform(), masks=True)):
        masks = target["masks"].roll(3 * (index % 2), -1)
        for bbox, label, rle in zip(
            box_convert(target["boxes"], "xyxy", "xywh").tolist(),
            target["labels"].tolist(),
            encode_masks(masks),
            strict=True,
        ):
            category = split.category_ids[label - 1]
            results.append({"image_id": target["image_id"], "category_id": category, "bbox": bbox, "score": 0.5})
            results[-1]["segmentation"] = rle
    return split, results, ["--results", tmp_path / "results.json", "--annotations", shapes / "annotations/val.json"]


def test_results_with_masks_are_evaluated_by_both(run_tool, with_masks, tmp_path):
    split, results, files = with_masks
    (tmp_path / "results.json").write_text(json.dumps(results))
    code, out, err = run_tool("eval", *files, "--json", tmp_path / "figures.json")
    assert (code, err) == (0, "")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert without_nan(coco_metrics(split.raw, results)).items() <= figures.items()
    assert figures["AP"] == pytest.approx(1)
    assert 0.3 < figures["mask_AP"] < 0.95
    shown = f"{100 * figures['mask_AP']:.1f}"
    assert re.search(r"^  metric  box x100  mask x100  over$", out, re.MULTILINE)
    assert re.search(rf"^  AP +100\.0 +{shown} +IoU 0\.50:0\.95$", out, re.MULTILINE)
    assert re.search(r"^  class +objects  box AP  mask AP  best threshold  precision  recall  F1$", out, re.MULTILINE)
    for name, ap in figures["mask_per_class"].items():
        assert re.search(rf"^  {name} +\d+ +100\.0 +{100 * ap:.1f} ", out, re.MULTILINE), name


def test_results_without_boxes(run_tool, with_masks, tmp_path):
    split, results, files = with_masks
    for entry in results:
        del entry["bbox"]
    (tmp_path / "results.json").write_text(json.dumps(results))
    code, _, err = run_tool("eval", *files, "--json", tmp_path / "figures.json")
    assert (code, err) == (0, "")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert without_nan(coco_metrics(split.raw, results)).items() <= figures.items()
    assert 0.3 < figures["AP"] < 0.95, "the moved masks have moved boxes"


def test_masks_that_cannot_be_evaluated(run_tool, with_masks, tmp_path):
    _, results, files = with_masks
    del results[3]["segmentation"]
    (tmp_path / "results.json").write_text(json.dumps(results))
    code, _, err = run_tool("eval", *files)
    assert code == 2
    assert "detection 3 has no segmentation" in err


def test_objects_without_a_mask_do_not_prevent_evaluation(run_tool, with_masks, shapes, tmp_path):
    split, results, _ = with_masks
    (tmp_path / "results.json").write_text(json.dumps(results))
    raw = json.loads((shapes / "annotations/val.json").read_text())
    for index in (1, 4):
        del raw["annotations"][index]["segmentation"]
    (tmp_path / "val.json").write_text(json.dumps(raw))
    files = ["--results", tmp_path / "results.json", "--annotations", tmp_path / "val.json"]
    options = [*files, "--json", tmp_path / "figures.json"]
    code, _, err = run_tool("eval", *options)
    assert code == 0
    assert err.startswith(f"warning: annotation file {tmp_path}/val.json: only boxes are evaluated; --ignore-unmasked")
    assert f"annotations without a valid mask: 2; the first: annotation {raw['annotations'][1]['id']} in image" in err
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert without_nan(coco_metrics(split.raw, results, masks=False)).items() <= figures.items()
    assert "mask_AP" not in figures
    code, _, err = run_tool("eval", *options, "--ignore-unmasked")
    assert code == 0
    assert "the metrics of masks ignore them; annotations without a valid mask: 2; the first" in err
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["AP"] == pytest.approx(1)
    assert 0.3 < figures["mask_AP"] < 0.95


def test_detections_beyond_the_limit_are_reported_and_can_count(run_tool, tmp_path):
    boxes = [[index % 15 * 40 + 2, index // 15 * 40 + 2, 30, 30] for index in range(150)]
    object_of = {"image_id": 1, "category_id": 1, "area": 900}
    entries = [object_of | {"id": i, "bbox": box} for i, box in enumerate(boxes, start=1)]
    image = {"id": 1, "file_name": "a.png", "width": 620, "height": 420}
    raw = {"images": [image], "categories": [{"id": 1, "name": "nut"}], "annotations": entries}
    (tmp_path / "val.json").write_text(json.dumps(raw))
    (tmp_path / "results.json").write_text(json.dumps([entry | {"score": 0.9} for entry in entries]))
    files = ["--results", tmp_path / "results.json", "--annotations", tmp_path / "val.json"]
    code, out, err = run_tool("eval", *files)
    assert code == 0
    assert re.search(r"^  AP +66\.3 ", out, re.MULTILINE)
    assert "1 image with more than 100 objects of a class (up to 150)" in err
    assert "1 image with more than 100 detections of a class (up to 150)" in err
    code, out, err = run_tool("eval", *files, "--max-detections", 300, "--json", tmp_path / "figures.json")
    assert (code, err) == (0, "")
    assert re.search(r"^  AP +100\.0 ", out, re.MULTILINE)
    assert re.search(r"^  AR300 +100\.0 +300 detections per image$", out, re.MULTILINE)
    assert "AP, ARs, ARm and ARl count up to 300 detections of a class per image" in out
    assert json.loads((tmp_path / "figures.json").read_text())["max_detections"] == 300
    code, _, err = run_tool("eval", *files, "--max-detections", 99)
    assert code == 2
    assert "must be an integer of at least 100, got '99'" in err


def test_missing_results(run_tool, shapes, tmp_path):
    code, _, err = run_tool("eval", "--results", "no.json", "--annotations", shapes / "annotations/val.json")
    assert code == 2
    assert "results file no.json does not exist (resolved: /" in err
    (tmp_path / "results.json").write_text("[]")
    code, _, err = run_tool("eval", "--results", tmp_path / "results.json", "--annotations", "none.json")
    assert code == 2
    assert "annotation file none.json does not exist" in err


def test_help(run_tool):
    code, out, _ = run_tool("eval", "--help")
    assert code == 0
    assert "examples:\n  python tools/eval.py runs/demo_dcn" in out


@pytest.fixture(scope="module")
def averaged_run(run_tool, tiny_config, tmp_path_factory):
    """A finished run with averaged weights."""
    folder = tmp_path_factory.mktemp("averaged") / "run"
    options = ["--config", tiny_config, "--run-dir", folder, "train.ema_decay=0.99", "train.epochs=1"]
    assert run_tool("train", *options).code == 0
    return folder


def test_averaged_weights_are_evaluated_unless_the_raw_are_asked_for(run_tool, averaged_run, tiny_config, tmp_path):
    lines = map(json.loads, (averaged_run / "metrics.jsonl").read_text().splitlines())
    (judged,) = (line for line in lines if "val/AR100" in line)
    found = []
    for arguments, said, figure in (
        ([], "(averaged weights of step 6)", "val"),
        (["--weights", "ema"], "(averaged weights of step 6)", "val"),
        (["--weights", "raw"], "(weights of step 6)", "val_no_ema"),
    ):
        files = ["--json", tmp_path / "figures.json", "--detections", tmp_path / "detections.json"]
        options = ["--config", tiny_config, "--checkpoint", averaged_run / "last.pt"]
        code, out, err = run_tool("eval", *options, *files, *arguments)
        assert (code, err) == (0, "")
        assert said in out
        assert json.loads((tmp_path / "figures.json").read_text())["AP"] == judged[f"{figure}/AP"]
        found.append(json.loads((tmp_path / "detections.json").read_text()))
    assert found[0] == found[1] != found[2]


def test_averaged_weights_that_do_not_exist(run_tool, plain_run, tiny_config):
    options = ["--config", tiny_config, "--checkpoint", plain_run / "last.pt", "--weights", "ema"]
    code, _, err = run_tool("eval", *options)
    assert code == 2
    assert "does not contain EMA weights, because train.ema_decay was off; use --weights raw" in err
    code, _, err = run_tool("eval", "--results", "a.json", "--annotations", "b.json", "--weights", "raw")
    assert code == 2
    assert "--weights has no effect: --results evaluates a file of detections without a model" in err
