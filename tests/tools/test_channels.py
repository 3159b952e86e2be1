"""Tools on 16-bit images of four channels, from training to the exported program."""

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import yaml
from PIL import Image

from data import ReadOptions, load_annotations, read_image
from engine.inference import load_predictor
from models.checkpoint import load_checkpoint
from models.predictor import Predictor


@pytest.fixture(scope="module")
def fields(make_once, shapes):
    """The shapes with a fourth channel, the inverse of red, as 16-bit TIFF and, for validation, as NPY."""
    return make_once("fields", lambda root: add_channel(shapes, root))


def add_channel(shapes: Path, root: Path):
    for split in ("train", "val"):
        content = json.loads((shapes / f"annotations/{split}.json").read_text())
        (root / split).mkdir()
        for entry in content["images"]:
            rgb = np.asarray(Image.open(shapes / split / entry["file_name"]).convert("RGB")).astype(np.uint16) * 16
            four = np.dstack([rgb, 4080 - rgb[..., 0]])
            name = Path(entry["file_name"]).with_suffix(".tif" if split == "train" else ".npy").name
            if split == "train":
                tifffile.imwrite(root / split / name, four, photometric="rgb", extrasamples=[0])
            else:
                np.save(root / split / name, four)
            entry["file_name"] = name
        (root / f"{split}.json").write_text(json.dumps(content))


def overrides(fields: Path) -> list[str]:
    files = [
        f"data.{s}.{k}={fields / s}{e}" for s in ("train", "val") for k, e in (("images", ""), ("annotations", ".json"))
    ]
    return [*files, "data.channels=4", "data.pixel_range=[0, 4080]", "data.augment=strong"]


@pytest.fixture(scope="module")
def run(make_once, run_tool, tiny_config, fields):
    def train(folder):
        found = run_tool(
            "train", "--config", tiny_config, "--run-dir", folder / "run", *overrides(fields), "train.max_steps=4"
        )
        assert found.code == 0, found.err
        (folder / "out.txt").write_text(found.out + found.err)

    return make_once("four_channels", train) / "run"


def test_the_normalisation_is_measured_shown_and_kept(run, fields):
    found = load_annotations(fields / "train", fields / "train.json", read_options=ReadOptions(None, (0, 4080), 4))
    pixels = torch.cat(
        [read_image(file, None, found.read_options).flatten(1) for file in (fields / "train").iterdir()], 1
    )
    saved = load_checkpoint(run / "last.pt")["config"]["data"]
    written = yaml.safe_load((run / "config.yaml").read_text())["data"]
    for values, expected in ((written["mean"], pixels.mean(1)), (written["std"], pixels.std(1, correction=0))):
        assert values == pytest.approx(expected.tolist(), rel=1e-4)
    assert saved["mean"] == written["mean"]
    assert "4 channels: mean " in (run.parent / "out.txt").read_text()
    assert "(measured on 12 training images)" in (run.parent / "out.txt").read_text()
    assert "data.augment.jpeg: images of 4 channels are not RGB" in (run.parent / "out.txt").read_text()


def test_a_resumed_run_is_the_same(run, run_tool, tiny_config, fields, tmp_path):
    options = ["--config", tiny_config, "--run-dir", tmp_path / "run", *overrides(fields)]
    assert run_tool("train", *options, "train.max_steps=2").code == 0
    found = run_tool("train", *options, "train.max_steps=4", "--resume", "auto", "data.channels=3")
    assert found.code == 2
    assert "data.channels: 4 in the checkpoint, 3 in the config" in found.err or "must have 3 channels" in found.err
    assert run_tool("train", *options, "train.max_steps=4", "--resume", "auto").code == 0
    whole, resumed = (load_checkpoint(folder / "last.pt")["model"] for folder in (run, tmp_path / "run"))
    assert whole["backbone.body.conv1.weight"].shape[1] == 4
    for key, value in whole.items():
        assert torch.equal(resumed[key], value), key


@pytest.mark.slow
def test_fine_tuning_spreads_the_first_convolution(run_tool, tiny_config, plain_run, fields, tmp_path):
    options = ["--config", tiny_config, "--run-dir", tmp_path / "run", *overrides(fields)]
    found = run_tool("train", *options, "train.max_steps=1", f"model.weights={plain_run}")
    assert found.code == 0, found.err
    shown = found.out + found.err
    assert "the first convolution was spread from 3 channels to 4" in shown
    assert "differs from the file: data.channels: 3 -> 4" in shown


def test_prediction_draws_the_channels_asked_for(run, run_tool, fields, tmp_path):
    found = run_tool(
        "predict", run, fields / "val", "--bands", "4,4,4", "--score-threshold", "1", "-o", tmp_path, "--device", "cpu"
    )
    assert found.code == 0, found.err
    first = sorted((fields / "val").iterdir())[0]
    drawn = np.asarray(Image.open(tmp_path / f"{first.name}.png"))
    expected = np.load(first)[..., 3] / 4080 * 255
    assert abs(drawn - expected[..., None]).max() <= 0.5 + 1e-3
    for wrong, message in (("5", "--bands must be channels from 1 to 4"), ("1,2", "must be three channels")):
        found = run_tool("predict", run, fields / "val", "--bands", wrong, "-o", tmp_path)
        assert found.code == 2
        assert message in found.err


def test_files_arrays_and_tensors_have_the_same_detections(run, fields):
    file = sorted((fields / "val").iterdir())[0]
    values = np.load(file)
    predictor = Predictor.load(run, score_threshold=0, device="cpu")
    kinds = [file, values, torch.from_numpy(values).permute(2, 0, 1).float() / 4080]
    found = [predictor(kind) for kind in kinds] + [load_predictor(run, score_threshold=0, device="cpu")(file)]
    assert len(found[0]["boxes"])
    for other in found[1:]:
        assert torch.allclose(other["scores"], found[0]["scores"], atol=1e-5)
        assert torch.allclose(other["boxes"], found[0]["boxes"], atol=1e-2)
    with pytest.raises(ValueError, match="4 x height x width"):
        predictor(torch.zeros(3, 8, 8))


@pytest.mark.slow
def test_an_exported_program_takes_four_channels(run, run_tool, tmp_path):
    found = run_tool("export", run, tmp_path / "four.pt2")  # compares the program with the detector
    assert found.code == 0, found.out + found.err
    assert "data.channels" not in found.err


def test_a_data_set_is_described(run_tool, tiny_config, fields, tmp_path):
    options = ["--config", tiny_config, *overrides(fields), "--contact-sheet", tmp_path / "sheet.png"]
    found = run_tool("check_dataset", *options)
    assert found.code == 0, found.out
    assert "4 x uint16" in found.out
    assert Image.open(tmp_path / "sheet.png").mode == "RGB"
    found = run_tool("check_dataset", *options, "data.channels=5", "--contact-sheet", "")
    assert found.code == 1
    assert "must have 5 channels (data.channels), got 4" in found.out
