"""Augmentations that change only the pixels of an image: no box and no mask moves.

All of them take images `(3, H, W)` uint8 in RGB. Saturation, hue, JPEG and grey need red, green and blue.
"""

import io
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

# pixels of the resized image
BLUR_KERNEL, BLUR_SIGMA = 7, (0.1, 2.0)
# maximum standard deviation as a fraction of white
NOISE_SIGMA = 0.06
JPEG_QUALITY = (40, 95)


def colour_steps(color_jitter: float) -> list[v2.Transform]:
    """Return the changes of colour of the whole image, before it is resized; see `TrainTransform`."""
    jitter = color_jitter
    return [v2.ColorJitter(jitter, jitter, jitter, jitter / 4)] if jitter else []


def pixel_steps(*, grayscale: float, blur: float, noise: float, jpeg: float) -> list[v2.Transform]:
    """Return the changes of the resized image, each with its probability; see `TrainTransform`.

    They come after resizing, so that their strength does not depend on the size of the stored image.
    """
    steps = {
        v2.Grayscale(num_output_channels=3): grayscale,
        v2.GaussianBlur(BLUR_KERNEL, BLUR_SIGMA): blur,
        _Noise(): noise,
        _Jpeg(): jpeg,
    }
    return [v2.RandomApply([step], probability) for step, probability in steps.items() if probability]


class _Noise(v2.Transform):
    """Transform that adds normally distributed noise of a random standard deviation; torchvision's has a fixed one."""

    _transformed_types = (tv_tensors.Image,)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, float]:
        """Draw the standard deviation, as a fraction of white."""
        return {"sigma": NOISE_SIGMA * torch.rand(()).item()}

    def transform(self, inpt: Tensor, params: dict[str, float]) -> Tensor:
        """Add noise to an image."""
        return functional.gaussian_noise(inpt, sigma=params["sigma"])


class _Jpeg(v2.Transform):
    """Transform that compresses an image as JPEG of a random quality, by Pillow; torchvision's will be removed."""

    _transformed_types = (tv_tensors.Image,)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, int]:
        """Draw the quality."""
        low, high = JPEG_QUALITY
        return {"quality": int(torch.randint(low, high + 1, ()))}

    def transform(self, inpt: Tensor, params: dict[str, int]) -> Tensor:
        """Compress and decode an image."""
        file = io.BytesIO()
        functional.to_pil_image(inpt).save(file, format="JPEG", quality=params["quality"])
        with Image.open(file) as image:
            return functional.pil_to_tensor(image).as_subclass(tv_tensors.Image)
