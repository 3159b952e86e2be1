"""Images without boxes: how many a run has, whether it trains on them, and what that means."""

from collections.abc import Iterator

from data import CocoAnnotations

from ..display import counted

MANY = 0.1  # fraction of unused images from which a message is a warning
MOST = 0.5  # fraction of images without boxes from which most of a step has no object


def describe_images_without_boxes(
    train: CocoAnnotations, val: CocoAnnotations, *, keep: bool
) -> Iterator[tuple[bool, str]]:
    """Describe the images without boxes of each split.

    Args:
        train: training split.
        val: validation split.
        keep: whether training uses such images, `data.keep_images_without_boxes`.

    Yields:
        Whether the message is a warning, and the message; nothing for a split whose images all have boxes.
    """
    images, empty = len(train.arrays), int((train.arrays.counts == 0).sum())
    share = empty / max(images, 1)
    have = f"{empty:,} of {counted(images, 'training image')} ({share:.1%}) {'has' if empty == 1 else 'have'} no box"
    if empty and not keep:
        yield (
            share >= MANY,
            f"{have} and {'is' if empty == 1 else 'are'} not used. If none of the classes is visible in such images, "
            "data.keep_images_without_boxes=true trains on them as background, which reduces false positives. "
            "If objects are only not annotated there, keep the default",
        )
    elif empty:
        rare = f". Images with objects are then rare in a step: {1 - share:.1%}" if share > MOST else ""
        yield (
            share > MOST,
            f"{have}; training uses them as background (data.keep_images_without_boxes: true){rare}",
        )
    images, empty = len(val.arrays), int((val.arrays.counts == 0).sum())
    if empty:
        yield (
            False,
            f"{empty:,} of {counted(images, 'val image')} ({empty / images:.1%}) {'has' if empty == 1 else 'have'} no "
            "box: AP counts every detection there as a false positive",
        )
