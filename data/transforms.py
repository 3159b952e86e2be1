"""Transforms of an image, its boxes and masks before the model, built from torchvision.transforms.v2.

Training images are resized here, so that every random choice depends on the image's seed. The detector resizes
evaluation images, so that it returns boxes in pixels of the stored image.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from .band_files import RGB
from .colours import colour_steps, pixel_steps
from .geometry import Step, crop_steps, cutting, quarter_turn, rotation_steps
from .mask_grid import per_object


@dataclass(frozen=True)
class TrainTransform:
    """Transform that resizes and optionally augments an image, uint8 or float32 with any number of channels.

    Probabilities are from 0 (off) to 1. Flips and quarter turns are weak augmentations, all others are strong.

    Attributes:
        resize: Function of (size, fill) that returns the resizing transforms. `size` is drawn for all images of the
            training step, or None to draw a size for each image.
        fill: Colour of the area outside of an image, a value from 0 (black) to 255 (white) for each channel. With the
            detector's mean this area is close to zero in the model, like the padding of a batch.
        horizontal_flip: Probability of a horizontal flip.
        vertical_flip: Probability of a vertical flip.
        rotate_90: Probability of a rotation by 90, 180 or 270 degrees.
        rotate: Maximum angle of a random rotation of the resized image around its centre, in degrees. Without masks,
            the new box is the one around the rotated box, which is larger than the object.
        iou_crop: Probability of a crop by the IoU of boxes and crop, as in SSD, https://arxiv.org/abs/1512.02325.
        crop: Probability of a crop to a random rectangle with 50 to 100 % of each side.
        zoom_out: Probability of a margin that makes each side up to twice as long.
        scale: Maximum relative change of the size of the objects, by a crop or a margin: a factor from
            1 / (1 + scale) to 1 + scale.
        large_scale_jitter: (size, (low, high)), replaces `resize`, https://arxiv.org/abs/2012.07177. The image is
            scaled to fit a square of `size` pixels times a random factor from `low` to `high`. It is then cropped or
            padded to the square at a random position. Boxes of less than a pixel are removed with their labels and
            masks.
        min_visibility: Minimum visible fraction of a box that a crop or a rotation cuts; other objects are removed.
        color_jitter: Maximum relative change of brightness, contrast and saturation. The hue changes by up to a quarter
            of this number, as a fraction of the colour circle.
        grayscale: Probability of a grey image.
        blur: Probability of a Gaussian blur.
        noise: Probability of Gaussian noise.
        jpeg: Probability of a JPEG compression.

    Raises:
        ValueError: If the scales are in the wrong order.
    """

    resize: Callable[[int | None, tuple[float, ...]], list[v2.Transform]]
    fill: tuple[float, ...]
    horizontal_flip: float = 0.5
    vertical_flip: float = 0.0
    rotate_90: float = 0.0
    rotate: float = 0.0
    iou_crop: float = 0.0
    crop: float = 0.0
    zoom_out: float = 0.0
    scale: float = 0.0
    large_scale_jitter: tuple[int, tuple[float, float]] | None = None
    min_visibility: float = 0.0
    color_jitter: float = 0.0
    grayscale: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    jpeg: float = 0.0

    def __post_init__(self) -> None:
        if self.large_scale_jitter:
            low, high = self.large_scale_jitter[1]
            if low > high:
                raise ValueError(
                    f"the scales of `large_scale_jitter` must be [low, high] with low <= high, got {[low, high]}"
                )

    def __call__(self, *sample: Any, size: int | None = None, strong: bool = True) -> Any:
        """Transform an image and optionally its target.

        Args:
            sample: Image, of Pillow or `(channels, H, W)`, and optionally a target dict.
            size: See `resize`.
            strong: Whether the strong augmentations are on.
        """
        image = functional.to_image(sample[0])
        fill = tuple(value / 255 if image.is_floating_point() else round(value) for value in self.fill)
        is_rgb = len(image) == RGB
        steps = self._all_steps(size, fill, is_rgb) if strong else self._weak_steps(self.resize(size, fill))
        found = v2.Compose([v2.ToImage(), *steps, v2.ToPureTensor()])(image, *sample[1:])
        if len(sample) > 1 and "objects" not in sample[1]:
            found[1].pop("visible", None)
        return found

    def _weak_steps(self, scaling: list[Step]) -> list[Step]:
        return [
            *scaling,
            v2.RandomHorizontalFlip(self.horizontal_flip),
            *([v2.RandomVerticalFlip(self.vertical_flip)] if self.vertical_flip else []),
            *([quarter_turn(self.rotate_90)] if self.rotate_90 else []),
        ]

    def _all_steps(self, size: int | None, fill: tuple[float, ...], is_rgb: bool) -> list[Step]:
        common = {"fill": fill, "min_visibility": self.min_visibility}
        crops = crop_steps(iou_crop=self.iou_crop, crop=self.crop, zoom_out=self.zoom_out, scale=self.scale, **common)
        scaling = self._large_scale_jitter(fill) if self.large_scale_jitter else self.resize(size, fill)
        return [
            *colour_steps(self.color_jitter, is_rgb=is_rgb),
            *crops,
            *self._weak_steps(scaling),
            *rotation_steps(rotate=self.rotate, **common),
            *pixel_steps(grayscale=self.grayscale, blur=self.blur, noise=self.noise, jpeg=self.jpeg, is_rgb=is_rgb),
        ]

    def _large_scale_jitter(self, fill: tuple[float, ...]) -> list[Step]:
        size, scale_range = self.large_scale_jitter
        crop = v2.RandomCrop((size, size), pad_if_needed=True, fill={tv_tensors.Mask: 0, "others": fill})
        return [
            v2.ScaleJitter((size, size), scale_range),  # with antialias, since small scales would be noise without it
            *(cutting(crop, self.min_visibility) if self.min_visibility else [crop]),
            v2.ClampBoundingBoxes(),  # rounding may leave a box slightly outside, and the next step would remove it
            v2.SanitizeBoundingBoxes(labels_getter=per_object),
        ]


def eval_transform() -> Callable[..., Any]:
    """Return a transform that only converts an image to a uint8 tensor, with the signature of `TrainTransform`."""
    return _to_tensors


def _to_tensors(*sample: Any, size: int | None = None, strong: bool = False) -> Any:
    return v2.Compose([v2.ToImage(), v2.ToPureTensor()])(*sample)
