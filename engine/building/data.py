"""Build annotations, loaders and samples from the data section of a config."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from data import (
    Batch,
    CocoAnnotations,
    CocoDetection,
    Mixing,
    ReadOptions,
    TrainTransform,
    eval_loader,
    eval_transform,
    load_annotations,
    train_loader,
)
from data.files import write_json
from data.json_file import JsonError, read_json
from models import build_resize, normalization

from ..config import DataConfig, RunConfig
from ..display import Progress, log
from ..distributed import SINGLE_PROCESS, DistributedContext
from ..evaluation import limit_problems
from ..runs import CHECKED_FILE
from .classes import image_repeats
from .pipeline import load_pipeline

# Maximum number of images for the validation loss
LOSS_IMAGES = 1000
# pixels; for the trial of a pipeline, if no image has a known size
_TRIAL_SIDE = 640
Track = Callable[[Iterable], Iterable]


def read_split(
    data: DataConfig,
    split: str,
    track: Track = iter,
    *,
    masks: bool = False,
    max_aspect_ratio: float | None = None,
    check_images: bool = True,
    run: Path | None = None,
) -> CocoAnnotations:
    """Read and check the "train" or "val" split.

    Args:
        data: options of the data set.
        split: "train" or "val".
        track: wraps the iteration over the images.
        masks: whether the detector needs masks, see `DetectorSpec`.
        max_aspect_ratio: see `max_aspect_ratio`.
        check_images: False if another process of the machine checks the images, or no check is needed.
        run: folder of the run; images that it has checked are not checked again, see `data.check_images`.

    Returns:
        The annotations.

    Raises:
        ValueError: if files or annotations are missing or not valid, or the split has no boxes to train on.
    """
    place = getattr(data, split)
    # a mask cannot be clipped, and annotations without one cannot be evaluated
    mask_policy = "raise" if data.invalid_annotations == "raise" else "drop"
    found = load_annotations(
        place.images,
        place.annotations,
        invalid_boxes=data.invalid_annotations,
        invalid_masks=mask_policy if masks else None,
        download_hint=data.download_hint,
        check_images=data.check_images if check_images else "never",
        checked=_read_checked(run) if run else (),
        keep_raw=split == "val",
        read_options=_read_options(data, max_aspect_ratio),
        classes=data.classes and data.classes.changes,
        progress=track,
    )
    if not len(found.arrays.boxes) and (split == "train" or found.dropped_masks):
        purpose = "train on" if split == "train" else "evaluate on"
        raise ValueError(f"{found.path} has no image with a box to {purpose}: {found.why_no_boxes}")
    return found


def read_options(config: RunConfig, split: str) -> ReadOptions:
    """Return how the images of a split are read, for `CocoDetection` and `read_image`."""
    return _read_options(config.data, max_aspect_ratio(config, split))


def _read_options(data: DataConfig, limit: float | None) -> ReadOptions:
    return ReadOptions(limit, data.pixel_range and as_tuples(data.pixel_range), data.channels)


def as_tuples(value: Any) -> Any:
    """Return a value with tuples instead of lists."""
    return tuple(map(as_tuples, value)) if isinstance(value, list) else value


def max_aspect_ratio(config: RunConfig, split: str) -> float | None:
    """Return the largest ratio of sides of images whose shorter side keeps a pixel after resizing; None for any ratio.

    Training images are resized by large-scale jitter too, if it is on.
    """
    limits = [build_resize(config.model.spec, config.data.model_dump()).max_aspect_ratio]
    if split == "train" and (jitter := config.data.augment.large_scale_jitter):
        limits.append(jitter.size * min(jitter.scale))
    return min((limit for limit in limits if limit is not None), default=None)


def warn_of_annotations(*splits: CocoAnnotations) -> None:
    """Log what was completed, clipped or left out in annotation files, and signs of other conventions."""
    for split in splits:
        for problem in split.warnings:
            log.warning("annotation file %s: %s", split.path, problem)


def _read_checked(run: Path) -> list[dict[str, Any]]:
    """Return the stamps of the image folders that a run has checked; an empty list if they cannot be read."""
    try:
        stamps = read_json(run / CHECKED_FILE)
    except JsonError:
        return []
    return stamps if isinstance(stamps, list) else []


def write_checked_images(run: Path, splits: Iterable[CocoAnnotations]) -> None:
    """Write the stamps of the checked image folders into a run folder, for `read_split`."""
    if stamps := [split.checked for split in splits if split.checked]:
        write_json(run / CHECKED_FILE, stamps)


def describe_skipped_check(data: DataConfig, splits: Mapping[str, CocoAnnotations]) -> str | None:
    """Describe which splits have images that were not checked now, and why; None if all were checked."""
    if data.check_images == "never":
        return f"images of {' and '.join(splits)} are not checked (data.check_images: never)"
    skipped = [name for name, split in splits.items() if split.check_skipped]
    why = "no file was added or removed since the last check (data.check_images: first_time)"
    return f"images of {' and '.join(skipped)} are not checked again: {why}" if skipped else None


def describe_limits(config: RunConfig, val: CocoAnnotations, *, in_tiles: bool = False) -> list[str]:
    """Describe the objects of the val split that are more than evaluation or the detector counts in an image.

    The limit of the detector holds for each tile, so that it is not that of an image with tiles.
    """
    name = f"model.{config.model.detector}.detections_per_image"
    return limit_problems(
        val.raw,
        config.eval.max_detections,
        option="eval.max_detections",
        per_image=None if in_tiles else (name, config.model.options.detections_per_image),
    )


def read_splits(config: RunConfig, progress: Progress, run: Path, *, check_images: bool) -> dict[str, CocoAnnotations]:
    """Read and check the "train" and the "val" split, see `read_split`.

    Raises:
        ValueError: as `read_split` does, or if the splits have different categories.
    """
    splits = {
        name: read_split(
            config.data,
            name,
            lambda items, name=name: progress.track(items, f"check {name} images"),
            masks=config.model.spec.has_masks,
            max_aspect_ratio=max_aspect_ratio(config, name),
            check_images=check_images,
            run=run,
        )
        for name in ("train", "val")
    }
    train, val = splits.values()
    a, b = (list(zip(split.category_ids, split.class_names, strict=True)) for split in (train, val))
    if a != b:
        only = sorted(set(a) ^ set(b))[:3]
        raise ValueError(f"{train.path} has {len(a)} categories and {val.path} has {len(b)}; they differ in {only}")
    return splits


def build_train_dataset(config: RunConfig, annotations: CocoAnnotations) -> CocoDetection:
    """Build the data set of the training images, with augmentation.

    Raises:
        ValueError: as `load_pipeline` does.
    """
    data, spec = config.data, config.model.spec
    options = data.augment.model_dump(exclude={"preset", "albumentations"})
    if jitter := data.augment.large_scale_jitter:
        options["large_scale_jitter"] = jitter.size, tuple(jitter.scale)
    mean, _ = normalization(spec, data.model_dump())
    fill = tuple(255 * value for value in mean)
    several = {key: options.pop(key) for key in ("mosaic", "copy_paste", "mixup")}
    mixing = Mixing(**several, min_visibility=data.augment.min_visibility, fill=fill)
    return CocoDetection(
        annotations,
        TrainTransform(build_resize(spec, data.model_dump()).train_steps, fill=fill, **options),
        keep_images_without_boxes=data.keep_images_without_boxes,
        masks=spec.has_masks,
        ignore_crowd_regions=data.crowd_regions == "ignore",
        mixing=mixing if any(several.values()) else None,
        pipeline=load_pipeline(data),
    )


def _smallest_sides(annotations: CocoAnnotations) -> list[int]:
    """Return the smallest width and the smallest height of the images of a split: crops that are too large fail."""
    sizes = annotations.arrays.sizes
    return [round(min(sides[sides > 0], default=_TRIAL_SIDE)) for sides in sizes.T]


def build_train_loader(
    config: RunConfig,
    annotations: CocoAnnotations,
    *,
    pin_memory: bool,
    distributed: DistributedContext = SINGLE_PROCESS,
) -> DataLoader:
    """Build the loader of this process's part of the shuffled training steps.

    Raises:
        ValueError: as `build_train_dataset` does, or if the pipeline of `data.augment.albumentations` fails in a trial.
    """
    data = config.data
    dataset = build_train_dataset(config, annotations)
    if dataset.pipeline:
        dataset.pipeline.check(*_smallest_sides(annotations))
    return train_loader(
        dataset,
        batch_size=config.train.batch_size,
        workers=data.num_workers,
        seed=config.seed,
        grad_accum_steps=config.train.grad_accum_steps,
        rank=distributed.rank,
        processes=distributed.size,
        on_unreadable_image=data.on_unreadable_image,
        pin_memory=pin_memory,
        sizes=build_resize(config.model.spec, data.model_dump()).step_sizes,
        strong_epochs=config.train.epochs - data.weak_last_epochs,
        repeats=image_repeats(dataset, len(annotations.class_names), data.repeat_threshold),
    )


def build_eval_loader(
    config: RunConfig,
    annotations: CocoAnnotations,
    *,
    in_tiles: bool = False,
    pin_memory: bool,
    distributed: DistributedContext = SINGLE_PROCESS,
) -> DataLoader:
    """Build the loader of this process's part of the images of the val split, in order.

    A batch has `train.batch_size` images. With `in_tiles` and `tile.size` it has one image, whose tiles fill the
    batches of the detector. Targets have no masks: evaluation uses the masks of the annotation file.
    """
    return eval_loader(
        CocoDetection(annotations, eval_transform()),
        batch_size=1 if in_tiles and config.tile.size is not None else config.train.batch_size,
        workers=config.data.num_workers,
        rank=distributed.rank,
        processes=distributed.size,
        on_unreadable_image=config.data.on_unreadable_image,
        pin_memory=pin_memory,
    )


def build_loss_loader(
    config: RunConfig,
    annotations: CocoAnnotations,
    *,
    pin_memory: bool,
    distributed: DistributedContext = SINGLE_PROCESS,
) -> tuple[DataLoader, float]:
    """Build the loader of this process's part of the images for the validation loss, and return their boxes per image.

    The images are up to `LOSS_IMAGES` that are evenly spread over the split. They are resized as in training, to the
    size of evaluation, without augmentation. As in training, images without boxes are used only with
    `keep_images_without_boxes`.
    """
    data, spec = config.data, config.model.spec
    resize = build_resize(spec, data.model_dump())
    resize = dataclasses.replace(resize, sizes=(resize.eval_side,))
    mean, _ = normalization(spec, data.model_dump())
    dataset = CocoDetection(
        annotations,
        TrainTransform(resize.train_steps, fill=tuple(255 * value for value in mean), horizontal_flip=0.0),
        keep_images_without_boxes=data.keep_images_without_boxes,
        masks=spec.has_masks,
        ignore_crowd_regions=data.crowd_regions == "ignore",
    )
    dataset.images = dataset.images[:: max(1, -(-len(dataset) // LOSS_IMAGES))]
    loader = eval_loader(
        dataset,
        batch_size=config.train.batch_size,
        workers=data.num_workers,
        rank=distributed.rank,
        processes=distributed.size,
        on_unreadable_image=data.on_unreadable_image,
        pin_memory=pin_memory,
    )
    boxes = int(annotations.arrays.counts[dataset.images].sum())
    return loader, max(boxes, 1) / max(len(dataset), 1)


def first_samples(
    config: RunConfig, annotations: CocoAnnotations, count: int, *, keep_images_without_boxes: bool = True
) -> list[tuple[Tensor, dict]]:
    """Return the first readable images of a split with their targets."""
    dataset = CocoDetection(
        annotations,
        eval_transform(),
        keep_images_without_boxes=keep_images_without_boxes,
        masks=config.model.spec.has_masks,
    )
    batches = eval_loader(dataset, batch_size=count, workers=0, on_unreadable_image=config.data.on_unreadable_image)
    return next((samples_of(batch) for batch in batches if batch.images), [])


def samples_of(batch: Batch) -> list[tuple[Tensor, dict]]:
    """Pair the images of a batch with their targets."""
    return [*zip(batch.images, batch.targets, strict=True)]
