"""tools/train.py from end to end: what it writes, how it goes on, and what it says to mistakes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from engine.config.loading import load_config
from engine.runs.checkpoint import load_checkpoint

TOOL = Path(__file__).resolve().parents[2] / "tools/train.py"
DCN = "model.backbone.dcn_v2_stages=[2]"
IMAGES = ["train/augmented", "val/confusion_matrix", "val/detections", "val/receptive_field", "val/score_curves"]


def metrics(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def trained_steps(folder) -> list[int]:
    return [line["step"] for line in metrics(folder) if "train/loss" in line]


def test_from_end_to_end_in_another_working_directory(first_process, plain_run, tiny_config, elsewhere):
    code, out, err = first_process
    assert (code, err) == (0, "")
    assert sorted(path.name for path in plain_run.iterdir() if "tfevents" not in path.name) == [
        "best.pt",
        "checked_images.json",
        "config.yaml",
        "last.pt",
        "metrics.jsonl",
        "step_00000006.pt",
        "train.log",
    ]
    for text in (out, (plain_run / "train.log").read_text()):
        for said in (
            "device: cpu (",
            "resnet18 without deformable convolutions",
            "parameter group  tensors  parameters  learning rate  weight decay",
            "effective batch 2 x 1 x 1 = 2, lr 0.005 (batch_size x grad_accum_steps x processes; train.lr 0.005 is ",
            "train      12    12 ",
            "val         6     6 ",
            "epoch 1/2 step 1: loss ",
            "epoch 2/2 step 12: AP ",
            "done: AP ",
            "python tools/eval.py runs/tiny",
        ):
            assert said in text
    assert "\x1b" not in out
    assert "not checked" not in out
    assert "\r" not in out

    config = load_config(plain_run / "config.yaml")
    assert config == load_config(tiny_config, ["data.num_workers=1"])
    state = load_checkpoint(plain_run / "last.pt")
    assert state["config"] == config.model_dump(mode="json")
    assert (state["step"], state["epoch"], state["batch"]) == (12, 2, 0)
    categories = json.loads(Path(config.data.train.annotations).read_text())["categories"]
    assert state["class_names"] == [category["name"] for category in categories]
    assert state["category_ids"] == [category["id"] for category in categories]
    assert state["parameters"] == 769_773
    assert state["revision"]
    assert trained_steps(plain_run) == list(range(1, 13))
    assert [line["step"] for line in metrics(plain_run) if "val/AP" in line] == [6, 12]
    events = EventAccumulator(str(plain_run)).Reload()
    assert b"model.backbone.dcn_v2_stages" in events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    (image,) = events.Images("val/detections")
    # 4 rows of 96x80 pixels, drawn 4 times as large, truth and detections side by side, and two lines of legend
    assert (image.step, image.width, image.height) == (12, 2 * (384 + 6), 4 * (320 + 6) + 2 * 26)
    assert sorted(events.Tags()["images"]) == IMAGES
    assert not (elsewhere / "runs/tiny/last.pt.partial").exists()


def test_dcn_runs_have_their_own_images(dcn_run):
    shown = EventAccumulator(str(dcn_run)).Reload().Tags()["images"]
    assert sorted(shown) == ["dcn/masks", "dcn/offsets", "dcn/sampling_points", *IMAGES]


def test_what_dcn_replaces_is_shown(dcn_run):
    log = (dcn_run / "train.log").read_text()
    assert "DCNv2 in resnet18:" in log
    (row,) = (line.split() for line in log.splitlines() if line.strip().startswith("layer2"))
    assert row == ["layer2", "C3", "8", "2", "62,262"]
    (row,) = (line.split() for line in log.splitlines() if line.strip().startswith("conv_offset"))
    assert row == ["conv_offset", "4", "62,262", "0.0005", "0.0001"]


def test_a_deformable_head_is_shown_and_logged(run_tool, tiny_config, tmp_path):
    asked = ["model.detector=fcos", "model.fpn.out_channels=64", "model.fcos.num_dcn_convs=1", DCN, "train.max_steps=1"]
    code, out, err = run_tool("train", "--config", tiny_config, "--run-dir", tmp_path / "fcos", *asked)
    assert (code, err) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    added = 2 * 27 * (9 * 64 + 1)
    assert ["head", "all", "2", f"{added:,}"] in rows
    assert ["total", "4", f"{added + 62_262:,}"] in rows
    assert ["conv_offset", "8", f"{added + 62_262:,}", "0.0005", "0.0001"] in rows
    events = EventAccumulator(str(tmp_path / "fcos")).Reload()
    tags = events.Tags()
    for layer in ("layer2.1.conv2", "head.classification_head.conv.9", "head.regression_head.conv.9"):
        assert f"dcn_offset_mean_px/{layer}" in tags["scalars"]
        assert f"dcn_mask/{layer}" in tags["histograms"]
    assert {"train/loss_classification", "train/loss_bbox_regression", "train/loss_bbox_ctrness"} <= {*tags["scalars"]}
    assert "dcn/sampling_points" in tags["images"]


def test_a_second_run_in_the_same_folder_is_an_error(run_tool, plain_run, tiny_config, elsewhere, files_of):
    before = files_of(plain_run)
    for arguments in ([], ["--run-dir", plain_run]):
        code, out, err = run_tool("train", "--config", tiny_config, *arguments, cwd=elsewhere)
        assert (code, out) == (2, "")
        assert err.startswith("error: run folder ")
        assert "is not empty" in err
        assert "--resume auto" in err
    assert files_of(plain_run) == before


def test_a_finished_run_is_done_at_once(run_tool, plain_run, tiny_config, tmp_path):
    folder = shutil.copytree(plain_run, tmp_path / "run")
    lines, weights = metrics(folder), (folder / "last.pt").read_bytes()
    code, out, err = run_tool(
        "train", "--config", tiny_config, "--run-dir", folder, "--resume", "auto", "data.num_workers=1"
    )
    assert (code, err) == (0, "")
    assert "step 12 of 12" in out
    assert "done: AP " in out
    assert metrics(folder) == lines
    assert (folder / "last.pt").read_bytes() == weights
    events = EventAccumulator(str(folder)).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 13))


@pytest.mark.slow
def test_a_run_of_before_the_renaming_resumes_and_old_names_warn_once(run_process, plain_run, tiny_config, tmp_path):
    folder = shutil.copytree(plain_run, tmp_path / "run")
    state = torch.load(folder / "last.pt", weights_only=True)
    config = state["config"]
    config["train"]["accumulate"] = config["train"].pop("grad_accum_steps")
    config["model"]["fpn"]["channels"] = config["model"]["fpn"].pop("out_channels")
    config["test"] = config.pop("tta")
    config["data"]["workers"] = config["data"].pop("num_workers")
    torch.save(state, folder / "last.pt")
    (folder / "step_00000006.pt").unlink()
    options = ["--run-dir", folder, "--resume", "auto", "train.accumulate=1", "data.workers=1", "train.epochs=3"]
    code, out, err = run_process(TOOL, "--config", tiny_config, *options, "train.max_steps=14", cwd=tmp_path)
    assert code == 0
    assert err == "warning: train.accumulate is deprecated and will be removed in 0.3.0: use train.grad_accum_steps\n"
    assert trained_steps(folder)[-2:] == [13, 14]
    changed = [
        line.partition("changed since the checkpoint: ")[2]
        for line in out.splitlines()
        if "changed since the checkpoint" in line
    ]
    assert {line.partition(":")[0] for line in changed} == {"train.epochs", "train.max_steps"}
    written = (folder / "config.yaml").read_text()
    assert "grad_accum_steps: 1" in written
    assert "num_workers: 1" in written


def test_a_killed_run_continues(start_process, wait_until, run_tool, tiny_config, tmp_path):
    folder = tmp_path / "run"
    options = [
        "--config",
        tiny_config,
        "--run-dir",
        folder,
        DCN,
        "train.checkpoint_every_steps=3",
        "train.eval_every_epochs=99",
    ]
    process = start_process(TOOL, *options, "train.epochs=99", cwd=tmp_path)
    wait_until(lambda: (folder / "last.pt").is_file() and len(trained_steps(folder)) >= 5, process)
    code, _, err = run_tool("train", *options, "--resume", "auto")
    assert code == 2
    assert f"another process trains in run folder {folder}" in err
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    reached = load_checkpoint(folder / "last.pt")["step"]
    assert reached % 3 == 0
    total = max(trained_steps(folder)) + 4
    time.sleep(1.1)  # the names of event files hold whole seconds, and TensorBoard reads them in that order

    code, out, err = run_tool("train", *options, "--resume", "auto", "train.epochs=99", f"train.max_steps={total}")
    assert (code, err) == (0, "")
    assert f"resuming from {folder / 'last.pt'}, step {reached} of {total}" in out
    assert f"changed since the checkpoint: train.max_steps: None -> {total}" in out
    assert "images of train and val are not checked again: no file was added or removed since the last check" in out
    assert trained_steps(folder) == list(range(1, total + 1))
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, total + 1))
    assert load_checkpoint(folder / "last.pt")["step"] == total
    assert (folder / "best.pt").is_file()


@pytest.mark.parametrize(
    "name", ["SIGTERM", *[pytest.param(name, marks=pytest.mark.slow) for name in ("SIGUSR1", "SIGHUP")]]
)
def test_a_signal_stops_with_a_checkpoint_and_loses_nothing(
    start_process, wait_until, held, run_tool, plain_run, tiny_config, tmp_path, name
):
    folder, before = tmp_path / "run", signal.getsignal(getattr(signal, name))
    options = ["--config", tiny_config, "--run-dir", folder, "data.num_workers=1"]
    process = start_process(*held(3), TOOL, *options, cwd=tmp_path)
    wait_until(lambda: (folder / "metrics.jsonl").is_file() and len(trained_steps(folder)) >= 3, process)
    # as schedulers do, to every process of the job
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    workers = [int(pid) for pid in children.read_text().split()] if children.exists() else []
    assert workers or not children.exists()
    for pid in (*workers, process.pid):
        os.kill(pid, getattr(signal, name))
    out, err = process.communicate(timeout=600)
    assert (process.returncode, err) == (3, "")
    reached = load_checkpoint(folder / "last.pt")["step"]
    assert f"asked to stop by {name} at step {reached}; continue with --resume auto --run-dir {folder}" in out
    assert 3 <= reached <= 4

    code, _, err = run_tool("train", *options, "--resume", "auto")
    assert (code, err) == (0, "")
    assert trained_steps(folder) == list(range(1, 13))
    whole, resumed = (load_checkpoint(run / "last.pt")["model"] for run in (plain_run, folder))
    for key, value in whole.items():
        assert torch.equal(resumed[key], value), key
    assert signal.getsignal(getattr(signal, name)) == before


def test_going_on_from_a_file_into_another_folder(run_tool, plain_run, tiny_config, tmp_path, files_of):
    before = files_of(plain_run)
    options = ["--config", tiny_config, "--run-dir", tmp_path / "more", "--resume", plain_run / "last.pt"]
    code, out, err = run_tool("train", "train.epochs=3", *options, "train.max_steps=14")
    assert (code, err) == (0, "")
    assert "step 12 of 14" in out
    assert trained_steps(tmp_path / "more") == [13, 14]
    assert files_of(plain_run) == before


def cut_picture(tmp_path, shapes) -> list[str]:
    shutil.copytree(shapes / "train", tmp_path / "train")
    picture = tmp_path / "train/000003.png"
    picture.write_bytes(picture.read_bytes()[:-40])
    return [f"data.train.images={tmp_path}/train"]


def other_file(tmp_path, shapes) -> list[str]:
    (tmp_path / "other.json").write_text(json.dumps({"info": {}, "images": []}))
    return [f"data.val.annotations={tmp_path}/other.json"]


def no_json(tmp_path, shapes) -> list[str]:
    (tmp_path / "other.json").write_text("{")
    return [f"data.train.annotations={tmp_path}/other.json"]


def renamed_classes(tmp_path, shapes, splits=("train", "val")) -> list[str]:
    for split in splits:
        raw = json.loads((shapes / f"annotations/{split}.json").read_text())
        raw["categories"][1]["name"] = "rod"
        (tmp_path / f"{split}.json").write_text(json.dumps(raw))
    return [f"data.{split}.annotations={tmp_path}/{split}.json" for split in splits]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train.epoch=1", "data.mni_size=3"], "data.mni_size: unknown key, did you mean 'data.min_size'?"),
        (["train.epochs=0"], "train.epochs: expected greater than or equal to 1, got 0"),
        (["train.lr"], "'train.lr': expected key=value"),
        (["model.backbone.dcn_v2_stages=[5]"], "got [5]: 5 is not a valid stage. Stages count torchvision's layers"),
        (["model.detector=yolo"], "model.detector: expected one of faster_rcnn, mask_rcnn, "),
        (
            [DCN, "model.dcn_backend=cuda"],
            "model.dcn_backend: expected one of auto, torch, torchvision, triton, reference, got 'cuda'",
        ),
        (["train.optimizer=lion"], "train.optimizer: expected one of sgd, adamw, got 'lion'"),
        (["train.lr_schedule=linear"], "train.lr_schedule: expected one of step, cosine, got 'linear'"),
        (["train.milestones=[3, 2]"], "`milestones` must increase, got [3.0, 2.0]"),
        (
            ["data.augment.large_scale_jitter={scale: [2, 1]}"],
            "data.augment.large_scale_jitter.scale must be a minimum and a maximum, got [2.0, 1.0]",
        ),
        (["model.backbone.weights=./no.pth"], "weights file no.pth does not exist"),
        (["data.train.images=nowhere"], "image folder nowhere does not exist (resolved: /"),
        (["data.val.annotations=no.json"], "to get it: python tools/make_shapes.py"),
        (["device=cuda:99"], "device 'cuda:99' is not available: "),
        (["--resume", "no.pt"], "checkpoint no.pt does not exist (resolved: /"),
        (["--config", "r50_dnc.yaml"], "did you mean 'r50_dcn'?"),
        (other_file, "other.json is not a COCO instances file: the list 'categories' is missing"),
        (no_json, "other.json is not valid JSON"),
        (cut_picture, "train/000003.png cannot be read"),
        (
            lambda tmp_path, shapes: renamed_classes(tmp_path, shapes, ["val"]),
            "they differ in [(2, '",
        ),
    ],
)
def test_errors_are_one_message(run_tool, tiny_config, shapes, tmp_path, arguments, said):
    if callable(arguments):
        arguments = arguments(tmp_path, shapes)
    folder = tmp_path / "run"
    config = [] if "--config" in arguments else ["--config", tiny_config]
    code, out, err = run_tool("train", *config, "--run-dir", folder, *arguments, cwd=tmp_path)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert said in err
    assert "Traceback" not in err
    assert not folder.exists()


def test_an_error_in_its_own_process(run_process, tiny_config, tmp_path):
    result = run_process(TOOL, "--config", tiny_config, "model.backbone.dcn_v2_stages=[3, 4, 5]", cwd=tmp_path)
    assert (result.code, result.out) == (2, "")
    head, line = result.err.splitlines()
    assert head == f"error: {tiny_config} is not a valid config:"
    assert line.startswith(
        "  - model.backbone.dcn_v2_stages: `dcn_v2_stages` must contain only 1, 2, 3 or 4, got [3, 4, 5]: 5 is not a "
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (renamed_classes, " in the checkpoint and (2, 'rod') in the file"),
        ([DCN], "model.backbone.dcn_v2_stages: [] in the checkpoint, [2] in the config"),
        (["train.optimizer=adamw"], "train.optimizer: 'sgd' in the checkpoint, 'adamw' in the config"),
        (
            ["train.grad_accum_steps=2"],
            "was trained with 2 images per step, so it cannot be resumed with 4: choose train.batch_size x "
            "train.grad_accum_steps x processes = 2",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit(run_tool, plain_run, tiny_config, shapes, tmp_path, files_of, overrides, said):
    before = files_of(plain_run)
    if callable(overrides):
        overrides = overrides(tmp_path, shapes)
    options = ["--config", tiny_config, "--run-dir", plain_run, "--resume", "auto"]
    code, out, err = run_tool("train", *options, *overrides)
    assert (code, out) == (2, "")
    assert said in err
    assert files_of(plain_run) == before


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip(data: bytes) -> bytes:
    return data[:300_000] + bytes([data[300_000] ^ 1]) + data[300_001:]  # one bit of a weight


@pytest.mark.parametrize("damage", [cut, flip])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(
    run_tool, plain_run, tiny_config, tmp_path, damage
):
    folder = shutil.copytree(plain_run, tmp_path / "run")
    options = ["--config", tiny_config, "--run-dir", folder, "--resume", "auto", "data.num_workers=1"]
    (folder / "last.pt").write_bytes(damage((folder / "last.pt").read_bytes()))
    code, out, err = run_tool("train", *options)
    assert (code, err) == (0, "")
    assert f"skipped: checkpoint {folder / 'last.pt'} " in out
    assert f"resuming from {folder / 'step_00000006.pt'}, step 6 of 12" in out
    for text in (out, (folder / "train.log").read_text()):
        assert "skipped: checkpoint" in text
    assert trained_steps(folder) == list(range(1, 13))
    one, other = (load_checkpoint(run / "last.pt")["model"] for run in (plain_run, folder))
    assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_no_whole_checkpoint_is_left(run_tool, plain_run, tiny_config, tmp_path, files_of):
    folder = shutil.copytree(plain_run, tmp_path / "run")
    files = [folder / name for name in ("last.pt", "step_00000006.pt", "best.pt")]
    for file in files:
        file.write_bytes(cut(file.read_bytes()))
    before = files_of(folder)
    code, out, err = run_tool("train", "--config", tiny_config, "--run-dir", folder, "--resume", "auto")
    assert (code, out) == (2, "")
    assert err.startswith("error: no intact checkpoint to resume from")
    assert all(str(file) in err for file in files)
    assert files_of(folder) == before


@pytest.fixture
def small_disk(mounted):
    """A file system of 10 MiB, where one checkpoint of the tiny model (6 MiB) has room and two have not."""
    return mounted("size=10m")


@pytest.mark.slow
def test_a_full_disk_stops_with_a_message_and_keeps_the_older_checkpoint(
    run_process, run_tool, small_disk, plain_run, tiny_config, tmp_path
):
    folder = small_disk / "run"
    options = ["--config", tiny_config, "data.num_workers=1"]
    code, out, err = run_process(TOOL, *options, "--run-dir", folder, "train.checkpoint_every_steps=3", cwd=tmp_path)
    assert code != 0
    assert "Traceback" not in err
    assert err.startswith(f"error: checkpoint {folder / 'last.pt'} cannot be written: No space left on device")
    assert "The earlier checkpoints are intact" in err
    assert "Logging error" not in out + err
    state = load_checkpoint(folder / "last.pt")
    assert state["step"] == 3
    assert not [*folder.glob("*.partial")]
    assert "cannot be written: No space left on device" in (folder / "train.log").read_text()

    moved = shutil.copytree(folder, tmp_path / "moved")
    code, _, err = run_tool("train", *options, "--run-dir", moved, "--resume", "auto")
    assert (code, err) == (0, "")
    one, other = (load_checkpoint(run / "last.pt")["model"] for run in (plain_run, moved))
    assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_what_went_wrong_is_reported_where_the_log_cannot_be_written_either(
    run_tool, tiny_config, tmp_path, monkeypatch
):
    def fail(*arguments, **options):
        raise OSError(28, "No space left on device")

    def stop(trainer):
        raise FloatingPointError("step 1 is not finite")

    monkeypatch.setattr("engine.training.trainer.Trainer.fit", stop)
    monkeypatch.setattr("engine.display.progress.log.error", fail)
    code, _, err = run_tool("train", "--config", tiny_config, "--run-dir", tmp_path / "run")
    assert (code, err) == (1, "error: step 1 is not finite\n")


def test_changed_annotations_are_reported_on_resume(run_tool, plain_run, tiny_config, shapes, tmp_path):
    raw = json.loads((shapes / "annotations/train.json").read_text())
    raw["annotations"][0]["bbox"][2] -= 1
    (tmp_path / "train.json").write_text(json.dumps(raw))
    folder = shutil.copytree(plain_run, tmp_path / "run")
    options = ["--config", tiny_config, "--run-dir", folder, "--resume", "auto", "data.num_workers=1"]
    code, out, _ = run_tool("train", *options, f"data.train.annotations={tmp_path}/train.json")
    assert code == 0
    assert "changed since the checkpoint: the content of data.train.annotations" in out
    assert "data.val.annotations" not in out


@pytest.mark.slow
def test_a_killed_loader_worker(start_process, wait_until, held, run_tool, plain_run, tiny_config, tmp_path):
    """The run stops and says so, whatever becomes of images, and ends after a resume as if nothing had been."""
    folder = tmp_path / "run"
    options = ["--config", tiny_config, "--run-dir", folder, "data.num_workers=1", "data.on_unreadable_image=skip"]
    process = start_process(*held(3), TOOL, *options, "train.checkpoint_every_steps=2", cwd=tmp_path)
    wait_until(lambda: (folder / "metrics.jsonl").is_file() and 3 in trained_steps(folder), process)
    (worker,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[:1]
    os.kill(int(worker), signal.SIGKILL)
    (tmp_path / "go").touch()
    _, err = process.communicate(timeout=600)
    assert process.returncode == 1
    assert err.startswith(f"error: worker process {worker} of the data loader was killed by signal 9")
    assert "--resume auto continues training" in err
    assert len(err.splitlines()) == 1

    code, out, err = run_tool("train", *options, "--resume", "auto")
    assert (code, err) == (0, "")
    assert f"resuming from {folder / 'last.pt'}, step 2 of 12" in out
    assert trained_steps(folder) == list(range(1, 13))
    one, other = (load_checkpoint(run / "last.pt")["model"] for run in (plain_run, folder))
    assert all(torch.equal(value, other[key]) for key, value in one.items())


DIVERGING = ["train.lr=1000", "train.lr_factors={.: 1000}", "train.clip_grad_norm=null"]


def test_a_loss_that_is_not_finite_ends_the_run_without_a_traceback(run_tool, tiny_config, tmp_path):
    folder = tmp_path / "run"
    code, _, err = run_tool("train", "--config", tiny_config, "--run-dir", folder, *DIVERGING)
    assert code == 1
    assert err.startswith("error: step 2 is not finite and was not applied: loss ")
    assert "Traceback" not in err
    assert trained_steps(folder) == [1]
    assert not (folder / "best.pt").exists()


def test_a_bug_comes_through(run_tool, tiny_config, tmp_path, monkeypatch):
    def broken(*args):
        raise RuntimeError("a bug")

    monkeypatch.setattr("engine.building.start.load_config", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        run_tool("train", "--config", tiny_config, cwd=tmp_path)


def test_the_seed_decides_the_weights(run_tool, tiny_config, tmp_path):
    weights = []
    for index, seed in enumerate((0, 0, 1)):
        torch.rand(index)
        options = [
            "train.max_steps=1",
            "train.milestones=[]",
            "train.lr=1e-6",
            f"seed={seed}",
            *["model.fcos.num_dcn_convs=2"] * index,
        ]
        result = run_tool("train", "--config", tiny_config, "--run-dir", tmp_path / str(index), *options)
        assert result.code == 0, result.err
        # only the runs with an unused option have the warning
        warning = "these options have no effect:\n  - model.fcos.num_dcn_convs: model.detector is faster_rcnn\n"
        assert (warning in result.out) == ("no effect" in result.out) == bool(index)
        weights.append(load_checkpoint(tmp_path / str(index) / "last.pt")["model"]["backbone.body.conv1.weight"])
    assert torch.equal(weights[0], weights[1])
    assert not torch.allclose(weights[0], weights[2], atol=1e-3)


def test_the_config_is_yaml_for_others_too(plain_run):
    plain = yaml.safe_load((plain_run / "config.yaml").read_text())
    assert plain["train"]["lr"] == 0.005
    assert plain["train"]["amp"] == "off"


def test_help(run_tool):
    code, out, _ = run_tool("train", "--help")
    assert code == 0
    assert "examples:\n  python tools/train.py --config demo_dcn.yaml" in out
    assert "--resume" in out
    code, _, err = run_tool("train")
    assert code == 2
    assert "--config" in err


@pytest.mark.gpu
@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_on_a_gpu(run_tool, tiny_config, tmp_path, amp):
    folder = tmp_path / "run"
    options = ["--config", tiny_config, "--run-dir", folder, DCN, "device=cuda", f"train.amp={amp}", "train.epochs=1"]
    code, out, err = run_tool("train", *options)
    assert (code, err) == (0, "")
    assert "device: cuda" in out
    assert trained_steps(folder) == list(range(1, 7))
    predictors = {
        key: value for key, value in load_checkpoint(folder / "last.pt")["model"].items() if "conv_offset" in key
    }
    assert predictors
    assert all(value.any() for value in predictors.values())


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell")
@pytest.mark.parametrize(
    ("redirection", "code"),
    [("| head -n 1", 0), pytest.param(">&- 2>&-", 0, marks=pytest.mark.slow), ("> /dev/full", 1)],
)
def test_an_output_that_goes_away_ends_no_training(tiny_config, tmp_path, redirection, code):
    command = f"set -o pipefail; {sys.executable} {TOOL} --config {tiny_config} --run-dir run train.epochs=1"
    done = subprocess.run(["bash", "-c", f"{command} {redirection}"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert ("a part of the output was lost" in done.stderr) == bool(code)
    assert load_checkpoint(tmp_path / "run/last.pt")["step"] == 6
    assert trained_steps(tmp_path / "run") == [1, 2, 3, 4, 5, 6]
