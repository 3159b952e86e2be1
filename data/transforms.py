"""Transforms of an image, its boxes and masks before the model, built from torchvision.transforms.v2.

Training images are resized here, so that every random choice depends on the image's seed. The detector resizes
evaluation images, so that it returns boxes in pixels of the stored image.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torchvision import tv_tensors
from torchvision.transforms import v2

from .mask_grid import per_object


@dataclass(frozen=True)
class TrainTransform:
    """Transform that resizes, optionally augments and converts an image to a uint8 tensor.

    Attributes:
        resize: Function of (size, fill) that returns the resizing transforms. `size` is drawn for all images of the
            training step, or None to draw a size for each image.
        fill: Colour (red, green, blue) from 0 to 255 of the area outside of an image. With the detector's mean this
            area is close to zero in the model, like the padding of a batch.
        flip: Probability of a horizontal flip.
        color_jitter: Maximum relative change of brightness, contrast and saturation. The hue changes by up to a quarter
            of this number, as a fraction of the colour circle. A strong augmentation.
        large_scale_jitter: (size, (low, high)), replaces `resize`, https://arxiv.org/abs/2012.07177. The image is
            scaled to fit a square of `size` pixels times a random factor from `low` to `high`. It is then cropped or
            padded to the square at a random position. Boxes of less than a pixel are removed with their labels and
            masks. A strong augmentation.

    Raises:
        ValueError: If the scales are in the wrong order.
    """

    resize: Callable[[int | None, tuple[int, int, int]], list[v2.Transform]]
    fill: tuple[int, int, int]
    flip: float = 0.5
    color_jitter: float = 0.0
    large_scale_jitter: tuple[int, tuple[float, float]] | None = None

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
            sample: PIL image and optionally a target dict.
            size: See `resize`.
            strong: Whether the strong augmentations are on.
        """
        jitter = self.color_jitter if strong else 0.0
        colours = [v2.ColorJitter(jitter, jitter, jitter, jitter / 4)] if jitter else []
        is_jittered = strong and self.large_scale_jitter
        scaling = self._large_scale_jitter() if is_jittered else self.resize(size, self.fill)
        steps = [v2.ToImage(), *colours, *scaling, v2.RandomHorizontalFlip(self.flip), v2.ToPureTensor()]
        return v2.Compose(steps)(*sample)

    def _large_scale_jitter(self) -> list[v2.Transform]:
        size, scale_range = self.large_scale_jitter
        return [
            v2.ScaleJitter((size, size), scale_range),  # with antialias, since small scales would be noise without it
            v2.RandomCrop((size, size), pad_if_needed=True, fill={tv_tensors.Mask: 0, "others": self.fill}),
            v2.ClampBoundingBoxes(),  # rounding may leave a box slightly outside, and the next step would remove it
            v2.SanitizeBoundingBoxes(labels_getter=per_object),
        ]


def eval_transform() -> Callable[..., Any]:
    """Return a transform that only converts an image to a uint8 tensor, with the signature of `TrainTransform`."""
    return _to_tensors


def _to_tensors(*sample: Any, size: int | None = None, strong: bool = False) -> Any:
    return v2.Compose([v2.ToImage(), v2.ToPureTensor()])(*sample)
