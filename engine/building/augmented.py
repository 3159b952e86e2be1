"""A figure of what training reads: images, and several draws of their augmentation."""

from torch import Tensor

from data import CocoAnnotations, CocoDetection, MicroBatch, eval_transform
from data.loaders import SeededDataset

from ..config import RunConfig
from ..display import draw_grid
from .data import build_train_dataset

HEADING = "left: the stored image, right: what training reads"


def draw_augmented(
    config: RunConfig, annotations: CocoAnnotations, *, images: int, draws: int, side: int
) -> Tensor | None:
    """Draw training images as they are stored, and as training reads them.

    The images are evenly distributed over the data set. Images that cannot be read are left out.

    Args:
        config: config of the run.
        annotations: training split.
        images: number of images, one in each row.
        draws: number of draws of each image.
        side: maximum height and width of a drawn image, in pixels.

    Returns:
        `(3, h, w)` uint8, or None if no image can be read.
    """
    augmented = build_train_dataset(config, annotations)
    stored = CocoDetection(
        annotations,
        eval_transform(),
        keep_images_without_boxes=config.data.keep_images_without_boxes,
        masks=config.model.spec.has_masks,
    )
    count = min(images, len(stored))
    rows = []
    for row in range(count):
        index = len(stored) * row // count
        seeds = [config.seed + row * draws + draw for draw in range(draws)]
        first, others = (
            SeededDataset(dataset, on_unreadable_image="skip", fill_empty=False).__getitems__(
                MicroBatch([(index, seed) for seed in wanted], 1.0, True)
            )
            for dataset, wanted in ((stored, [0]), (augmented, seeds))
        )
        if first.images:
            rows.append([*zip(first.images + others.images, first.targets + others.targets, strict=True)])
    heading = [f"data.augment.preset: {config.data.augment.preset}", HEADING]
    return draw_grid(rows, annotations.class_names, heading, side=side) if rows else None
