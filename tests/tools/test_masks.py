"""A run with masks from one end to the other: training, evaluation, comparison, pictures; and in two processes."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data import decode_masks
from data.segmentation import encode_masks
from engine.evaluation.coco_eval import COCO_METRICS, coco_metrics
from engine.runs.checkpoint import load_checkpoint, save_checkpoint

TOOLS = Path(__file__).resolve().parents[2] / "tools"
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
SECTION = """{anchor_sizes: [16, 32, 64], box_head_channels: 32, mask_head_channels: 16,
 rpn_pre_nms_top_n_train: 40, rpn_post_nms_top_n_train: 40,
 rpn_pre_nms_top_n_test: 20, rpn_post_nms_top_n_test: 20,
 rpn_batch_size_per_image: 32, box_batch_size_per_image: 16, score_threshold: 0.0, detections_per_image: 10}"""


@pytest.fixture(scope="module")
def options(tiny_config) -> list:
    return ["--config", tiny_config, "model.detector=mask_rcnn", f"model.mask_rcnn={SECTION}"]


@pytest.fixture(scope="module")
def run_folder(run_tool, options, tmp_path_factory) -> Path:
    """Folder of a finished run with masks and averaged weights; read it, do not change it."""
    folder = tmp_path_factory.mktemp("masks") / "run"
    code, out, err = run_tool("train", *options, "--run-dir", folder, "train.epochs=1", "train.ema_decay=0.5")
    assert (code, err) == (0, "")
    assert ", mask AP " in out
    return folder


def judged(folder) -> dict:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "val/AP" in line][-1]


@pytest.fixture
def boxes_run(dcn_run, tmp_path) -> Path:
    """A copy of a run without masks, for the detections that a comparison leaves in it."""
    return shutil.copytree(dcn_run, tmp_path / "boxes")


def test_masks_are_learned_and_logged(run_folder):
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    assert all(line["train/loss_mask"] > 0 for line in lines if "train/loss" in line)
    last = judged(run_folder)
    for kind in ("val", "val_no_ema"):
        assert {f"{kind}/mask_{name}" for name in COCO_METRICS} <= last.keys()
    assert len([tag for tag in last if tag.startswith("val_mask_per_class/")]) == 5


def test_a_checkpoint_has_the_masks_of_its_training(run_tool, run_folder, shapes, tmp_path):
    results = tmp_path / "results.json"
    for weights, kind in (("ema", "val"), ("raw", "val_no_ema")):
        files = ["--config", run_folder / "config.yaml", "--checkpoint", run_folder / "last.pt", "--weights", weights]
        code, out, err = run_tool("eval", *files, "--json", tmp_path / "a.json", "--detections", results)
        assert (code, err) == (0, "")
        assert "metric  box x100  mask x100  over" in out
        figures, last = json.loads((tmp_path / "a.json").read_text()), judged(run_folder)
        for name in (*COCO_METRICS, *(f"mask_{name}" for name in COCO_METRICS)):
            assert figures[name] == last[f"{kind}/{name}"], name
    detections = json.loads(results.read_text())
    assert set(detections[0]) == {"image_id", "category_id", "bbox", "score", "segmentation"}
    files = ["--results", results, "--annotations", shapes / "annotations/val.json"]
    assert run_tool("eval", *files, "--json", tmp_path / "b.json").code == 0
    assert json.loads((tmp_path / "b.json").read_text()) == figures


@pytest.mark.slow
def test_two_processes_find_the_masks_of_one(run_tool, run_process, run_folder, tmp_path):
    files = ["--config", run_folder / "config.yaml", "--checkpoint", run_folder / "last.pt", "train.batch_size=1"]
    one, two = (["--json", tmp_path / f"{n}.json", "--detections", tmp_path / f"{n}.results.json"] for n in (1, 2))
    assert run_tool("eval", *files, *one).code == 0
    code, _, err = run_process(*TWO, TOOLS / "eval.py", *files, *two, cwd=tmp_path)
    assert code == 0, err
    for kind in ("json", "results.json"):
        assert json.loads((tmp_path / f"1.{kind}").read_text()) == json.loads((tmp_path / f"2.{kind}").read_text())


def test_a_run_with_masks_resumes(run_tool, options, run_folder, tmp_path):
    folder = tmp_path / "run"
    more = ["--run-dir", folder, "train.epochs=1", "train.ema_decay=0.5"]
    assert run_tool("train", *options, *more, "train.max_steps=3").code == 0
    assert run_tool("train", *options, *more, "--resume", "auto").code == 0
    whole, resumed = (load_checkpoint(place / "last.pt")["model"] for place in (run_folder, folder))
    assert all((whole[key] == resumed[key]).all() for key in whole)


def copy_with(run_folder, shapes, folder, *, shift) -> dict:
    """Copy a run as one of another config, which finds all objects with masks beside them; gives its figures."""
    shutil.copytree(run_folder, folder)
    truth = json.loads((shapes / "annotations/val.json").read_text())
    size = truth["images"][0]["width"], truth["images"][0]["height"]
    results = []
    for index, entry in enumerate(truth["annotations"]):
        mask = np.roll(decode_masks([entry["segmentation"]], size)[0], shift, axis=1)
        result = {key: entry[key] for key in ("image_id", "category_id", "bbox")}
        results.append(result | {"score": index / 100, "segmentation": encode_masks(torch.tensor(mask[None]))[0]})
    state = load_checkpoint(folder / "last.pt")
    state["config"]["train"]["lr"] = 0.001 * (1 + shift)
    state["metrics"] = coco_metrics(truth, results)
    save_checkpoint(folder / "last.pt", state)
    (folder / "last.detections.json").write_text(json.dumps(results))
    return state["metrics"]


def test_a_run_with_masks_is_compared_and_drawn(run_tool, run_folder, boxes_run, tmp_path):
    files = ["--html", tmp_path / "report.html", "--timed-images", 0, "--bootstrap-samples", 100]
    code, out, err = run_tool("compare", boxes_run, run_folder, *files)
    assert (code, err) == (0, "")
    shown = f"{100 * judged(run_folder)['val/mask_AP50']:.1f}"
    assert re.search(rf"^  mask AP50 +- +{shown} +-$", out, re.MULTILINE)
    assert "Mask AP" not in out
    code, _, err = run_tool("visualize", run_folder, "--out", tmp_path, "--num-images", 1, "--score-threshold", 0)
    assert (code, err) == (0, "")
    assert Image.open(tmp_path / "000001_detections.png").width > 640


def test_masks_are_compared_beside_boxes(run_tool, run_folder, boxes_run, shapes, tmp_path):
    good, moved = (copy_with(run_folder, shapes, tmp_path / name, shift=n) for name, n in (("good", 0), ("moved", 3)))
    files = [
        "--html",
        tmp_path / "a.html",
        "--json",
        tmp_path / "a.json",
        "--timed-images",
        0,
        "--bootstrap-samples",
        100,
    ]
    code, out, err = run_tool("compare", tmp_path / "good", tmp_path / "moved", boxes_run, *files)
    assert (code, err) == (0, "")
    written = json.loads((tmp_path / "a.json").read_text())
    assert not {str(tmp_path / name) for name in ("good", "moved")} & {*written["settings"]["detected_now"]}
    found = written["differences"]["moved"]
    assert found["AP"]["value"] == found["AP"]["low"] == found["AP"]["high"] == 0
    for name in ("mask_AP", "mask_AP50", "mask_AP75", "mask_APs"):
        assert found[name]["value"] == pytest.approx(moved[name] - good[name], abs=1e-12), name
    assert found["mask_AP"]["value"] < found["mask_AP"]["high"] < 0
    assert "mask_AP" not in written["differences"]["boxes"]
    change, low, high = (f"{100 * found['mask_AP'][key]:+.1f}" for key in ("value", "low", "high"))
    cells = ["mask AP", f"{100 * good['mask_AP']:.1f}", f"{100 * moved['mask_AP']:.1f}", "-"]
    cells += [f"{change} ({low} to {high}) *", "-"]
    row = rf"^ +{' +'.join(map(re.escape, cells))}$"
    assert re.search(row, out, re.MULTILINE), out
    said = " ".join(out.split())
    assert "AP of moved is equal to that of good within 0.1 (95 % interval +0.0 to +0.0" in said
    assert f"Mask AP of moved is {change[1:]} lower than that of good (95 % interval {low} to {high}" in said
    assert "Masks, all classes" in (tmp_path / "a.html").read_text(encoding="utf-8")


def test_damaged_masks_are_reported_before_training(run_tool, options, shapes, tmp_path):
    raw = json.loads((shapes / "annotations/val.json").read_text())
    raw["annotations"][0]["segmentation"] = {"size": [96, 80], "counts": [7680]}
    (tmp_path / "val.json").write_text(json.dumps(raw))
    more = ["--run-dir", tmp_path / "run", f"data.val.annotations={tmp_path}/val.json", "train.max_steps=1"]
    code, _, err = run_tool("train", *options, *more)
    assert code == 2
    assert "annotations without a valid mask: 1;" in err
    assert "must have run lengths of size [80, 96] (height, width of its image), got [96, 80]" in err
    assert not (tmp_path / "run").exists()
    code, out, err = run_tool("train", *options, *more, "data.invalid_annotations=drop")
    assert (code, err) == (0, "")
    assert "val.json: annotations without a valid mask: 1; data.invalid_annotations skips them; the first: ann" in out
