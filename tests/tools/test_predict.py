"""tools/predict.py: pictures, videos and COCO JSON, against the Python interface and tools/eval.py."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from pycocotools.coco import COCO

from data import read_image
from engine.building.model import build_model
from engine.config.loading import load_config
from engine.display.drawing import draw_detections
from engine.evaluation.coco_eval import COCO_METRICS
from engine.runs.checkpoint import save_checkpoint
from models.predictor import Predictor, image_tensor

TOOL = Path(__file__).resolve().parents[2] / "tools/predict.py"


@pytest.fixture
def predict(run_tool, tmp_path):
    """`predict(run, *arguments)` runs the tool in tmp_path, into its folder out."""
    return lambda run, *arguments: run_tool("predict", run, *arguments, "--out", tmp_path / "out", cwd=tmp_path)


@pytest.fixture(scope="module")
def predictor(dcn_run):
    return Predictor.load(dcn_run, score_threshold=0)


@pytest.fixture
def photos(shapes, tmp_path):
    """A folder of pictures of several kinds and sizes, in folders."""
    folder = tmp_path / "photos"
    (folder / "deep/er").mkdir(parents=True)
    shutil.copy(shapes / "val/000001.png", folder / "one.png")
    with Image.open(shapes / "val/000002.png") as picture:
        picture.resize((150, 60)).save(folder / "deep/one.JPG", quality=95)
        picture.convert("L").save(folder / "deep/er/one.bmp")
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        picture.save(folder / "deep/turned.jpg", exif=exif, quality=95)
    return folder


def written(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def as_array(file):
    with Image.open(file) as picture:
        assert picture.mode == "RGB"
        return np.array(picture).astype(int)


def test_a_folder_of_images(predict, dcn_run, predictor, photos, tmp_path):
    code, out, err = predict(dcn_run, "photos", "--score-threshold", "0", "--json", "found.json")
    assert (code, err) == (0, "")
    names = ["deep/er/one.bmp", "deep/one.JPG", "deep/turned.jpg", "one.png"]
    assert written(tmp_path / "out") == {"deep/er/one.bmp.png", *names[1:]}
    found = predictor([photos / name for name in names])
    for name, detections in zip(names, found, strict=True):
        picture = draw_detections(
            image_tensor(photos / name), detections, predictor.class_names, score_threshold=0, short_side=None
        )
        shown = as_array(tmp_path / "out" / (name + ".png" * name.endswith("bmp")))
        assert shown.shape == (*picture.shape[1:], 3)
        drawn, plain = picture.permute(1, 2, 0).numpy(), read_image(photos / name).permute(1, 2, 0).numpy()
        least = np.abs(plain - drawn.astype(int)).mean() / 3 if name.lower().endswith("jpg") else 0
        assert np.abs(shown - drawn).mean() <= least
        counts = [f"{detections['names'].count(label)} {label}" for label in {*detections["names"]}]
        (line,) = re.findall(rf"^\d/4 {name}: (.*)$", out, re.MULTILINE)
        assert sorted(line.split(", ")) == sorted(counts)
    assert as_array(tmp_path / "out/deep/turned.jpg").shape == (96, 80, 3)

    for label in predictor.class_names:
        objects = sum(one["names"].count(label) for one in found)
        best = max(one["scores"][[n == label for n in one["names"]]].max().item() for one in found)
        images = sum(label in one["names"] for one in found)
        assert re.search(rf"^  {label} +{objects} +{images} +{best:.2f}$", out, re.MULTILINE)
    total = sum(len(one["names"]) for one in found)
    assert re.search(
        rf"^{total} objects in 4 images, [\d.]+ images/s including reading, drawing and writing$", out, re.M
    )
    assert "\x1b" not in out
    assert f"{dcn_run / 'last.pt'} (weights of step 6), cpu, minimum score 0" in out

    # the JSON as pycocotools reads it
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(tmp_path / "found.json")
    assert [entry["file_name"] for entry in coco.dataset["images"]] == names
    assert [category["name"] for category in coco.dataset["categories"]] == predictor.class_names
    for entry, detections in zip(coco.dataset["images"], found, strict=True):
        with Image.open(photos / entry["file_name"]) as picture:
            stored = picture.size
        upright = stored[::-1] if "turned" in entry["file_name"] else stored
        assert (entry["width"], entry["height"]) == upright
        mine = coco.loadAnns(coco.getAnnIds(imgIds=entry["id"]))
        assert len(mine) == len(detections["boxes"])
        for annotation, box, label, score in zip(
            mine, detections["boxes"], detections["labels"], detections["scores"].tolist(), strict=True
        ):
            assert (annotation["category_id"], annotation["score"]) == (label, score)
            x, y, w, h = annotation["bbox"]
            assert torch.allclose(torch.tensor([x, y, x + w, y + h]), box, atol=1e-4)
            assert annotation["area"] == pytest.approx(w * h)


@pytest.fixture
def split(shapes, tmp_path):
    """Folder and file of a val split with other ids in another order, one picture of which EXIF would turn."""
    folder = shutil.copytree(shapes / "val", tmp_path / "val")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    with Image.open(folder / "000003.png") as picture:
        picture.load()
        picture.save(folder / "000003.png", exif=exif)  # its boxes are about the pixels as stored
    raw = json.loads((shapes / "annotations/val.json").read_text())
    raw["images"] = [entry | {"id": 10 * entry["id"] + 1} for entry in reversed(raw["images"])]
    raw["annotations"] = [entry | {"image_id": 10 * entry["image_id"] + 1} for entry in raw["annotations"]]
    (tmp_path / "truth.json").write_text(json.dumps(raw))
    return folder, tmp_path / "truth.json"


def judge(run_tool, tmp_path, results, annotations):
    files = ["--results", results, "--annotations", annotations, "--json", tmp_path / "figures.json"]
    code, _, err = run_tool("eval", *files)
    assert code == 0, err
    return json.loads((tmp_path / "figures.json").read_text())


TILES = ["--tile", "48", "--overlap", "0.3"]


@pytest.mark.parametrize("mode", [["tta.flip=false"], ["tta.flip=true"], [*TILES, "tta.flip=true"]])
def test_its_results_have_the_ap_of_eval(predict, run_tool, dcn_run, split, tmp_path, mode):
    folder, truth = split
    model = ["--config", dcn_run / "config.yaml", "--checkpoint", dcn_run / "last.pt", "train.batch_size=1"]
    outputs = ["--json", tmp_path / "expected.json", "--detections", tmp_path / "expected.detections.json"]
    places = [f"data.val.images={folder}", f"data.val.annotations={truth}"]
    code, out, err = run_tool("eval", *model, *outputs, *places, *mode)
    assert code == 0, err
    assert (", with horizontal flip" in out) == ("tta.flip=true" in mode)
    assert (", in tiles of 48 pixels with an overlap of 0.3, " in out) == ("--tile" in mode)
    expected = json.loads((tmp_path / "expected.json").read_text())
    info = tmp_path / "info.json"  # COCO's test splits have no annotations
    info.write_text(json.dumps({part: json.loads(truth.read_text())[part] for part in ("images", "categories")}))
    options = [
        "--score-threshold",
        "0",
        "--no-images",
        "--annotations",
        info,
        "--json",
        "results.json",
        *mode,
    ]
    code, out, err = predict(dcn_run, folder, *options)
    assert (code, err) == (0, "")
    assert not (tmp_path / "out").exists()
    tiles = {"tile": 48, "tile_overlap": 0.3} if "--tile" in mode else {}
    assert judge(run_tool, tmp_path, tmp_path / "results.json", truth) | tiles == expected
    assert expected["AR100"] > 0
    assert set(expected) >= {*COCO_METRICS}
    ours, theirs = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("results", "expected.detections"))
    assert sorted(ours, key=json.dumps) == sorted(theirs, key=json.dumps)
    with contextlib.redirect_stdout(io.StringIO()):
        assert len(COCO(truth).loadRes(str(tmp_path / "results.json")).anns) == len(ours)


def test_horizontal_flip_changes_the_detections(predict, dcn_run, shapes, tmp_path):
    for flip in ("false", "true"):
        code, out, _ = predict(
            dcn_run,
            shapes / "val",
            "--score-threshold",
            "0",
            "--no-images",
            "--json",
            f"{flip}.json",
            f"tta.flip={flip}",
        )
        assert code == 0
        assert ("with horizontal flip" in out) == (flip == "true")
    one, other = (json.loads((tmp_path / f"{flip}.json").read_text()) for flip in ("false", "true"))
    assert one["images"] == other["images"]
    assert len(other["annotations"]) > len(one["annotations"])


def test_the_threshold_of_the_config_is_reported_where_it_is_the_higher(predict, dcn_run, photos):
    option = "model.faster_rcnn.score_threshold=0.25"
    for given, told in (("0.2", r"0\.25 \(model\.faster_rcnn\.score_threshold\)"), ("0.3", r"0\.3")):
        code, out, _ = predict(dcn_run, photos / "one.png", "--score-threshold", given, "--no-images", option)
        assert code == 0
        assert "no effect" not in out
        assert re.search(rf"minimum score {told}$", out, re.MULTILINE)


def test_the_threshold_of_another_detector_is_reported(predict, dcn_run, photos):
    code, out, _ = predict(dcn_run, photos / "one.png", "--no-images", "model.fcos.score_threshold=0.6")
    assert code == 0
    assert "these options have no effect:\n  - model.fcos.score_threshold: model.detector is faster_rcnn\n" in out


def test_batches_and_threshold(predict, dcn_run, predictor, shapes, tmp_path, widest_gap):
    sizes = []
    everything = predictor(sorted((shapes / "val").glob("*.png")), batch_size=4)
    score = widest_gap(torch.cat([one["scores"] for one in everything]))
    hook = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, args: sizes.append(len(args[0])) if hasattr(module, "rpn") else None
    )
    with hook:
        code = predict(
            dcn_run, shapes / "val", "--batch-size", "4", "--score-threshold", score, "--no-images", "--json", "f.json"
        ).code
    assert (code, sizes) == (0, [4, 2])
    found = json.loads((tmp_path / "f.json").read_text())["annotations"]
    expected = [score for one in everything for score in one["scores"].tolist()]
    assert [entry["score"] for entry in found] == [kept for kept in expected if kept > score]
    assert 0 < len(found) < len(expected)


def test_images_are_next_to_the_checkpoint(run_tool, dcn_run, photos, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(dcn_run / "last.pt", run / "best.pt")
    code, out, _ = run_tool("predict", run / "best.pt", photos / "one.png")
    assert code == 0
    assert written(run / "predictions") == {"one.png"}
    assert f"images: {run / 'predictions'}" in out
    # nothing scores 0.5 after six steps: the picture is as it was
    assert "0 objects in 1 image," in out
    assert np.array_equal(
        as_array(run / "predictions/one.png"), read_image(photos / "one.png").permute(1, 2, 0).numpy()
    )
    # results within the folder of inputs are no inputs
    assert run_tool("predict", run / "best.pt", run.parent, "--no-images").out.count("one.png") == 1


def test_what_cannot_be_read_is_named_and_left_out(predict, dcn_run, photos, tmp_path):
    (photos / "cut.png").write_bytes((photos / "one.png").read_bytes()[:500])
    (photos / "text.jpg").write_text("no picture")
    Image.new("RGB", (1, 97)).save(photos / "thin.png")  # max_size is 96
    code, out, _ = predict(dcn_run, "photos", "--json", "found.json", "--batch-size", "3")
    assert code == 1
    assert "skipped: image" in out
    assert re.search(r"not readable, or only in part: .*photos/cut.png, .*photos/text.jpg, .*photos/thin.png$", out)
    assert written(tmp_path / "out") == {"deep/er/one.bmp.png", "deep/one.JPG", "deep/turned.jpg", "one.png"}
    images = json.loads((tmp_path / "found.json").read_text())["images"]
    assert [entry["id"] for entry in images] == [1, 2, 3, 4]


def test_all_of_a_folder_is_an_input_or_named(predict, dcn_run, photos, tmp_path):
    (photos / "gone.png").symlink_to("nothing.png")
    os.mkfifo(photos / "pipe.png")
    (photos / "video.mp4").symlink_to("/dev/zero")
    (photos / "photo.heic").write_text("of a phone")
    Image.new("RGB", (60, 50)).save(photos / "new.avif")
    Image.fromarray(np.array([[5, 4095]] * 2, np.uint16)).save(photos / "deep.png")
    frames = [Image.new("L", (60, 50), grey) for grey in (9, 200)]
    frames[0].save(photos / "moves.gif", save_all=True, append_images=frames[1:])
    code, out, _ = predict(dcn_run, "photos", "--no-images", "--json", "found.json")
    assert code == 1
    assert f"passed over: files with the suffix .heic: 1 ({photos}/photo.heic)" in out
    assert f"skipped: image {photos}/gone.png does not exist" in out
    assert f"skipped: image {photos}/pipe.png must be a regular file, got a named pipe" in out
    assert f"skipped: video {photos}/video.mp4 must be a regular file, got a device" in out
    assert re.search(r"16-bit images that are dark, with values up to 4095: .*: 1; the first: deep.png", out)
    assert "images with several frames or pages, of which only the first is used: 1; the first: moves.gif" in out
    found = {entry["file_name"] for entry in json.loads((tmp_path / "found.json").read_text())["images"]}
    assert found == {
        "deep.png",
        "deep/er/one.bmp",
        "deep/one.JPG",
        "deep/turned.jpg",
        "moves.gif",
        "new.avif",
        "one.png",
    }


def test_only_earlier_results_are_written_over(predict, dcn_run, photos, tmp_path, files_of):
    options = ["--score-threshold", "0", "--json", "found.json"]
    assert predict(dcn_run, "photos", *options).code == 0
    first = files_of(tmp_path / "out")
    code, _, err = predict(dcn_run, "photos", *options)
    assert (code, err) == (0, "")
    second = files_of(tmp_path / "out")
    assert {name: content for name, (content, _) in first.items()} == {n: c for n, (c, _) in second.items()}
    assert all(second[name][1] > first[name][1] for name in first)

    shutil.copy(photos / "one.png", tmp_path / "out/one.png")
    before = files_of(tmp_path)
    code, _, err = predict(dcn_run, "photos")
    assert code == 2
    assert f"{tmp_path / 'out/one.png'} exists and is not an earlier result" in err
    code, _, err = predict(dcn_run, "photos/deep", "--json", "photos/one.png")
    assert code == 2
    assert "--json photos/one.png exists and does not hold earlier results" in err
    (tmp_path / "mine.json").write_text('{"mine": 1}')
    assert predict(dcn_run, "photos/deep", "--json", "mine.json").code == 2
    (tmp_path / "mine.json").unlink()
    assert files_of(tmp_path) == before


def test_an_input_is_never_written_over(run_tool, dcn_run, photos, files_of):
    before = files_of(photos)
    code, _, err = run_tool("predict", dcn_run, photos / "one.png", "--out", photos)
    assert code == 2
    assert f"must not overwrite the input {photos / 'one.png'}" in err
    assert files_of(photos) == before


@pytest.fixture
def clip(tmp_path):
    """`clip(name, frames)`: a video in which a shape moves, by PyAV alone."""
    av = pytest.importorskip("av")

    def write(name, count):
        file = tmp_path / name
        with av.open(str(file), "w") as container:
            stream = container.add_stream("mpeg4", rate=12)
            stream.width, stream.height, stream.pix_fmt = 112, 80, "yuv420p"
            for index in range(count):
                picture = np.full((80, 112, 3), 30, np.uint8)
                picture[20:60, 4 * index : 4 * index + 40] = (220, 60, 40)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
        return file

    return write


def frames_of(file):
    import av

    with av.open(str(file)) as container:
        rate = container.streams.video[0].average_rate
        return rate, [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(video=0)]


def test_a_video(predict, dcn_run, predictor, clip, photos, tmp_path):
    file = clip("clip.avi", 9)
    code, out, err = predict(
        dcn_run, file, "photos", "--score-threshold", "0", "--batch-size", "4", "--json", "found.json"
    )
    assert (code, err) == (0, "")
    assert {"clip.avi.mp4", "photos/one.png"} <= written(tmp_path / "out")
    (rate, before), (their_rate, after) = frames_of(file), frames_of(tmp_path / "out/clip.avi.mp4")
    assert rate == their_rate == 12
    assert [frame.shape for frame in after] == [(80, 112, 3)] * 9
    entries = json.loads((tmp_path / "found.json").read_text())
    frames = [entry for entry in entries["images"] if "frame" in entry]
    assert [(entry["file_name"], entry["frame"]) for entry in frames] == [
        (f"clip.avi/frame_{index:06d}.png", index) for index in range(9)
    ]
    images = [torch.from_numpy(frame.astype(np.uint8)).permute(2, 0, 1) for frame in before]
    expected = predictor(images, batch_size=4)
    for index in (0, 8):
        image, found = images[index], expected[index]
        picture = draw_detections(image, found, predictor.class_names, score_threshold=0, short_side=None)
        drawn = picture.permute(1, 2, 0).numpy()
        assert np.abs(after[index] - drawn).mean() < np.abs(before[index] - drawn).mean() / 3
        mine = [entry for entry in entries["annotations"] if entry["image_id"] == frames[index]["id"]]
        assert [entry["score"] for entry in mine] == found["scores"].tolist()
    assert "clip.avi, frame 0/9: " in out

    # an earlier result gives way, another file does not
    assert predict(dcn_run, file, "--frame-stride", "4").code == 0
    rate, after = frames_of(tmp_path / "out/clip.avi.mp4")
    assert (rate, len(after)) == (3, 3)
    assert all(np.abs(after[place] - before[4 * place]).mean() < 10 for place in range(3))
    shutil.copy(file, tmp_path / "out/clip.avi.mp4")
    assert predict(dcn_run, file).code == 2


def test_videos_that_cannot_be_read(predict, dcn_run, clip, tmp_path):
    clip("good.mp4", 2)
    (tmp_path / "bad.mp4").write_text("no video")
    code, out, _ = predict(dcn_run, "*.mp4", "--score-threshold", "0")
    assert code == 1
    assert "skipped: video" in out
    assert written(tmp_path / "out") == {"good.mp4"}
    assert "in 2 images" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.jpg"], "input gone.jpg does not exist (resolved: {place}/gone.jpg)"),
        (["nothing/*.jpg"], "input nothing/*.jpg matches no image or video (resolved: {place}/nothing/*.jpg)"),
        (["photos", "--score-threshold", "2"], "--score-threshold: must be a number from 0 to 1, got '2'"),
        (["photos", "--batch-size", "0"], "--batch-size: must be an integer of at least 1, got '0'"),
        (["photos", "--frame-stride", "0"], "--frame-stride: must be an integer of at least 1, got '0'"),
        (["photos", "--frame-stride", "2"], "--frame-stride has no effect: it needs a video"),
        (["photos", "--annotations", "a.json"], "--annotations has no effect: it needs --json"),
        (["photos", "--json", "f.json", "--annotations", "a.json"], "annotation file a.json does not exist"),
        (
            ["photos", "--json", "f.json", "--annotations", "val.json"],
            "4 of 4 images are not in",
        ),
        (["photos", "--weights", "ema"], "does not contain EMA weights"),
        (["photos", "model.nothing=3"], "model.nothing"),
        (["photos", "device=tpu"], "device: expected auto, cpu, cuda, cuda:N or mps, got 'tpu'"),
        (["device=cpu"], "give at least one INPUT"),
    ],
)
def test_errors(predict, dcn_run, photos, shapes, tmp_path, arguments, message):
    shutil.copy(shapes / "annotations/val.json", tmp_path)
    code, _, err = predict(dcn_run, *arguments)
    assert code == 2
    assert message.format(place=tmp_path) in err
    assert "Traceback" not in err
    assert not (tmp_path / "f.json").exists()
    assert not written(tmp_path / "out")


def test_a_place_that_cannot_be_written(run_tool, dcn_run, photos):
    code, _, err = run_tool("predict", dcn_run, photos, "--out", "/proc/none/out")
    assert code == 2
    assert "/proc/none" in err


def test_annotations_of_other_classes(predict, dcn_run, shapes, tmp_path):
    raw = json.loads((shapes / "annotations/val.json").read_text())
    raw["categories"][0]["name"] = "other"
    (tmp_path / "val.json").write_text(json.dumps(raw))
    code, _, err = predict(dcn_run, shapes / "val", "--json", "f.json", "--annotations", "val.json")
    assert code == 2
    assert "categories of checkpoint" in err


def test_no_run_there(predict, photos, tmp_path):
    code, _, err = predict(tmp_path, "photos")
    assert code == 2
    assert f"{tmp_path}/last.pt does not exist" in err


def test_help_shows_examples(run_tool):
    code, out, _ = run_tool("predict", "--help")
    assert code == 0
    assert "python tools/predict.py runs/r50_dcn street.jpg" in out


def test_stopped_by_the_user_all_images_are_complete(start_process, dcn_run, photos, tmp_path):
    for index in range(1500):
        shutil.copy(photos / "one.png", photos / f"{index:03d}.png")
    process = start_process(TOOL, dcn_run, "photos", "--out", "out", "--score-threshold", "0", cwd=tmp_path)
    deadline = time.monotonic() + 600
    while sum(name.endswith(".png") for name in written(tmp_path / "out")) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=600)
    assert process.returncode == 1
    names = written(tmp_path / "out")
    assert 3 <= len(names) < 1500
    for name in names:
        assert name.endswith(".png")
        with Image.open(tmp_path / "out" / name) as picture:
            picture.load()


@pytest.fixture(scope="module")
def mask_run(tiny_config, tmp_path_factory):
    """Folder of a run with masks, its weights random."""
    options = ["anchor_sizes=[16, 32, 64]", "box_head_channels=32", "score_threshold=0.0", "detections_per_image=6"]
    config = load_config(tiny_config, ["model.detector=mask_rcnn", *(f"model.mask_rcnn.{text}" for text in options)])
    torch.manual_seed(0)
    names = ["bar", "cross", "star", "tee", "triangle"]
    model, _ = build_model(config.model, config.data, len(names))
    about = {"config": config.model_dump(mode="json"), "class_names": names, "category_ids": [1, 2, 3, 4, 5]}
    folder = tmp_path_factory.mktemp("mask_run")
    save_checkpoint(folder / "last.pt", about | {"model": model.state_dict(), "ema": None, "step": 0})
    return folder


def test_masks_are_drawn_and_written(predict, mask_run, photos, tmp_path):
    code, _, err = predict(mask_run, photos / "one.png", "--score-threshold", "0", "--json", "found.json")
    assert (code, err) == (0, "")
    found = Predictor.load(mask_run, score_threshold=0)(photos / "one.png")
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(tmp_path / "found.json")
    assert len(coco.anns) == len(found["masks"]) == 6
    for annotation, mask in zip(coco.anns.values(), found["masks"], strict=True):
        expected = mask[0].numpy() >= 0.5
        assert np.array_equal(coco.annToMask(annotation), expected)
        assert annotation["area"] == expected.sum()
    image = image_tensor(photos / "one.png")
    names = ["bar", "cross", "star", "tee", "triangle"]
    drawn, without = (
        draw_detections(image, detections, names, score_threshold=0, short_side=None).permute(1, 2, 0).numpy()
        for detections in (found, {key: value for key, value in found.items() if key != "masks"})
    )
    assert np.array_equal(as_array(tmp_path / "out/one.png"), drawn)
    assert (drawn != without).any()


def test_inputs_with_one_result_are_an_error(run_tool, plain_run, tmp_path):
    for name in ("a.tif", "a.tif.png"):
        Image.new("RGB", (40, 30)).save(tmp_path / name)
    code, _, err = run_tool("predict", plain_run, tmp_path, "--out", tmp_path / "out")
    assert code == 2
    assert f"the results of {tmp_path / 'a.tif'} and {tmp_path / 'a.tif.png'} must be different files" in err
    assert not (tmp_path / "out").exists()


def test_a_link_in_the_place_of_a_result_is_not_followed(run_tool, plain_run, tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "out/a.png.partial").symlink_to(tmp_path / "victim")
    assert run_tool("predict", plain_run, tmp_path / "a.png", "--out", tmp_path / "out").code == 0
    (tmp_path / "out/a.png").unlink()
    (tmp_path / "out/a.png").symlink_to(tmp_path / "victim")
    code, _, err = run_tool("predict", plain_run, tmp_path / "a.png", "--out", tmp_path / "out")
    assert (code, "is not an earlier result" in err) == (2, True)
    assert (tmp_path / "victim").read_text() == "mine"


@pytest.mark.skipif(sys.platform == "win32", reason="its file names are Unicode")
def test_names_that_are_not_utf_8_and_a_terminal_of_ascii(run_process, plain_run, tmp_path):
    name = os.fsdecode(b"\xff\x1b[31m.png")
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / name)
    options = ["--out", "out", "--json", "found.json", "--score-threshold", "0"]
    result = run_process(TOOL, plain_run, tmp_path / name, *options, cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert (result.code, result.err) == (0, "")
    assert r"1/1 \udcff\x1b[31m.png: " in result.out
    assert "\x1b" not in result.out
    assert json.loads((tmp_path / "found.json").read_text())["images"][0]["file_name"] == name
    assert (tmp_path / "out" / name).is_file()
