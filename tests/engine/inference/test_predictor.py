"""The Python interface, against the model called directly; and pictures of every kind."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from data import read_image
from engine.building.model import build_model
from engine.config.loading import load_config
from engine.config.options import ModelConfig
from engine.inference.predictor import Predictor, image_tensor
from engine.runs.checkpoint import save_checkpoint
from engine.runs.folder import LAST
from models import DETECTORS

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
    predictor = Predictor.load(run, weights=weights, score_threshold=0)
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


def test_the_judged_weights_are_the_default_and_a_file_is_as_good_as_a_folder(run, files):
    one = Predictor.load(run, score_threshold=0)
    other = Predictor.load(str(run / LAST), weights="ema", score_threshold=0)
    assert_same(one(files[0]), other(str(files[0])))


def in_float64(predictor: Predictor) -> Predictor:
    """The same detector, where another order of sums does not choose other detections."""
    predictor.model.double().register_forward_pre_hook(lambda module, args: ([image.double() for image in args[0]],))
    return predictor


def test_a_list_is_one_by_one_and_in_batches(run, files):
    predictor = in_float64(Predictor.load(run, score_threshold=0))
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


class Counting(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.sizes = []

    def forward(self, images):
        assert not self.training
        assert all(image.dtype == torch.float32 for image in images)
        self.sizes.append(len(images))
        return [
            {
                "boxes": torch.ones(1, 4, dtype=torch.float64),
                "labels": torch.tensor([2]),
                "scores": torch.ones(1),
                "masks": torch.full((1, 1, *image.shape[1:]), 0.5),
            }
            for image in images
        ]


def test_batches_masks_and_names():
    model = Counting()
    predictor = Predictor(model, ["cat", "dog"], device=torch.device("cpu"))
    images = [torch.zeros(3, 5, 4 + width, dtype=torch.uint8) for width in range(7)]
    found = predictor(images, batch_size=3)
    assert model.sizes == [3, 3, 1]
    assert [one["masks"].shape for one in found] == [(1, 1, 5, 4 + width) for width in range(7)]
    assert found[0]["names"] == ["dog"]
    assert found[0]["boxes"].dtype == torch.float32


def test_the_score_threshold_leaves_the_rest_as_it_is(run, files, widest_gap):
    everything = Predictor.load(run, score_threshold=0)(files[1])
    threshold = widest_gap(everything["scores"])
    found = Predictor.load(run, score_threshold=threshold)(files[1])
    kept = everything["scores"] > threshold
    assert 0 < kept.sum() < len(kept)
    assert_same(found, {key: everything[key][kept] for key in KEYS})
    assert len(found["names"]) == kept.sum()
    assert not len(Predictor.load(run)(files[1])["boxes"])  # random weights are sure of nothing; the default is 0.5


def test_the_threshold_of_the_config_holds_too(run, files, widest_gap):
    everything = Predictor.load(run, score_threshold=0)(files[1])
    threshold = widest_gap(everything["scores"])
    strict = f"model.faster_rcnn.score_threshold={threshold}"
    found = Predictor.load(run, score_threshold=0, overrides=[strict])(files[1])
    kept = everything["scores"] > threshold
    assert 0 < kept.sum() < len(kept)
    assert_same(found, {key: everything[key][kept] for key in KEYS})


def test_mirror_images(run, files):
    plain, flip = (
        in_float64(Predictor.load(run, score_threshold=0, overrides=[f"test.flip={on}"])) for on in ("false", "true")
    )
    image = image_tensor(files[2])
    both = flip(image)
    assert both["scores"][0] == max(plain(image)["scores"].max(), plain(image.flip(2))["scores"].max())
    assert len(both["scores"]) > len(plain(image)["scores"])
    mirrored = flip(image.flip(2))
    torch.testing.assert_close(both["scores"], mirrored["scores"])
    torch.testing.assert_close(both["boxes"][:, 0], 96 - mirrored["boxes"][:, 2], rtol=0, atol=1e-4)


@pytest.fixture(scope="module", params=DETECTORS)
def any_run(request, tiny_config, tmp_path_factory, formula_weights):
    """Folder of a run of each detector, with random weights, and its name."""
    name = request.param
    sizes = [f"model.{name}.anchor_sizes=[16, 32, 64]"] if hasattr(getattr(ModelConfig(), name), "anchor_sizes") else []
    options = [f"model.{name}.score_threshold=0.0", f"model.{name}.detections_per_image=20", "model.fpn.channels=64"]
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
    everything = Predictor.load(folder, score_threshold=0, overrides=[f"test.flip={flip}"])(files[1])
    threshold = widest_gap(everything["scores"])
    found = Predictor.load(folder, score_threshold=threshold, overrides=[f"test.flip={flip}"])(files[1])
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


@pytest.fixture
def colours():
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (30, 50, 3), dtype=np.uint8)


def test_every_kind_of_picture_becomes_the_same(colours, tmp_path):
    expected = torch.from_numpy(colours).permute(2, 0, 1)
    picture = Image.fromarray(colours)
    picture.save(tmp_path / "a.png")
    with_alpha = np.concatenate([colours, np.full((30, 50, 1), 255, np.uint8)], axis=2)
    backwards = np.ascontiguousarray(colours[..., ::-1])
    kinds = {
        "file": tmp_path / "a.png",
        "name": str(tmp_path / "a.png"),
        "opened": Image.open(tmp_path / "a.png"),
        "picture": picture,
        "alpha": picture.convert("RGBA"),
        "array": colours,
        "array with alpha": with_alpha,
        "BGR turned": backwards[..., ::-1],
        "tensor": expected,
    }
    for kind, image in kinds.items():
        found = image_tensor(image)
        assert found.dtype == torch.uint8
        assert torch.equal(found, expected), kind


def test_greys_of_8_and_16_bits(colours, tmp_path):
    grey = colours[..., 0]
    fine = grey.astype(np.uint16) * 257
    Image.fromarray(fine).save(tmp_path / "fine.png")
    expected = torch.from_numpy(grey)[None].expand(3, -1, -1)
    for image in (grey, fine, Image.fromarray(grey), Image.fromarray(fine), tmp_path / "fine.png"):
        assert torch.equal(image_tensor(image), expected)
    uneven = np.random.default_rng(1).integers(0, 65536, (30, 50), dtype=np.uint16)
    Image.fromarray(uneven).save(tmp_path / "uneven.png")
    assert torch.equal(image_tensor(uneven), image_tensor(tmp_path / "uneven.png"))
    assert torch.equal(image_tensor(colours.astype(np.uint16) * 257), torch.from_numpy(colours).permute(2, 0, 1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_is_obeyed_as_in_training(colours, tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / "turned.png"
    Image.fromarray(colours).save(file, exif=exif)
    expected = np.array(read_image(file))
    assert expected.shape == ((50, 30, 3) if orientation > 4 else (30, 50, 3))
    for image in (file, Image.open(file)):
        assert np.array_equal(image_tensor(image).permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(3, 4, 5), r"a tensor must be .* uint8, got torch.float32 \[3, 4, 5\]"),
        (torch.zeros(4, 5, 3, dtype=torch.uint8), r"3 x height x width .*\[4, 5, 3\]"),
        (torch.zeros(2, 3, 4, 5, dtype=torch.uint8), r"\[2, 3, 4, 5\]"),
        (torch.zeros(3, 0, 5, dtype=torch.uint8), r"\[3, 0, 5\]"),
        (np.zeros((4, 5, 3)), r"an array must be .* got float64 \[4, 5, 3\]"),
        (np.zeros((3, 40, 50), np.uint8), r"height x width .* got uint8 \[3, 40, 50\]"),
        (np.zeros((0, 5), np.uint8), r"got uint8 \[0, 5\]"),
        (7, "an image must be a path, a Pillow image, an array or a tensor, got int"),
        (None, "got NoneType"),
        ("nowhere.jpg", "image nowhere.jpg does not exist"),
    ],
)
def test_what_is_no_image(image, message):
    with pytest.raises(ValueError, match=message):
        image_tensor(image)


def test_a_picture_that_is_cut_short_is_named(colours, tmp_path):
    Image.fromarray(colours).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:-900])
    for image in (tmp_path / "cut.png", Image.open(tmp_path / "cut.png")):
        with pytest.raises(ValueError, match=r"cut\.png cannot be read, it is cut short"):
            image_tensor(image)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "tpu"}, "device 'tpu' cannot be used here"),
        ({"score_threshold": 1.5}, "the score threshold must be from 0 to 1, got 1.5"),
        ({"score_threshold": float("nan")}, "the score threshold must be"),
        ({"overrides": ["model.nothing=1"]}, "model.nothing"),
    ],
)
def test_mistakes(run, options, message):
    with pytest.raises(ValueError, match=message):
        Predictor.load(run, **options)


def test_no_checkpoint_there(run, tmp_path):
    with pytest.raises(ValueError, match=rf"{tmp_path / LAST} does not exist"):
        Predictor.load(tmp_path)
    with pytest.raises(ValueError, match="none does not exist"):
        Predictor.load(tmp_path / "none")
    shutil.copy(run / LAST, tmp_path / LAST)
    with (tmp_path / LAST).open("r+b") as file:
        file.truncate(2000)
    with pytest.raises(ValueError, match="it is cut short"):
        Predictor.load(tmp_path)
