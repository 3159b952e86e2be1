"""Find options that contradict each other: each is valid alone, and together they cannot be meant."""

from collections.abc import Iterator

from models.detectors import RGB

from .options import RunConfig


def contradictions(config: RunConfig) -> Iterator[str]:
    """Yield one line for each option that contradicts another; it names both, and what must hold."""
    data, jitter, retinanet = config.data, config.data.augment.large_scale_jitter, config.model.retinanet
    if (data.resize or config.model.spec.resize) == "shortest":
        sizes = data.min_size if isinstance(data.min_size, list) else [data.min_size]
        for key, size in (("data.min_size", max(sizes)), ("data.eval_size", data.eval_size or 0)):
            if size > data.max_size:
                yield f"{key} must be at most data.max_size, which is {data.max_size}, got {size}"
    if data.classes:
        yield from (f"data.classes: {problem}" for problem in data.classes.changes.contradictions())
    if data.channels != RGB and (data.mean is None) != (data.std is None):
        yield "data.mean and data.std must both be set or both be null"
    for key in ("mean", "std"):
        values = getattr(data, key)
        if values is not None and len(values) != data.channels:
            yield f"data.{key} must have a value for each channel, data.channels {data.channels}, got {len(values)}"
    if data.augment.copy_paste and not config.model.spec.has_masks:
        yield (
            f"data.augment.copy_paste must be 0 for model.detector {config.model.detector}, which has no masks, got "
            f"{data.augment.copy_paste:g}"
        )
    if data.augment.albumentations and data.channels != RGB:
        yield f"data.augment.albumentations must be null for images that are not RGB, got data.channels {data.channels}"
    if jitter and jitter.scale[0] > jitter.scale[1]:
        yield f"data.augment.large_scale_jitter.scale must be a minimum and a maximum, got {jitter.scale}"
    if retinanet.negative_iou > retinanet.positive_iou:
        yield (
            f"model.retinanet.negative_iou must be at most model.retinanet.positive_iou, which is "
            f"{retinanet.positive_iou}, got {retinanet.negative_iou}"
        )
