"""What a run detects: read where it is certain to be about its last weights, else made anew."""

import functools
import json
import os

import pytest
import torch

from engine.building.data import build_eval_loader
from engine.comparison.detections import detect_with, load_model, read_val_split
from engine.comparison.loaded_runs import read_run
from engine.display.progress import log
from engine.evaluation.coco_eval import coco_metrics
from engine.evaluation.detect import detect
from engine.runs.checkpoint import load_checkpoint, save_checkpoint

CPU = torch.device("cpu")


def detect_again(folder, split):
    return detect_with(read_run(folder), split, device=CPU, track=lambda items, label, total: items)


@pytest.fixture(scope="module")
def by_model(finish_run, val_split, tmp_path_factory):
    """`by_model(seed)`: what the model of a run of that seed detects, its random weights being by that seed."""

    @functools.cache
    def run_model(seed):
        run = read_run(finish_run(tmp_path_factory.mktemp("model") / "run", f"seed={seed}"))
        loader = build_eval_loader(run.config, val_split, pin_memory=False)
        return detect(load_model(run), loader, val_split.category_ids, device=CPU)

    return run_model


def test_detections_of_the_last_weights_are_read(finish_run, val_split, made_up, tmp_path):
    found = detect_again(finish_run(tmp_path / "run", "seed=2", quality=0.7), val_split)
    assert not found.detected_now
    assert found.results == made_up(0.7, 2)
    expected = coco_metrics(val_split.raw, made_up(0.7, 2))
    assert expected["AP"] > 0.4
    assert found.matched.metrics()["AP"] == pytest.approx(expected["AP"], abs=1e-12)
    assert found.matched.metrics()["AP bar"] == pytest.approx(expected["per_class"]["bar"], abs=1e-12)


def older(file, folder):
    past = (folder / "last.pt").stat().st_mtime - 1
    os.utime(file, (past, past))


SPOILS = {
    "older than the weights": older,
    "of other weights": lambda file, _: file.write_text(json.dumps(json.loads(file.read_text())[:-12])),
    "damaged": lambda file, _: file.write_text(file.read_text()[:-9]),
    "not text": lambda file, _: file.write_bytes(b"\xff\xfe\x00"),
    "no results": lambda file, _: file.write_text("{}"),
    "of other images": lambda file, _: file.write_text(file.read_text().replace('"image_id": ', '"image_id": 99')),
    "missing": lambda file, _: file.unlink(),
}


@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS)
def test_other_files_are_replaced(finish_run, by_model, val_split, tmp_path, spoil, caplog):
    folder = finish_run(tmp_path / "run", quality=0.8)
    file = folder / "last.detections.json"
    spoil(file, folder)
    with caplog.at_level("WARNING", log.name):
        found = detect_again(folder, val_split)
    assert found.detected_now
    assert len(found.results) > 20
    assert found.results == by_model(0) == json.loads(file.read_text())
    assert found.matched.metrics()["AP"] == pytest.approx(coco_metrics(val_split.raw, found.results)["AP"], abs=1e-12)
    # the weights are random, the AP in the checkpoint is not
    assert f"{folder}: AP is 0.0" in caplog.text
    assert "on cpu, but was" in caplog.text


def test_what_was_written_is_read_next_time(finish_run, by_model, val_split, tmp_path, caplog):
    folder = finish_run(tmp_path / "run")
    state = load_checkpoint(folder / "last.pt")
    save_checkpoint(folder / "last.pt", state | {"metrics": coco_metrics(val_split.raw, by_model(0))})
    first, second = detect_again(folder, val_split), detect_again(folder, val_split)
    assert (first.detected_now, second.detected_now) == (True, False)
    assert first.results == second.results
    assert not caplog.text


def test_an_ap_that_is_not_there_on_both_sides(finish_run, val_split, tmp_path):
    folder = finish_run(tmp_path / "run")
    empty = val_split.raw | {"annotations": []}
    state = load_checkpoint(folder / "last.pt")
    save_checkpoint(folder / "last.pt", state | {"metrics": coco_metrics(empty, [])})
    os.utime(folder / "last.detections.json")
    assert not detect_again(folder, val_split.__class__(**(vars(val_split) | {"raw": empty}))).detected_now


def test_averaged_weights_count(finish_run, by_model, val_split, tmp_path):
    plain, averaged = finish_run(tmp_path / "a"), finish_run(tmp_path / "b", "seed=1")
    weights = load_checkpoint(averaged / "last.pt")["model"]
    save_checkpoint(plain / "last.pt", load_checkpoint(plain / "last.pt") | {"ema": {"model": weights}})
    assert detect_again(plain, val_split).results == by_model(1) != by_model(0)


