"""What happens to an image, its boxes and masks before the model, by torchvision.transforms.v2.

Training images are resized here, so that every random choice depends on the image's own seed. Those to evaluate on are
resized by the detector, so that the boxes it returns are in pixels of the image as it is stored.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torchvision import tv_tensors
from torchvision.transforms import v2


@dataclass(frozen=True)
class TrainTransform:
    """Resizes an image, perhaps changes its colours and flips it, and makes a uint8 tensor of it.

    Attributes:
        resize: `resize(size, fill)` returns the steps that resize an image: to `size`, the one drawn for all images of
            the training step, or to a size of the image's own if it is None.
        fill: colour of the area outside of an image, `(red, green, blue)` of 0 to 255; best the mean that the detector
            subtracts, so that it is near zero for the model, as the padding of a batch is.
        flip: probability of a horizontal flip.
        color_jitter: how far brightness, contrast and saturation may change, as a share; hue by a quarter of it, in
            turns of the colour circle. A strong augmentation.
        large_scale_jitter: (size, (low, high)) takes the place of `resize`: the image is scaled to fit a square of
            `size` pixels times a random number from `low` to `high`, and cut or filled to that square at a random place
            (https://arxiv.org/abs/2012.07177). Boxes with less than a pixel left are taken out, and their labels and
            masks with them. A strong augmentation.

    Raises:
        ValueError: if the scales are in the wrong order.
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
                raise ValueError(f"the scales of `large_scale_jitter` must be [low, high], got {[low, high]}")

    def __call__(self, *sample: Any, size: int | None = None, strong: bool = True) -> Any:
        """Transform a sample: an image, and perhaps its target.

        Args:
            sample: of a PIL image and a dict.
            size: see `resize`.
            strong: whether the strong augmentations are on.
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
            v2.ScaleJitter((size, size), scale_range),  # with antialias: at a tenth of its size an image would be noise
            v2.RandomCrop((size, size), pad_if_needed=True, fill={tv_tensors.Mask: 0, "others": self.fill}),
            v2.ClampBoundingBoxes(),  # rounding may leave a box a hair outside, and it would be taken out for that
            v2.SanitizeBoundingBoxes(),
        ]


def eval_transform() -> Callable[..., Any]:
    """Return what makes a uint8 tensor of an image, and nothing else, called as a `TrainTransform`."""
    return _to_tensors


def _to_tensors(*sample: Any, size: int | None = None, strong: bool = False) -> Any:
    return v2.Compose([v2.ToImage(), v2.ToPureTensor()])(*sample)
