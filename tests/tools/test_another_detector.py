"""A detector that no module of engine/ or tools/ knows goes through all of them; see `tests/another_detector.py`."""

import json

import pytest
import torch

from tests.another_detector import NAME, ROOT

MODEL = [f"model.detector={NAME}", f"model.{NAME}.channels=16", "model.backbone.dcn_v2_stages=[3]", "train.lr=0.001"]
pytestmark = pytest.mark.slow
REFUSED = ("flip", "export", "misspelt")
RUN = "from tests.another_detector import main; main()"


@pytest.fixture(scope="module")
def done(run_process, tiny_config, shapes, tmp_path_factory):
    """By name, code, output and errors of tools that one process has run; and the folder in which it ran."""
    folder = tmp_path_factory.mktemp("another")
    file = shapes / "annotations/train.json"
    raw = json.loads(file.read_text())
    raw["categories"][0]["name"] = "another class"
    names = [category["name"] for category in raw["categories"]]
    for category, name in zip(raw["categories"], reversed(names), strict=True):
        category["name"] = name
    (folder / "renamed.json").write_text(json.dumps(raw))
    train = ["train", "--config", str(tiny_config), *MODEL]
    split = [f"data.{split}={{images: {shapes}/train, annotations: renamed.json}}" for split in ("train", "val")]
    picture = str(next((shapes / "val").glob("*.png")))
    commands = {
        "train": [*train, "--run-dir", "whole"],
        "part": [*train, "--run-dir", "part", "train.max_steps=7"],
        "resume": [*train, "--run-dir", "part", "--resume", "auto"],
        "split": [*train, "--run-dir", "split", "train.batch_size=1", "train.grad_accum_steps=2", "train.max_steps=2"],
        "seed": [*train, "--run-dir", "seed1", "seed=1"],
        "plain": [*train, "--run-dir", "plain", "model.backbone.dcn_v2_stages=[]"],
        "transfer": [*train, "--run-dir", "tuned", "model.weights=whole", *split, "train.max_steps=1", "train.lr=1e-9"],
        "eval": ["eval", "--config", "whole/config.yaml", "--checkpoint", "whole/last.pt", "--json", "eval.json"],
        "predict": [
            "predict",
            "whole",
            picture,
            "--out",
            "predicted",
            "--json",
            "predicted.json",
            "--score-threshold",
            "0.01",
        ],
        "visualize": ["visualize", "whole", "--out", "visualized", "--num-images", "1"],
        "compare": ["compare", "plain", "whole", "seed1", "--json", "compare.json", "--html", "compare.html"],
        "flip": ["predict", "whole", picture, "--out", "flipped", "tta.flip=true"],
        "export": ["export", "whole", "x.onnx"],
        "pyramid": [*train, "--run-dir", "fpn", "model.fpn.out_channels=64", "train.max_steps=1"],
        "misspelt": [*train, f"model.{NAME}.chanels=16"],
    }
    result = run_process("-c", RUN, json.dumps([*commands.values()]), cwd=folder, PYTHONPATH=str(ROOT))
    assert result.code == 0, result.err
    return folder, dict(zip(commands, json.loads(result.out), strict=True))


def test_every_tool_takes_it(done):
    folder, results = done
    for name, (code, _, err) in results.items():
        assert code == (2 if name in REFUSED else 0), (name, err)
    assert len(json.loads((folder / "predicted.json").read_text())) > 0
    assert [*(folder / "visualized").iterdir()]
    compared = json.loads((folder / "compare.json").read_text())
    assert len(compared["groups"]) == 2, "a plain run, and two seeds of one config"


def losses_of(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["train/loss"] for line in lines if "train/loss" in line]


def test_a_resumed_run_is_the_whole_one(done):
    folder, _ = done
    one, other = (torch.load(folder / name / "last.pt", weights_only=True) for name in ("whole", "part"))
    assert one["step"] == other["step"] == 12
    assert all(torch.equal(other["model"][key], value) for key, value in one["model"].items())
    losses = losses_of(folder / "whole")
    assert losses_of(folder / "part") == losses
    assert sum(losses[6:]) < sum(losses[:6])


def test_losses_do_not_depend_on_how_a_step_is_split(done):
    """They are divided by the boxes of the step, though its images have different numbers of them."""
    folder, _ = done
    assert losses_of(folder / "split") == pytest.approx(losses_of(folder / "whole")[:2], rel=1e-4)


def test_it_is_evaluated_as_the_trainer_did(done):
    folder, _ = done
    figures = json.loads((folder / "eval.json").read_text())
    state = torch.load(folder / "whole/last.pt", weights_only=True)
    assert figures["AP"] == pytest.approx(state["metrics"]["AP"], abs=1e-6)


def test_classes_are_matched_by_name(done):
    folder, results = done
    old, new = (torch.load(folder / name / "last.pt", weights_only=True) for name in ("whole", "tuned"))
    assert new["class_names"] != old["class_names"]
    both = [name for name in new["class_names"] if name in old["class_names"]]
    assert new["class_names"].index(both[0]) != old["class_names"].index(both[0])
    assert len(both) == len(old["class_names"]) - 1
    for name in both:
        here, there = (state["model"]["classes.bias"][state["class_names"].index(name)] for state in (new, old))
        assert here.item() == pytest.approx(there.item(), abs=1e-6)
    assert "tensors copied by class" in results["transfer"][1] + results["transfer"][2]


def test_missing_parts_are_an_error_or_reported(done):
    _, results = done
    said = {name: out + err for name, (_, out, err) in results.items()}
    assert "tta.flip must be false for points: it merges" in said["flip"]
    assert "points cannot be exported; these can: faster_rcnn, " in said["export"]
    assert "model.fpn.out_channels: points has no feature pyramid" in said["pyramid"]
    assert "unknown key, did you mean 'model.points.channels'?" in said["misspelt"]