def test_a_folder_that_cannot_be_written(finish_run, by_model, val_split, tmp_path, caplog):
    folder = finish_run(tmp_path / "run")
    (folder / "last.detections.json").unlink()
    (folder / "last.detections.json").mkdir()
    with caplog.at_level("WARNING", log.name):
        assert detect_again(folder, val_split).results == by_model(0)
    assert "last.detections.json cannot be written, so the next comparison runs the model again" in caplog.text


def test_the_val_split_of_a_run(finish_run, val_split, tmp_path):
    folder = finish_run(tmp_path / "run", weights=False)
    found = read_val_split(read_run(folder))
    assert (found.path, found.sha256, found.raw["images"]) == (
        val_split.path,
        val_split.sha256,
        val_split.raw["images"],
    )
    seen = []
    read_val_split(read_run(folder), lambda items: seen.extend(items) or iter(seen))
    assert len(seen) == len(val_split.arrays)


def test_a_val_split_that_is_not_there(finish_run, tmp_path):
    run = read_run(finish_run(tmp_path / "run", weights=False), ["data.val.annotations=gone.json"])
    with pytest.raises(ValueError, match=r"annotation file gone\.json does not exist") as error:
        read_val_split(run)
    assert f"this path comes from the config of {tmp_path}/run" in str(error.value)
    assert "add data.val.images=DIR data.val.annotations=FILE" in str(error.value)


def test_a_val_split_that_is_another(finish_run, shapes, val_split, tmp_path):
    folder = finish_run(tmp_path / "run", weights=False)
    changed = tmp_path / "val.json"
    changed.write_text((shapes / "annotations/val.json").read_text() + " ")
    with pytest.raises(ValueError, match=f"must begin with {val_split.sha256[:12]}, got ") as error:
        read_val_split(read_run(folder, [f"data.val.annotations={changed}"]))
    assert f"{folder} was evaluated on another annotation file than {changed}" in str(error.value)


def test_masks_are_read_and_evaluated(finish_run, mask_options, outlined, val_split, tmp_path):
    found = detect_again(finish_run(tmp_path / "run", *mask_options, results=outlined(2)), val_split)
    assert not found.detected_now
    assert found.results == outlined(2)
    expected, metrics = coco_metrics(val_split.raw, outlined(2)), found.metrics()
    assert 0.1 < expected["mask_AP"] < expected["AP"] - 0.1
    for name in ("AP", "AR10", "mask_AP", "mask_AP75", "mask_APs"):
        assert metrics[name] == pytest.approx(expected[name], abs=1e-12), name
    assert "mask_AR10" not in metrics
    assert "mask_AP bar" not in metrics


def without_masks(results):
    return [{key: value for key, value in entry.items() if key != "segmentation"} for entry in results]


@pytest.mark.parametrize("masks", ["missing", "others"])
def test_files_with_other_masks_are_replaced(finish_run, mask_options, outlined, val_split, tmp_path, masks, caplog):
    folder = finish_run(tmp_path / "run", *mask_options, results=outlined(0))
    file = folder / "last.detections.json"
    file.write_text(json.dumps(outlined(2) if masks == "others" else without_masks(outlined(0))))
    with caplog.at_level("WARNING", log.name):
        found = detect_again(folder, val_split)
    assert found.detected_now
    assert found.results == json.loads(file.read_text())
    assert found.results[0].keys() == {"image_id", "category_id", "bbox", "score", "segmentation"}
    here = coco_metrics(val_split.raw, found.results)["mask_AP"]
    assert found.metrics()["mask_AP"] == pytest.approx(here, abs=1e-12)
    assert f"{folder}: mask AP is {100 * here:.2f} on cpu" in caplog.text


def test_masks_of_a_run_without_are_not_its_own(finish_run, outlined, val_split, tmp_path):
    folder = finish_run(tmp_path / "run", results=outlined(0))
    found = detect_again(folder, val_split)
    assert found.detected_now
    assert found.matched_masks is None
    assert "segmentation" not in found.results[0]


def test_a_run_with_masks_that_finds_nothing(finish_run, mask_options, val_split, tmp_path):
    metrics = coco_metrics(val_split.raw, [], masks=True)
    found = detect_again(finish_run(tmp_path / "run", *mask_options, results=[], state={"metrics": metrics}), val_split)
    assert not found.detected_now
    assert found.metrics()["mask_AP"] == 0.0
