"""The pictures that tools/visualize.py writes, and what it refuses."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.ops import box_iou

from data import CocoDetection, eval_transform
from engine.building.data import read_split
from engine.inference.restored import restore_model
from engine.weights.loading import load_trained

KINDS = {"detections", "receptive_field", "sampling_points", "masks", "offsets"}


@pytest.fixture
def visualize(run_tool, elsewhere, tmp_path):
    """`visualize(run, *arguments)` into a folder of this test, from where the runs were made."""

    def run(*arguments):
        return run_tool("visualize", *arguments, "--out", tmp_path / "out", cwd=elsewhere)

    return run


def written(tmp_path):
    return {path.name for path in (tmp_path / "out").iterdir()}


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.jpg"
    Image.effect_noise((70, 50), 60).convert("RGB").save(path)
    return path


def test_a_dcn_run(visualize, dcn_run, tmp_path, files_of):
    before = files_of(dcn_run)
    result = visualize(dcn_run, "--images", "2")
    assert result.code == 0, result.err
    assert written(tmp_path) == {f"000002_{kind}.png" for kind in KINDS}
    assert files_of(dcn_run) == before
    first, *_ = result.out.splitlines()
    assert first == f"{dcn_run}/last.pt (weights of step 6), cpu, 2 deformable layers in layer2"
    for kind in KINDS:
        path = tmp_path / f"out/000002_{kind}.png"
        with Image.open(path) as picture:
            assert f"{picture.width}x{picture.height}" in result.out
            assert picture.info["Source"] == f"{dcn_run}/last.pt step 6"
        assert str(path) in result.out
    again = visualize(dcn_run, "--images", "2")  # it may write its own pictures anew
    assert again.code == 0, again.err


def test_a_plain_run_into_its_own_folder(run_tool, plain_run, tmp_path, elsewhere):
    run = shutil.copytree(plain_run, tmp_path / "run")
    result = run_tool("visualize", run, "--num-images", "2", cwd=elsewhere)
    assert result.code == 0, result.err
    names = {path.name for path in (run / "figures").iterdir()}
    assert len(names) == 4
    assert {name.partition("_")[2] for name in names} == {"detections.png", "receptive_field.png"}
    assert "no deformable layers" in result.out


def test_against_another_run_at_a_pixel(visualize, dcn_run, plain_run, photo, tmp_path):
    result = visualize(dcn_run, "--baseline", plain_run, "--images", photo, "--pixel", "60,40", "--pixel", "0,0")
    assert result.code == 0, result.err
    assert written(tmp_path) == {f"photo_{kind}.png" for kind in KINDS}
    beside = (tmp_path / "out/photo_receptive_field.png").read_bytes()
    assert visualize(dcn_run, "--images", photo, "--pixel", "60,40", "--pixel", "0,0").code == 0
    assert (tmp_path / "out/photo_receptive_field.png").read_bytes() != beside


@pytest.mark.slow
def test_points_are_drawn_for_so_many_objects(visualize, dcn_run, tmp_path):
    """A row of panels for each; the detections of this little trained model lie upon each other."""
    heights = {}
    for points in (1, 2, 500):
        assert visualize(dcn_run, "--images", "1", "--max-detections", points).code == 0
        with Image.open(tmp_path / "out/000001_sampling_points.png") as picture:
            heights[points] = picture.height
    row = heights[2] - heights[1]
    assert row > 100
    objects = 1 + round((heights[500] - heights[1]) / row)
    state = load_trained(dcn_run)
    image, _ = CocoDetection(read_split(state.config.data, "val"), eval_transform())[0]
    with torch.inference_mode():
        (found,) = restore_model(state)([image / 255])
    distinct = []
    for index in found["scores"].argsort(descending=True).tolist():
        box = found["boxes"][index : index + 1]
        if not any(box_iou(box, other) > 0.5 for other in distinct):
            distinct.append(box)
    assert 2 < objects == len(distinct) < len(found["boxes"])


def test_an_image_needs_no_data_set(visualize, plain_run, photo, tmp_path):
    result = visualize(plain_run, "data.val.annotations=gone.json", "--images", photo)
    assert result.code == 0, result.err
    result = visualize(plain_run, "data.val.annotations=gone.json", "--images", photo, "3")
    assert result.code == 2
    assert "gone.json does not exist" in result.err


def test_the_legend_shows_the_threshold_that_holds(visualize, dcn_run, tmp_path):
    """What the detector itself leaves out cannot be asked for."""
    drawn = []
    for asked in (0.1, 0.3):
        options = ["--images", "2", "--score-threshold", asked, "model.faster_rcnn.score_threshold=0.3"]
        result = visualize(dcn_run, *options)
        assert result.code == 0, result.err
        with Image.open(tmp_path / "out/000002_detections.png") as picture:
            drawn.append(picture.convert("RGB").tobytes())
    assert drawn[0] == drawn[1]


def test_images_by_id_name_and_path(visualize, plain_run, shapes, tmp_path, photo):
    moved = shutil.copytree(shapes / "val", tmp_path / "moved")
    place = f"data.val.images={moved}"
    result = visualize(plain_run, place, "--images", "1", "000002.png", moved / "000003.png", photo)
    assert result.code == 0, result.err
    names = {f"{stem}_{kind}.png" for stem in ("000001", "000002", "000003", "photo") for kind in KINDS}
    assert written(tmp_path) == {name for name in names if "detections" in name or "receptive" in name}
    # what lies in the split has a truth to draw beside, a photo has none
    widths = {}
    for stem in ("000003", "photo"):
        with Image.open(tmp_path / f"out/{stem}_detections.png") as picture:
            widths[stem] = picture.size
    assert widths["000003"][0] > 2 * 576
    assert widths["photo"] == (672, 480)


def test_the_augmentation_of_a_config(run_tool, tiny_config, tmp_path):
    result = run_tool(
        "visualize", "--augment", tiny_config, "data.augment=strong", "--num-images", "2", "-o", tmp_path / "out"
    )
    assert result.code == 0, result.err
    assert "augmentation: strong: horizontal_flip 0.5" in result.out
    with Image.open(tmp_path / "out/augmentation.png") as picture:
        assert f"{picture.width}x{picture.height}" in result.out
        assert len({*picture.resize((40, 20)).convert("L").tobytes()}) > 20
    for arguments, message in (
        (["run", "--augment", tiny_config], "--augment draws the images of a config, and no RUN, got run"),
        (["--augment", tiny_config, "--pixel", "3,4"], "--pixel has no effect: --augment draws no detections"),
        (["--augment", tiny_config, "data.augment=lite"], "data.augment.preset: expected 'none', 'flip'"),
        ([], "required: RUN, or --augment CONFIG"),
    ):
        result = run_tool("visualize", *arguments)
        assert result.code == 2
        assert message in result.err


def test_files_of_others_are_kept(visualize, plain_run, tmp_path, photo):
    (tmp_path / "out").mkdir()
    theirs = tmp_path / "out/photo_receptive_field.png"
    Image.new("RGB", (4, 4)).save(theirs)
    before = theirs.read_bytes()
    result = visualize(plain_run, "--images", photo)
    assert result.code == 2
    assert "photo_receptive_field.png exists and is not a file of this tool" in result.err
    assert theirs.read_bytes() == before
    theirs.write_text("no picture")
    assert visualize(plain_run, "--images", photo).code == 2
    assert theirs.read_text() == "no picture"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "77"], "--images must be ids or file names of .*got '77'"),
        (["--images", "1", "device=cpu"], "--images must be ids .*got 'device=cpu'; write key=value before --images"),
        (["--images", "1", "--pixel", "96,3"], "--pixel 96,3 must be within image 000001 of 96x80 pixels"),
        (["--images", "1", "--pixel", "3,80"], "--pixel 3,80 must be within"),
        (["--images", "1", "--pixel=-1,8"], "--pixel -1,8 must be within"),
        (["--images", "1", "000001.png"], "must have different names, got twice: 000001"),
        (["--pixel", "3"], "must be X,Y as in 120,80, got '3'"),
        (["--num-images", "0"], "--num-images: must be an integer of at least 1, got '0'"),
        (["--max-detections", "0"], "--max-detections: must be an integer of at least 1, got '0'"),
        (["--score-threshold", "2"], "--score-threshold: must be a number from 0 to 1, got '2'"),
        (["--score-threshold", "nan"], "--score-threshold: must be a number from 0 to 1, got 'nan'"),
        (["--weights", "ema"], "does not contain EMA weights"),
        (["--baseline", "nowhere"], "nowhere"),
        (["model.nothing=3"], "model.nothing"),
        (["device=tpu"], "got 'tpu'"),
    ],
)
def test_errors(visualize, plain_run, arguments, message, tmp_path):
    result = visualize(plain_run, *arguments)
    assert result.code == 2
    assert re.search(message, result.err), result.err
    assert not (tmp_path / "out").exists()


def test_a_file_in_place_of_the_folder(run_tool, plain_run, photo):
    code, _, err = run_tool("visualize", plain_run, "--out", photo)
    assert code == 2
    assert f"--out must be a folder, got the file {photo}" in err


def test_help_shows_examples(visualize):
    result = visualize("--help")
    assert result.code == 0
    assert "python tools/visualize.py runs/demo_dcn --baseline runs/demo --images 12 57" in result.out


def test_no_run_there(visualize, tmp_path):
    result = visualize(tmp_path)
    assert result.code == 2
    assert f"{tmp_path}/last.pt does not exist" in result.err


def test_a_run_of_other_classes(visualize, run_tool, plain_run, tiny_config, shapes, tmp_path):
    places = []
    for split in ("train", "val"):
        raw = json.loads((shapes / f"annotations/{split}.json").read_text())
        for category in raw["categories"]:
            category["name"] = category["name"].upper()
        (tmp_path / f"{split}.json").write_text(json.dumps(raw))
        places.append(f"data.{split}.annotations={tmp_path / f'{split}.json'}")
    other = tmp_path / "other"
    trained = run_tool("train", "--config", tiny_config, "--run-dir", other, "train.max_steps=1", *places)
    assert trained.code == 0, trained.err
    result = visualize(plain_run, "--baseline", other)
    assert result.code == 2
    assert f"--baseline {other} must have the classes of {plain_run}/last.pt" in result.err


@pytest.mark.slow
def test_runs_as_a_process_from_anywhere(run_process, dcn_run, photo, tmp_path):
    tool = Path(__file__).resolve().parents[2] / "tools/visualize.py"
    result = run_process(tool, os.path.relpath(dcn_run, tmp_path), "--images", photo.name, cwd=tmp_path)
    try:
        assert result.code == 0, result.err
        assert (dcn_run / "figures/photo_masks.png").is_file()
        assert result.err == ""
    finally:
        shutil.rmtree(dcn_run / "figures", ignore_errors=True)
