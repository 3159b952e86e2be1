"""The predictor accepts images of every kind and reads them as in training."""

import numpy as np
import pytest
import torch
from PIL import Image

from data import read_image
from models.predictor import Predictor, image_tensor, set_score_threshold
from models.resize import Resize


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


@pytest.fixture
def colours():
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (30, 50, 3), dtype=np.uint8)


def test_every_kind_of_image_gives_the_same_tensor(colours, tmp_path):
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
    fine = image_tensor(colours.astype(np.uint16) * 257)  # with their precision
    assert torch.allclose(fine, torch.from_numpy(colours).permute(2, 0, 1) / 255, rtol=0, atol=1e-7)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_is_applied_as_in_training(colours, tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / "turned.png"
    Image.fromarray(colours).save(file, exif=exif)
    expected = read_image(file).permute(1, 2, 0).numpy()
    assert expected.shape == ((50, 30, 3) if orientation > 4 else (30, 50, 3))
    for image in (file, Image.open(file)):
        assert np.array_equal(image_tensor(image).permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(3, 4, 5).double(), r"a tensor must be a uint8 or float32 .*, got torch.float64 \[3, 4, 5\]"),
        (torch.full((3, 4, 5), 1.5), r"must have values from 0 \(black\) to 1 \(white\), got 1.5 to 1.5"),
        (torch.full((3, 4, 5), float("nan")), "must have values from 0"),
        (torch.zeros(4, 5, 3, dtype=torch.uint8), r"3 x height x width, .*\[4, 5, 3\]"),
        (torch.zeros(2, 3, 4, 5, dtype=torch.uint8), r"\[2, 3, 4, 5\]"),
        (torch.zeros(3, 0, 5, dtype=torch.uint8), r"\[3, 0, 5\]"),
        (np.full((4, 5, 3), 9.0), "image has floating-point pixels from 9 to 9, whose range is unknown"),
        (np.zeros((4, 5, 3), object), r"an array must be .* got object \[4, 5, 3\]"),
        (np.zeros((3, 40, 50), np.uint8), r"height x width .* got uint8 \[3, 40, 50\]"),
        (np.zeros((0, 5), np.uint8), r"got uint8 \[0, 5\]"),
        (7, "an image must be a path, a Pillow image, an array or a tensor, got int"),
        (None, "got NoneType"),
        ("nowhere.jpg", "image nowhere.jpg does not exist"),
    ],
)
def test_invalid_images(image, message):
    with pytest.raises(ValueError, match=message):
        image_tensor(image)


def test_a_truncated_image_is_named(colours, tmp_path):
    Image.fromarray(colours).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:-900])
    for image in (tmp_path / "cut.png", Image.open(tmp_path / "cut.png")):
        with pytest.raises(ValueError, match=r"cut\.png cannot be read; it is truncated"):
            image_tensor(image)


def test_the_threshold_is_raised_and_never_lowered():
    config = {"model": {"detector": "fcos", "fcos": {"num_dcn_convs": 1}}, "data": {"max_size": 96}}
    for asked, least in ((0, 0.2), (0.1, 0.2), (0.7, 0.7)):
        raised = set_score_threshold(config, asked)
        assert raised["model"]["fcos"] == {"num_dcn_convs": 1, "score_threshold": least}
        assert raised["data"] == config["data"]
    assert set_score_threshold(set_score_threshold(config, 0.9), 0.5)["model"]["fcos"]["score_threshold"] == 0.9
    assert config["model"]["fcos"] == {"num_dcn_convs": 1}
    for wrong in (1.5, -0.1, float("nan")):
        with pytest.raises(ValueError, match="the score threshold must be from 0 to 1, got"):
            set_score_threshold(config, wrong)


def test_the_range_of_pixels():
    fine = np.array([[0, 1365, 4095, 9000]], np.uint16)
    for image in (fine, Image.fromarray(fine)):
        assert image_tensor(image, (0, 4095))[0].tolist() == [[0, 85, 255, 255]]
    colours = np.stack([fine] * 3, axis=2)
    assert image_tensor(colours, (0, 4095))[2, 0].tolist() == pytest.approx([0, 1 / 3, 1, 1])
    model = Counting()
    predictor = Predictor(model, ["cat", "dog"], pixel_range=[0, 4095])
    seen = []
    model.forward = lambda images: (seen.extend(images), Counting.forward(model, images))[1]
    predictor(fine)
    assert seen[0][0, 0].tolist() == pytest.approx([0, 1 / 3, 1, 1])


def test_a_narrow_image_is_an_error():
    transform = Resize("shortest", (64,), 96).transform([0.5] * 3, [0.5] * 3).eval()
    for size in ((1, 97), (97, 1)):
        with pytest.raises(
            ValueError, match=f"longer side of at most 96 times the shorter side.*, got {size[1]}x{size[0]}"
        ):
            transform([torch.zeros(3, *size)])
        for kind in ("letterbox", "stretch"):
            Resize(kind, (64,), 96).transform([0.5] * 3, [0.5] * 3).eval()([torch.zeros(3, *size)])
    transform([torch.zeros(3, 1, 96)])
