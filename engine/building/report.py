"""Log messages at the start and the end of a run."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data import CocoAnnotations
from models import ReplacedConvs, replaced_convs
from models.weights import LoadReport

from ..config import BackboneConfig, RunConfig, flatten
from ..devices import describe
from ..display import counted, format_table, log, percent
from ..evaluation import MASK_PREFIX, class_table, describe_backend, describe_metrics
from ..runs import BEST, CONFIG_FILE, LAST
from ..training import METRICS_FILE, Trainer, scaled_lr, summarize_groups
from ..weights import Transfer
from .background import describe_images_without_boxes
from .classes import class_weights, describe_changes, describe_rare_classes
from .data import describe_limits, describe_skipped_check, warn_of_annotations
from .training import images_in_step

_NAMED, SHOWN_CLASSES = 3, 20
PLAIN_MASK_SCALE = 2.0  # with this one a new deformable layer equals the plain layer: its sigmoid starts at 0.5


def show_start(
    config: RunConfig,
    weights: LoadReport | Transfer | None,
    trainer: Trainer,
    train: CocoAnnotations,
    val: CocoAnnotations,
) -> None:
    """Log the device, replaced convolutions, parameter groups, batch size and data."""
    processes = trainer.distributed.size
    log.info("device: %s%s", describe(trainer.updater.device), f", {processes} processes" if processes > 1 else "")
    show_model(config, weights, replaced_convs(trainer.updater.model))
    header = ("parameter group", "tensors", "parameters", "learning rate", "weight decay")
    rows = [
        (group.name, group.tensors, group.parameters, f"{group.lr:.3g}", f"{group.weight_decay:.3g}")
        for group in summarize_groups(trainer.updater.optimizer)
    ]
    log.info("%s:\n%s", config.train.optimizer, format_table(header, rows))
    log.info("%s", describe_batch(config, processes))
    rows = []
    for name, split, used in (("train", train, len(trainer.loader.dataset)), ("val", val, len(val.arrays))):
        arrays = split.arrays
        rows.append((name, len(arrays), used, len(arrays.boxes), split.crowd_regions, len(split.class_names)))
    log.info("augmentation: %s", config.data.augment.description)
    log.info("data:\n%s", format_table(("split", "images", "used", "boxes", "crowd regions", "classes"), rows))
    for line in describe_changes({"train": train, "val": val}):
        log.info("%s", line)
    for is_warning, message in describe_images_without_boxes(train, val, keep=config.data.keep_images_without_boxes):
        log.log(logging.WARNING if is_warning else logging.INFO, "%s", message)
    about_classes = describe_rare_classes(
        trainer.loader.dataset.dataset,
        train.class_names,
        threshold=config.data.repeat_threshold,
        epoch_images=trainer.loader.batch_sampler.images,
        weights=class_weights(train, config.train.class_weights),
    )
    if about_classes:
        log.info("%s", about_classes)
    if skipped := describe_skipped_check(config.data, {"train": train, "val": val}):
        log.info("%s", skipped)
    warn_of_annotations(train, val)
    for problem in describe_limits(config, val):
        log.warning("%s: %s", val.path, problem)
    log.info("AP by %s", describe_backend(config.eval.backend))
    log.info("%s in total, %d per epoch", counted(trainer.total_steps, "step"), trainer.epoch_steps)


def describe_batch(config: RunConfig, processes: int) -> str:
    """Describe the number of images per step and the scaled learning rate."""
    settings = config.train
    images = images_in_step(settings, processes)
    reference = settings.base_batch_size
    return (
        f"effective batch {settings.batch_size} x {settings.grad_accum_steps} x {processes} = {images}, "
        f"lr {scaled_lr(settings.lr, images, reference):g} "
        f"(batch_size x grad_accum_steps x processes; train.lr {settings.lr:g} is meant for {reference or 'any batch'})"
    )


def show_model(config: RunConfig, weights: LoadReport | Transfer | None, convs: list[ReplacedConvs]) -> None:
    """Log which convolutions are deformable, and the initial weights."""
    backbone = config.model.backbone
    if convs:
        header = ("layer", "level", "stride", "convs replaced", "parameters added")
        rows = [row._replace(stride="") if row.stride is None else row for row in convs]
        total = ("total", "", "", sum(row.count for row in convs), sum(row.parameters_added for row in convs))
        log.info(
            "%s in %s:\n%s",
            "DCNv2" if backbone.modulation else "DCNv1",
            backbone.name,
            format_table(header, [*rows, total]),
        )
    else:
        log.info("%s without deformable convolutions (model.backbone.dcn_v2_stages is empty)", backbone.name)
    if isinstance(weights, Transfer):
        show_transfer(weights, backbone, config.data.channels)
    elif weights is not None:
        log.info(
            "%s: %s loaded, %d new, %d dropped",
            backbone.weights,
            counted(weights.loaded, "tensor"),
            len(weights.new),
            len(weights.dropped),
        )
        show_spreading(weights.spread_from, config.data.channels)
        if weights.unused:
            log.warning(
                "%s contains more networks, which are not used: %s", backbone.weights, ", ".join(weights.unused)
            )
    elif backbone.norm == "frozen_bn" and not (backbone.weights or config.model.weights):
        log.warning(
            "model.backbone.norm frozen_bn without pretrained weights does not normalise; from scratch use gn or bn"
        )
    frozen = range(1, backbone.frozen_stages + 1)
    if still := [stage for stage in backbone.dcn_v2_stages if stage in frozen]:
        log.warning(
            "stages %s are deformable and frozen (model.backbone.frozen_stages %d): their offsets are not trained",
            still,
            backbone.frozen_stages,
        )
    if backbone.frozen_stages >= 0 and not (backbone.weights or config.model.weights):
        log.warning(
            "model.backbone.frozen_stages %d freezes random weights, because model.backbone.weights is null",
            backbone.frozen_stages,
        )


def show_spreading(spread_from: int | None, channels: int) -> None:
    """Log that the first convolution was spread over another number of channels."""
    if spread_from is not None:
        log.info(
            "the first convolution was spread from %s to %d: equal channels have the same response as before",
            counted(spread_from, "channel"),
            channels,
        )


def show_transfer(transfer: Transfer, backbone: BackboneConfig, channels: int) -> None:
    """Log the weights that a detector loaded from another one, and the differences."""
    rows = [
        ("tensors copied", transfer.copied, ""),
        ("tensors copied by class", transfer.copied_by_class, ""),
        ("classes matched", len(transfer.matched_classes), _named(transfer.matched_classes)),
        ("new classes", len(transfer.new_classes), _named(transfer.new_classes)),
        ("classes of the file not used", len(transfer.dropped_classes), _named(transfer.dropped_classes)),
        ("layers with new, zero offsets", transfer.new_offsets, ""),
    ]
    log.info(
        "initial weights from %s (%s):\n%s",
        transfer.path,
        transfer.description,
        format_table(("what", "number", "names"), rows),
    )
    show_spreading(transfer.spread_from, channels)
    if backbone.weights:
        log.info("model.backbone.weights %s is not used: model.weights has the whole detector", backbone.weights)
    for key, there, here in transfer.options:
        log.info("differs from the file: %s: %r -> %r", key, there, here)
    for new, dropped in transfer.similar_classes:
        log.warning("class %r is new: the name %r in the file has another spelling", new, dropped)
    if transfer.new_offsets and backbone.modulation and backbone.mask_scale != PLAIN_MASK_SCALE:
        log.warning(
            "new deformable layers scale their output by %g (model.backbone.mask_scale %g); %g keeps the output",
            backbone.mask_scale / PLAIN_MASK_SCALE,
            backbone.mask_scale,
            PLAIN_MASK_SCALE,
        )


def show_resumption(
    trainer: Trainer, checkpoint: Path, state: dict[str, Any], about: dict[str, Any], *, passed_over: Sequence[str]
) -> None:
    """Log where a run resumes, which damaged checkpoints it skipped, and which options have changed.

    Args:
        trainer: trainer with the state loaded.
        checkpoint: file of the state.
        state: content of the checkpoint.
        about: description of the run that its new checkpoints contain next to the state.
        passed_over: error of each newer checkpoint.
    """
    for message in passed_over:
        log.warning("skipped: %s", message)
    log.info("resuming from %s, step %d of %d", checkpoint, trainer.step, trainer.total_steps)
    before = dict(flatten(state["config"]))
    for key, value in flatten(about["config"]):
        if before.get(key) != value:
            log.warning("changed since the checkpoint: %s: %r -> %r", key, before.get(key), value)
    for split, digest in about["annotations"].items():
        if state["annotations"].get(split) != digest:
            log.warning("changed since the checkpoint: the content of data.%s.annotations", split)


def show_end(trainer: Trainer, folder: Path) -> None:
    """Log the result, skipped images, and the files of the run."""
    kind = "box AP" if f"{MASK_PREFIX}AP" in trainer.metrics else "AP"
    log.info(
        "done: %s after %s (best %s %s)",
        describe_metrics(trainer.metrics),
        counted(trainer.step, "step"),
        kind,
        percent(trainer.best_ap),
    )
    if "per_class_objects" in trainer.metrics:  # not after an evaluation of an earlier version
        log.info("the last evaluation:\n%s", class_table(trainer.metrics, SHOWN_CLASSES))
    if trainer.unreadable:
        named = _named([*trainer.unreadable], "; ")
        log.warning(
            "skipped %s that could not be read, %s in total: %s",
            counted(len(trainer.unreadable), "image"),
            counted(trainer.unreadable.total(), "time"),
            named,
        )
    best = folder / BEST
    rows = [
        ("last weights and training state", folder / LAST),
        (f"weights of the best {kind}", best if best.exists() else "in the folder that the run was resumed from"),
        ("resolved config", folder / CONFIG_FILE),
        ("all metrics by step", folder / METRICS_FILE),
        ("curves and images", f"tensorboard --logdir {folder.parent}"),
        ("curves, confusion matrix", f"python tools/eval.py {folder} --html {folder / 'evaluation.html'}"),
    ]
    log.info("%s", format_table(("what", "where"), [(what, str(where)) for what, where in rows]))


def _named(names: list[str], separator: str = ", ") -> str:
    """Join the first names of a list."""
    return separator.join([*names[:_NAMED], *(["..."] if len(names) > _NAMED else [])])
