"""Augmentation, and measured statistics, of images with other channels than red, green and blue."""

import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from data.colours import colour_steps
from data.transforms import TrainTransform
from engine.display import as_rgb
from models.resize import Resize

STRONG = {
    "vertical_flip": 0.5, "rotate_90": 0.5, "rotate": 10.0, "iou_crop": 0.5, "crop": 0.5, "zoom_out": 0.5, "scale": 0.5,
    "color_jitter": 0.4, "grayscale": 0.5, "blur": 0.5, "noise": 0.5, "jpeg": 0.5,
}  # fmt: skip


def sample(channels, dtype):
    image = torch.rand(channels, 40, 56)
    image = image if dtype == torch.float32 else (image * 255).to(dtype)
    boxes = tv_tensors.BoundingBoxes(torch.tensor([[4.0, 5, 30, 28]]), format="XYXY", canvas_size=(40, 56))
    return image, {"boxes": boxes, "labels": torch.ones(1, dtype=torch.int64)}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("kind", ["shortest", "letterbox"])
def test_every_augmentation_keeps_channels_and_type(channels, dtype, kind):
    transform = TrainTransform(
        Resize(kind, (48,), 64).train_steps, fill=tuple(25.0 * n for n in range(1, channels + 1)), **STRONG
    )
    for seed in range(8):
        torch.manual_seed(seed)
        image, target = transform(*sample(channels, dtype))
        assert (len(image), image.dtype) == (channels, dtype)
        assert len(target["boxes"]) == len(target["labels"])
        if dtype == torch.float32:
            assert image.min() >= 0
            assert image.max() <= 1 + 1e-6


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_margins_have_the_colour_of_the_mean(dtype):
    fill = (25.5, 51.0, 76.5, 102.0)
    transform = TrainTransform(Resize("letterbox", (48,), 64).train_steps, fill=fill)
    image, _ = transform(*sample(4, dtype))
    expected = [round(value) if dtype == torch.uint8 else pytest.approx(value / 255) for value in fill]
    assert image[:, 0, 0].tolist() == expected


def test_each_channel_changes_as_a_grey_image():
    image = tv_tensors.Image(torch.rand(4, 9, 11))
    (step,) = colour_steps(0.4, is_rgb=False)
    torch.manual_seed(3)
    params = step.make_params([image])
    found = step.transform(image, params)
    for channel, changed in zip(image, found, strict=True):
        expected = channel[None]
        for index in params["fn_idx"]:
            if index == 0:
                expected = functional.adjust_brightness(expected, params["brightness_factor"])
            elif index == 1:
                expected = functional.adjust_contrast(expected, params["contrast_factor"])
        assert torch.allclose(changed, expected[0])
    assert not torch.equal(found, image)


def test_images_in_rgb():
    image = torch.arange(5, dtype=torch.uint8)[:, None, None].expand(-1, 2, 3)
    assert as_rgb(image)[:, 0, 0].tolist() == [0, 1, 2]
    assert as_rgb(image, [5, 3, 1])[:, 0, 0].tolist() == [4, 2, 0]
    assert as_rgb(image, [4])[:, 0, 0].tolist() == [3, 3, 3]
    assert as_rgb(image[1:2])[:, 0, 0].tolist() == [1, 1, 1]
    deep = as_rgb(torch.tensor([0, 0.5, 1])[:, None, None])
    assert (deep.dtype, deep.flatten().tolist()) == (torch.uint8, [0, 128, 255])
    rgb = image[:3]
    assert as_rgb(rgb) is rgb
