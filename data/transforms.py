"""What happens to a picture, its boxes and masks before the model, by torchvision.transforms.v2.

Pictures to learn from are scaled here, so that every random choice depends on the image's own seed. Those to judge by
are scaled by the detector, so that boxes given and returned are pixels of the picture as it is stored.
"""

from collections.abc import Sequence

from torchvision import tv_tensors
from torchvision.transforms import v2

# Mean of ImageNet's pixels: what is filled with it is near zero for the model, as the padding of a batch is.
_FILL = (124, 116, 104)


def train_transform(
    *,
    min_size: int | Sequence[int],
    max_size: int,
    flip: float = 0.5,
    color_jitter: float = 0.0,
    large_scale_jitter: tuple[int, tuple[float, float]] | None = None,
) -> v2.Transform:
    """Scale a picture at random, maybe change its colours and flip it, to a uint8 tensor.

    Args:
        min_size: pixels of the shorter side after scaling; one of several is drawn for each picture.
        max_size: most pixels of the longer side.
        flip: probability of a horizontal flip.
        color_jitter: how far brightness, contrast and saturation may change, as a share; hue by a quarter of it, in
            turns of the colour circle.
        large_scale_jitter: (size, (low, high)) takes the place of `min_size` and `max_size`: the picture is scaled to
            fit a square of `size` pixels times a random number from `low` to `high`, and cut or filled to that square
            at a random place (https://arxiv.org/abs/2012.07177). Boxes with less than a pixel left are taken out, and
            their labels and masks with them.

    Raises:
        ValueError: if the scales are in the wrong order.
    """
    colours = [v2.ColorJitter(color_jitter, color_jitter, color_jitter, color_jitter / 4)] if color_jitter else []
    if large_scale_jitter:
        scaling = _large_scale_jitter(*large_scale_jitter)
    else:
        # as the detector scales in evaluation: bilinear, without antialias
        scaling = [v2.RandomShortestSize(min_size, max_size, antialias=False), v2.ClampBoundingBoxes()]
    return v2.Compose([v2.ToImage(), *colours, *scaling, v2.RandomHorizontalFlip(flip), v2.ToPureTensor()])


def _large_scale_jitter(size: int, scale_range: tuple[float, float]) -> list[v2.Transform]:
    if scale_range[0] > scale_range[1]:
        raise ValueError(f"the scales of `large_scale_jitter` must be [low, high], got {list(scale_range)}")
    return [
        v2.ScaleJitter((size, size), scale_range),  # with antialias: at a tenth of its size a picture would be noise
        v2.RandomCrop((size, size), pad_if_needed=True, fill={tv_tensors.Mask: 0, "others": _FILL}),
        v2.ClampBoundingBoxes(),  # rounding may leave a box a hair outside, and it would be taken out for that
        v2.SanitizeBoundingBoxes(),
    ]


def eval_transform() -> v2.Transform:
    """To a uint8 tensor, nothing else."""
    return v2.Compose([v2.ToImage(), v2.ToPureTensor()])
