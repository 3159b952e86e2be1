"""tools/train.py from the weights of a whole detector: what it starts as, and that it goes on without the file."""

import json
import re
from pathlib import Path

import pytest
import torch

from engine.runs.checkpoint import load_checkpoint

TRAIN = Path(__file__).resolve().parents[2] / "tools/train.py"
DCN = "model.backbone.dcn_v2_stages=[2]"
# so small that the weights stay what they were
STILL = ["train.lr=1e-12", "train.weight_decay=0", "train.batch_size=2", "data.num_workers=0"]


@pytest.fixture(scope="module")
def other_classes(shapes, tmp_path_factory):
    """Options for the data set with its second class under another name, and all of them in another order."""
    folder, options = tmp_path_factory.mktemp("annotations"), []
    for split in ("train", "val"):
        raw = json.loads((shapes / f"annotations/{split}.json").read_text())
        last = max(category["id"] for category in raw["categories"]) + 1
        raw["categories"][1]["name"] = "wedge"
        for entry in raw["categories"]:
            entry["id"] = last - entry["id"]
        for entry in raw["annotations"]:
            entry["category_id"] = last - entry["category_id"]
        (folder / f"{split}.json").write_text(json.dumps(raw))
        options.append(f"data.{split}.annotations={folder / split}.json")
    return options


def weights_of(file) -> dict[str, torch.Tensor]:
    return load_checkpoint(file)["model"]


def losses(folder) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["train/loss"] for line in lines if "train/loss" in line]


def test_a_run_starts_from_another_and_continues_without_its_file(plain_run, run_tool, tiny_config, tmp_path):
    there = tmp_path / "there.pt"
    there.write_bytes((plain_run / "best.pt").read_bytes())
    folder = tmp_path / "run"
    options = ["--config", tiny_config, "--run-dir", folder, DCN, f"model.weights={there}", *STILL]
    code, out, err = run_tool("train", *options, "train.max_steps=2", "train.eval_every_epochs=9")
    assert (code, err) == (0, "")
    theirs, ours = weights_of(there), weights_of(folder / "last.pt")
    assert {key for key in ours if key not in theirs} == {key for key in ours if ".conv_offset." in key}
    for key, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs.get(key, torch.zeros_like(tensor)), rtol=1e-5, atol=1e-6)
    step = load_checkpoint(there)["step"]
    for text in (out, (folder / "train.log").read_text()):
        assert f"initial weights from {there} (weights of step {step}):" in text
        assert "differs from the file: model.backbone.dcn_v2_stages: [] -> [2]" in text
    rows = {line[:33].strip(): line[33:].split() for line in out.splitlines()}
    assert rows["tensors copied"] == [f"{len(theirs) - 4}"]
    assert rows["tensors copied by class"] == ["4"]
    assert rows["classes matched"] == ["5", "bar,", "cross,", "star,", "..."]
    assert rows["new classes"] == rows["classes of the file not used"] == ["0"]
    assert rows["layers with new, zero offsets"] == ["2"]
    assert f"weights: {there}" in (folder / "config.yaml").read_text()
    there.unlink()
    code, out, err = run_tool("train", *options, "train.max_steps=3", "train.eval_every_epochs=9", "--resume", "auto")
    assert (code, err) == (0, "")
    assert f"resuming from {folder / 'last.pt'}, step 2 of 3" in out
    assert "initial weights from" not in out
    assert len(losses(folder)) == 3
    code, out, err = run_tool("eval", "--config", folder / "config.yaml", "--checkpoint", folder / "last.pt")
    assert (code, err) == (0, "")


def test_a_start_that_does_not_fit_leaves_nothing_behind(plain_run, run_tool, tiny_config, tmp_path):
    options = ["--config", tiny_config, "--run-dir", tmp_path / "run"]
    for wrong, said in (
        (
            [f"model.weights={plain_run / 'best.pt'}", "model.fpn.out_channels=16"],
            "model.fpn.out_channels: 32 in the file, 16",
        ),
        ([f"model.weights={tmp_path / 'none.pt'}"], "none.pt does not exist"),
        (["model.weights=a.pt", "model.backbone.weights=./b.pth"], "set one of them to null"),
    ):
        code, out, err = run_tool("train", *options, *wrong)
        assert (code, out) == (2, "")
        assert err.startswith("error: ")
        assert said in err
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "said", "unsaid"),
    [
        (["model.backbone.weights=DEFAULT"], "model.backbone.weights DEFAULT is not used", "tensors loaded"),
        ([DCN, "model.backbone.mask_scale=1.0"], "scale their output by 0.5 (model.backbone.mask_scale 1)", ""),
    ],
)
def test_unmatched_tensors_are_reported(options, said, unsaid, plain_run, run_tool, tiny_config, tmp_path):
    start = [f"model.weights={plain_run}", "train.max_steps=1", "train.eval_every_epochs=9", *STILL]
    code, out, err = run_tool("train", "--config", tiny_config, "--run-dir", tmp_path / "run", *start, *options)
    assert (code, err) == (0, "")
    assert said in out
    assert not unsaid or unsaid not in out


@pytest.mark.slow
def test_two_processes_start_as_one(dcn_run, run_process, run_tool, tiny_config, other_classes, tmp_path):
    """The rows of the class that is new are the same in both, too, and those of one process alone."""
    common = ["--config", tiny_config, DCN, f"model.weights={dcn_run}", *other_classes, *STILL, "train.max_steps=2"]
    common += ["train.eval_every_epochs=9"]
    code, out, err = run_tool("train", *common, "--run-dir", tmp_path / "one")
    assert (code, err) == (0, "")
    assert re.search(r"^  new classes +1  wedge$", out, re.MULTILINE)
    assert re.search(r"^  classes of the file not used +1  cross$", out, re.MULTILINE)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", TRAIN]
    result = run_process(*launcher, *common, "--run-dir", tmp_path / "two", "train.batch_size=1", cwd=tmp_path)
    assert result.code == 0, result.err
    assert result.out.count("initial weights from ") == 1
    one, two = (weights_of(tmp_path / name / "last.pt") for name in ("one", "two"))
    for key, tensor in one.items():
        torch.testing.assert_close(two[key], tensor, rtol=1e-5, atol=1e-6)
    theirs, scores = weights_of(dcn_run / "last.pt"), "roi_heads.box_predictor.cls_score.weight"
    for ours, there in enumerate([0, 5, 4, 3, None, 1]):
        if there is not None:
            torch.testing.assert_close(one[scores][ours], theirs[scores][there], rtol=1e-5, atol=1e-6)
    assert not torch.equal(one[scores][4], theirs[scores][2])
