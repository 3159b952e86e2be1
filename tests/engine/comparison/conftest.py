"""Folders as finished runs leave them, with detections that are made up so that their quality is known."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from engine.building.data import read_split
from engine.building.model import build_model
from engine.comparison.compare import compare_runs
from engine.comparison.result import Comparison
from engine.config.loading import load_config
from engine.evaluation.coco_eval import coco_metrics
from engine.runs.checkpoint import save_checkpoint
from engine.runs.folder import LAST


def make_up(split, quality, seed=0, wrong=None):
    """COCO results that find each object with probability `quality`, with some noise and some nonsense."""
    draw = random.Random(seed)
    results = []
    for entry in split.raw["images"]:
        for truth in (truth for truth in split.raw["annotations"] if truth["image_id"] == entry["id"]):
            x, y, w, h = truth["bbox"]
            if draw.random() < quality:
                bbox = [x + draw.uniform(-2, 2), y + draw.uniform(-2, 2), w, h]
                category = wrong or truth["category_id"]
                results.append(
                    {"image_id": entry["id"], "category_id": category, "bbox": bbox, "score": draw.uniform(0.5, 1)}
                )
            nonsense = [draw.uniform(0, 60), draw.uniform(0, 50), 9.0, 7.0]
            results.append(
                {
                    "image_id": entry["id"],
                    "category_id": draw.choice(split.category_ids),
                    "bbox": nonsense,
                    "score": draw.uniform(0, 0.7),
                }
            )
    return results


def outline_all(split, shift, quality=0.8):
    """COCO results that find objects with the very boxes of the truth, and their masks moved to the right."""
    draw = random.Random(0)
    results = []
    for truth in split.raw["annotations"]:
        size = {entry["id"]: (entry["height"], entry["width"]) for entry in split.raw["images"]}[truth["image_id"]]
        packed = coco_mask.merge(coco_mask.frPyObjects(truth["segmentation"], *size))
        moved = np.roll(coco_mask.decode(packed), shift, axis=1)
        moved[:, :shift] = 0
        rle = coco_mask.encode(np.asfortranarray(moved))
        result = {key: truth[key] for key in ("image_id", "category_id", "bbox")}
        result |= {"score": draw.random(), "segmentation": rle | {"counts": rle["counts"].decode()}}
        results += [result] if draw.random() < quality else []
    return results


@pytest.fixture(scope="session")
def outlined(val_split):
    """`outlined(shift)`: COCO results with masks that lie so many pixels beside the truth, and its boxes."""
    return lambda shift: outline_all(val_split, shift)


@pytest.fixture(scope="session")
def val_split(tiny_config):
    return read_split(load_config(tiny_config).data, "val", masks=True)


@pytest.fixture(scope="session")
def made_up(val_split):
    """`made_up(quality, seed=0, wrong=None)`: COCO results on the val split."""
    return lambda quality, seed=0, wrong=None: make_up(val_split, quality, seed, wrong)


@pytest.fixture(scope="session")
def finish_run(tiny_config, val_split):
    """`finish_run(folder, *overrides, quality=..., state=..., records=...)` leaves there what a finished run leaves.

    The weights are random; the metrics, and last.detections.json, are those of made up detections, or of `results`.
    """

    def finish(folder: Path, *overrides, quality=0.5, results=None, state=None, records=None, weights=True) -> Path:
        config = load_config(tiny_config, overrides)
        train = read_split(config.data, "train")
        torch.manual_seed(config.seed)
        model, _ = build_model(config.model, config.data, len(train.class_names))
        results = make_up(val_split, quality, config.seed) if results is None else results
        whole = {
            "config": config.model_dump(mode="json"),
            "images_in_step": 2,
            "annotations": {"train": train.sha256, "val": val_split.sha256},
            "class_names": train.class_names,
            "category_ids": train.category_ids,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "step": 12,
            "last_eval_step": 12,
            "epoch": config.train.epochs,
            "evals_without_improvement": 0,
            "model": model.state_dict() if weights else {},
            "ema": None,
            "metrics": coco_metrics(val_split.raw, results),
        }
        folder.mkdir(parents=True)
        save_checkpoint(folder / LAST, whole | (state or {}))
        lines = records or [
            {"step": 4, "train/loss": 2.0, "time/step_s": 0.3, "time/data_s": 0.03, "memory/peak_gib": 1.5},
            {"step": 6, "val/AP": 0.125},
            {"step": 8, "train/loss": None, "time/step_s": 0.1, "time/data_s": 0.01, "memory/peak_gib": 2.0},
            {"step": 12, "train/loss": 0.5, "time/step_s": 0.2, "time/data_s": 0.05, "memory/peak_gib": 1.75},
            {"step": 12, "val/AP": 0.25 + config.seed / 100},
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / "last.detections.json").write_text(json.dumps(results))
        return folder

    return finish


MASK_RCNN = (
    "model.detector=mask_rcnn",
    "model.mask_rcnn={anchor_sizes: [16, 32, 64], box_head_channels: 16, mask_head_channels: 8,"
    " rpn_pre_nms_top_n_test: 20, rpn_post_nms_top_n_test: 20, score_threshold: 0.0, detections_per_image: 10}",
)


@pytest.fixture(scope="session")
def mask_options() -> tuple[str, ...]:
    """Overrides for a small detector with masks."""
    return MASK_RCNN


@pytest.fixture(scope="session")
def mask_folders(finish_run, outlined, made_up, tmp_path_factory) -> list[Path]:
    """Runs whose masks lie on the truth, and beside it with the same boxes, and a run without masks."""
    root = tmp_path_factory.mktemp("mask_runs")
    logged = {"step": 4, "train/loss": 1.0, "time/step_s": 0.4, "time/data_s": 0.02, "memory/peak_gib": 3.0}
    records = [logged, {"step": 6, "val/AP": 0.5, "val/mask_AP": 0.25}]
    return [
        finish_run(root / "good", *MASK_RCNN, results=outlined(0), records=records),
        finish_run(root / "shifted", *MASK_RCNN, "train.lr=0.001", results=outlined(3), records=records),
        finish_run(root / "boxes", quality=0.5),
    ]


@pytest.fixture(scope="session")
def mask_comparison(mask_folders) -> Comparison:
    """Of these; read it, do not change it."""
    return compare_runs(mask_folders, device="cpu", bootstrap_samples=150, seed=3, num_images=2, timed_images=0)


@pytest.fixture(scope="session")
def folders(finish_run, tmp_path_factory) -> list[Path]:
    """Two seeds without and two with DCN, which detects better, and one more run that detects as the first."""
    root = tmp_path_factory.mktemp("runs")
    dcn = "model.backbone.dcn_v2_stages=[2]"
    records = [
        {"step": 4, "train/loss": 1.0, "time/step_s": 0.4, "time/data_s": 0.02, "memory/peak_gib": 3.0},
        {"step": 6, "val/AP": 0.125},
        {"step": 12, "val/AP": 0.27},
    ]
    return [
        finish_run(root / "plain_seed0", quality=0.3),
        finish_run(root / "plain_seed1", "seed=1", quality=0.3),
        finish_run(root / "dcn_seed1", dcn, "seed=1", quality=0.95),
        finish_run(root / "dcn_seed2", dcn, "seed=2", quality=0.95, records=records),
        finish_run(root / "slow", "train.lr=0.001", quality=0.3),
    ]


@pytest.fixture(scope="session")
def comparison(folders) -> Comparison:
    """Of these runs; read it, do not change it."""
    return compare_runs(folders, device="cpu", bootstrap_samples=150, seed=3, num_images=4, timed_images=0)
