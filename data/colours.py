"""Augmentations that change only the pixels of an image: no box and no mask moves.

All of them take images `(channels, H, W)`, uint8 or float32. Saturation, hue, grey and JPEG leave images
unchanged that are not RGB. JPEG has 8 bits, and leaves float32 images unchanged too.
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


def colour_steps(color_jitter: float, *, is_rgb: bool = True) -> list[v2.Transform]:
    """Return the changes of colour of the whole image, before it is resized; see `TrainTransform`.

    Brightness and contrast of images that are not RGB change by the same factor in each channel.
    """
    jitter = color_jitter
    if not jitter:
        return []
    return [v2.ColorJitter(jitter, jitter, jitter, jitter / 4)] if is_rgb else [_ChannelJitter(jitter)]


def pixel_steps(*, grayscale: float, blur: float, noise: float, jpeg: float, is_rgb: bool = True) -> list[v2.Transform]:
    """Return the changes of the resized image, each with its probability; see `TrainTransform`.

    They come after resizing, so that their strength does not depend on the size of the stored image.
    """
    steps = {
        v2.Grayscale(num_output_channels=3): grayscale if is_rgb else 0,
        v2.GaussianBlur(BLUR_KERNEL, BLUR_SIGMA): blur,
        _Noise(): noise,
        _Jpeg(): jpeg if is_rgb else 0,
    }
    return [v2.RandomApply([step], probability) for step, probability in steps.items() if probability]


class _ChannelJitter(v2.ColorJitter):
    """Transform that changes brightness and contrast of each channel, which torchvision does for 1 or 3 channels."""

    def __init__(self, change: float) -> None:
        super().__init__(change, change)

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Change the channels of an image, each as a grey image."""
        if not isinstance(inpt, tv_tensors.Image):
            return inpt
        channels = inpt.as_subclass(Tensor)[:, None]
        return tv_tensors.wrap(super().transform(channels, params)[:, 0], like=inpt)


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
        if inpt.is_floating_point():
            return inpt
        file = io.BytesIO()
        functional.to_pil_image(inpt).save(file, format="JPEG", quality=params["quality"])
        with Image.open(file) as image:
            return functional.pil_to_tensor(image).as_subclass(tv_tensors.Image)
