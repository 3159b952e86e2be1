"""Predictors with the config of their run, against the model called directly."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from engine.building.model import build_model
from engine.config.loading import load_config
from engine.config.options import ModelConfig
from engine.inference.predictor import load_predictor
from engine.runs.checkpoint import save_checkpoint
from engine.runs.folder import LAST
from models import DETECTORS
from models.predictor import Predictor
from models.tile_merging import Views, merge_views
from models.tiling import tile_windows

NAMES = ["bar", "cross", "star", "tee", "triangle"]
KEYS = ("boxes", "labels", "scores")


@pytest.fixture(scope="module")
def run(tiny_config, tmp_path_factory):
    """Folder of a run whose raw and averaged weights are different random ones."""
    folder = tmp_path_factory.mktemp("run")
    config = load_config(tiny_config, ["model.backbone.dcn_v2_stages=[2]", "train.ema_decay=0.9"])
    states = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model, _ = build_model(config.model, config.data, len(NAMES))
        states.append(model.state_dict())
    about = {"config": config.model_dump(mode="json"), "class_names": NAMES, "category_ids": [1, 2, 3, 4, 5]}
    save_checkpoint(folder / LAST, about | {"model": states[0], "ema": {"model": states[1]}, "step": 4})
    return folder


@pytest.fixture(scope="module")
def direct(tiny_config):
    """`direct("raw")`: the model, built without the predictor."""

    def build(weights):
        config = load_config(tiny_config, ["model.backbone.dcn_v2_stages=[2]"])
        torch.manual_seed({"raw": 0, "ema": 1}[weights])
        model, _ = build_model(config.model, config.data, len(NAMES))
        return model.eval()

    return build


@pytest.fixture(scope="module")
def files(shapes):
    return sorted((shapes / "val").glob("*.png"))


def assert_same(found, expected):
    assert len(expected["boxes"]) > 0
    for key in KEYS:
        assert torch.equal(found[key], expected[key]), key


@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_it_gives_what_the_model_gives(run, direct, files, weights):
    predictor = load_predictor(run, weights=weights, score_threshold=0)
    image = torch.from_numpy(np.array(Image.open(files[0]))).permute(2, 0, 1)
    with torch.inference_mode():
        (expected,) = direct(weights)([image / 255])
    found = predictor(Image.open(files[0]))
    assert_same(found, expected)
    assert found["names"] == [NAMES[label - 1] for label in expected["labels"].tolist()]
    assert set(found) == {*KEYS, "names"}
    # boxes are pixels of the image, not of what it was scaled to
    assert found["boxes"][:, [0, 2]].max() > 80
    assert found["boxes"][:, [0, 2]].max() <= 96
    assert found["boxes"][:, [1, 3]].max() <= 80


def test_the_evaluated_weights_are_the_default_for_a_file_and_a_folder(run, files):
    one = load_predictor(run, score_threshold=0)
    other = load_predictor(str(run / LAST), weights="ema", score_threshold=0)
    assert_same(one(files[0]), other(str(files[0])))


def in_float64(predictor: Predictor) -> Predictor:
    """The same detector, where another order of sums does not choose other detections."""
    predictor.model.double().register_forward_pre_hook(lambda module, args: ([image.double() for image in args[0]],))
    return predictor


def test_a_list_is_one_by_one_and_in_batches(run, files):
    predictor = in_float64(load_predictor(run, score_threshold=0))
    alone = [predictor(file) for file in files]
    assert len(files) == 6
    for found, expected in zip(predictor(files), alone, strict=True):
        assert_same(found, expected)
    for found, expected in zip(predictor(tuple(files), batch_size=4), alone, strict=True):
        assert found["labels"].tolist() == expected["labels"].tolist()
        for key in ("boxes", "scores"):
            torch.testing.assert_close(found[key], expected[key])
    assert predictor([]) == []
    with pytest.raises(ValueError, match="`batch_size` must be at least 1, got 0"):
        predictor(files, batch_size=0)


def test_the_score_threshold_leaves_the_rest_as_it_is(run, files, widest_gap):
    everything = load_predictor(run, score_threshold=0)(files[1])
    threshold = widest_gap(everything["scores"])
    found = load_predictor(run, score_threshold=threshold)(files[1])
    kept = everything["scores"] > threshold
    assert 0 < kept.sum() < len(kept)
    assert_same(found, {key: everything[key][kept] for key in KEYS})
    assert len(found["names"]) == kept.sum()
    assert not len(load_predictor(run)(files[1])["boxes"])  # random weights are sure of nothing; the default is 0.5


def test_the_threshold_of_the_config_holds_too(run, files, widest_gap):
    everything = load_predictor(run, score_threshold=0)(files[1])
    threshold = widest_gap(everything["scores"])
    strict = f"model.faster_rcnn.score_threshold={threshold}"
    found = load_predictor(run, score_threshold=0, overrides=[strict])(files[1])
    kept = everything["scores"] > threshold
    assert 0 < kept.sum() < len(kept)
    assert_same(found, {key: everything[key][kept] for key in KEYS})


def test_horizontal_flip(run, files):
    plain, flip = (
        in_float64(load_predictor(run, score_threshold=0, overrides=[f"tta.flip={on}"])) for on in ("false", "true")
    )
    image = torch.from_numpy(np.array(Image.open(files[2]))).permute(2, 0, 1)
    both = flip(image)
    assert both["scores"][0] == max(plain(image)["scores"].max(), plain(image.flip(2))["scores"].max())
    assert len(both["scores"]) > len(plain(image)["scores"])
    mirrored = flip(image.flip(2))
    torch.testing.assert_close(both["scores"], mirrored["scores"])
    torch.testing.assert_close(both["boxes"][:, 0], 96 - mirrored["boxes"][:, 2], rtol=0, atol=1e-4)


def test_tiles_are_detected_as_images_and_merged(run, files):
    image = torch.from_numpy(np.array(Image.open(files[2]))).permute(2, 0, 1)
    windows = tile_windows(image.shape[2], image.shape[1], 48, 0.25)
    assert len(windows) > 3
    windows.append((0, 0, image.shape[2], image.shape[1]))  # the whole image
    plain = load_predictor(run, score_threshold=0)
    parts = [plain(image[:, top:bottom, left:right]) for left, top, right, bottom in windows]
    boxes = [one["boxes"] + torch.tensor([*window[:2]] * 2) for one, window in zip(parts, windows, strict=True)]
    cut = [is_cut(*each, image.shape) for each in zip(boxes, windows, strict=True)]
    joined = [torch.cat(each) for each in (boxes, *([one[key] for one in parts] for key in ("labels", "scores")))]
    tiles = torch.cat([torch.full((len(own),), index) for index, own in enumerate(boxes)])
    merged = merge_views(Views(*(each.numpy() for each in (*joined, tiles, torch.cat(cut), torch.tensor(windows)))))
    tiled = load_predictor(run, score_threshold=0, overrides=["tile.size=48", "tile.overlap=0.25"])
    for found in (tiled(image), Predictor.load(run, score_threshold=0, tile=48, overlap=0.25)(image)):
        assert np.allclose([each.box for each in merged], found["boxes"], atol=1e-4)
        assert np.allclose([each.score for each in merged], found["scores"], atol=1e-6)
        assert joined[1][[each.parts[0] for each in merged]].tolist() == found["labels"].tolist()
    assert_same(tiled(image[:, :48, :40]), plain(image[:, :48, :40]))


def is_cut(boxes, window, shape):
    sides = zip(boxes.T, window, (0, 0, shape[2], shape[1]), strict=True)
    near = [(values - side).abs() <= 2 for values, side, end in sides if side != end]
    return torch.stack(near).any(0) if near else torch.zeros(len(boxes), dtype=torch.bool)


@pytest.fixture(scope="module", params=DETECTORS)
def any_run(request, tiny_config, tmp_path_factory, formula_weights):
    """Folder of a run of each detector, with random weights, and its name."""
    name = request.param
    sizes = [f"model.{name}.anchor_sizes=[16, 32, 64]"] if hasattr(getattr(ModelConfig(), name), "anchor_sizes") else []
    options = [
        f"model.{name}.score_threshold=0.0",
        f"model.{name}.detections_per_image=20",
        "model.fpn.out_channels=64",
    ]
    config = load_config(tiny_config, [f"model.detector={name}", *options, *sizes])
    torch.manual_seed(0)
    model, _ = build_model(config.model, config.data, len(NAMES))
    formula_weights(model)  # as it begins, scores are nearly the same
    about = {"config": config.model_dump(mode="json"), "class_names": NAMES, "category_ids": [1, 2, 3, 4, 5]}
    folder = tmp_path_factory.mktemp(name)
    save_checkpoint(folder / LAST, about | {"model": model.state_dict(), "ema": None, "step": 1})
    return folder, name


@pytest.mark.parametrize("flip", ["false", "true"])
def test_the_threshold_is_obeyed_by_every_detector_and_masks_come_along(any_run, files, flip, widest_gap):
    folder, name = any_run
    everything = load_predictor(folder, score_threshold=0, overrides=[f"tta.flip={flip}"])(files[1])
    threshold = widest_gap(everything["scores"])
    found = load_predictor(folder, score_threshold=threshold, overrides=[f"tta.flip={flip}"])(files[1])
    keys = (*KEYS, "masks") if DETECTORS[name].has_masks else KEYS
    assert set(found) == {*keys, "names"}
    kept = everything["scores"] > threshold
    assert 0 < kept.sum() < len(kept)
    for key in keys:
        assert torch.allclose(found[key].double(), everything[key][kept].double(), atol=1e-5), key
    if "masks" in keys:
        assert found["masks"].shape == (len(found["boxes"]), 1, 80, 96)
        for mask, (left, top, right, bottom) in zip(found["masks"], found["boxes"].tolist(), strict=True):
            rows, columns = mask[0].nonzero(as_tuple=True)
            assert left - 3 <= columns.min() <= columns.max() <= right + 3
            assert top - 3 <= rows.min() <= rows.max() <= bottom + 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "tpu"}, "device: expected auto, cpu, cuda, cuda:N or mps, got 'tpu'"),
        ({"score_threshold": 1.5}, "the score threshold must be from 0 to 1, got 1.5"),
        ({"score_threshold": float("nan")}, "the score threshold must be"),
        ({"overrides": ["model.nothing=1"]}, "model.nothing"),
    ],
)
def test_errors(run, options, message):
    with pytest.raises(ValueError, match=message):
        load_predictor(run, **options)


def test_no_checkpoint_there(run, tmp_path):
    with pytest.raises(ValueError, match=rf"{tmp_path / LAST} does not exist"):
        load_predictor(tmp_path)
    with pytest.raises(ValueError, match="none does not exist"):
        load_predictor(tmp_path / "none")
    shutil.copy(run / LAST, tmp_path / LAST)
    with (tmp_path / LAST).open("r+b") as file:
        file.truncate(2000)
    with pytest.raises(ValueError, match="it is truncated"):
        load_predictor(tmp_path)


@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_it_detects_what_a_predictor_without_the_config_does(run, files, weights, widest_gap):
    options = {"weights": weights, "score_threshold": 0}
    options["score_threshold"] = widest_gap(load_predictor(run, **options)(files[1])["scores"])
    found, expected = (load(run, **options) for load in (Predictor.load, load_predictor))
    assert (found.class_names, found.device, found.amp) == (NAMES, expected.device, expected.amp)
    assert_same(found(files[1]), expected(files[1]))
    assert found(files[1])["names"] == expected(files[1])["names"]
