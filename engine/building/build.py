"""From a checked config to built objects; beside config.py the only place in engine/ that knows the config."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from data import (
    Batch,
    CocoAnnotations,
    CocoDetection,
    blank_batch,
    eval_loader,
    eval_transform,
    load_annotations,
    resilient,
    train_loader,
    train_transform,
)
from dcn.functional import choose_backend
from models import DETECTORS, MASK_DETECTORS, load_backbone_weights, resnet, resnet_fpn
from models.resnet import check_name
from models.weights import LoadReport

from ..config import DataConfig, ModelConfig, RunConfig, TrainConfig
from ..display import Progress, log
from ..distributed import ALONE, StopRequest, World
from ..evaluation import draw_detections, evaluate
from ..insight import Health, box_centres, dcn_pictures
from ..training import Cadence, Ema, Trainer, Updater, build_optimizer, build_schedule, scaled_lr
from ..weights import Source, Transfer, take_over

Track = Callable[[Iterable], Iterable]
# Validation images that are drawn with truth and detections, and objects that sampling points are drawn for.
PICTURES, PICTURE_POINTS = 4, 2
# How often a loader's workers are started anew in a pass over the data, where the policy is to go on.
WORKER_RESTARTS = 3


def build_model(
    model: ModelConfig, data: DataConfig, num_classes: int, *, pretrained: bool = True
) -> tuple[nn.Module, LoadReport | None]:
    """Build the detector of a config.

    Args:
        model: its architecture.
        data: gives the size that images are scaled to in evaluation.
        num_classes: foreground classes.
        pretrained: whether to load the backbone's weights; False where a checkpoint will be loaded.

    Returns:
        The detector in train mode, and what became of the pretrained weights, None without any.

    Raises:
        ValueError: if parts do not fit each other or the weights cannot be had.
    """
    check_name("detector", model.detector, list(DETECTORS))
    backbone = model.backbone
    network = resnet(
        backbone.name,
        dcn_v2_stages=backbone.dcn_v2_stages,
        dcn_every=backbone.dcn_every,
        modulation=backbone.modulation,
        offset_groups=backbone.offset_groups,
        mask_scale=backbone.mask_scale,
        stride_in_1x1=backbone.stride_in_1x1,
        frozen_stages=backbone.frozen_stages,
        norm=backbone.norm,
        recompute_dcn_stages=backbone.recompute_dcn_stages,
        dcn_backend=model.dcn_backend,
    )
    report = (
        load_backbone_weights(network, backbone.name, backbone.weights) if pretrained and backbone.weights else None
    )
    pyramid = resnet_fpn(network, **model.fpn.model_dump())
    options = getattr(model, model.detector).model_dump()
    if "dcn_convs" in options:  # what is deformable in the head is so in the same way as in the backbone
        options |= {key: getattr(backbone, key) for key in ("modulation", "offset_groups", "mask_scale")}
        options["dcn_backend"] = model.dcn_backend
    min_size = data.min_size if isinstance(data.min_size, int) else data.min_size[-1]
    detector = DETECTORS[model.detector](pyramid, num_classes, min_size=min_size, max_size=data.max_size, **options)
    return detector, report


def build_started(
    config: RunConfig, class_names: Sequence[str], source: Source | None, *, pretrained: bool = True
) -> tuple[nn.Module, LoadReport | Transfer | None]:
    """Build the detector of a config with what it starts from.

    Args:
        config: of the run.
        class_names: of its data.
        source: weights of a whole detector, which stand in for the backbone's; None: there are none.
        pretrained: whether to load the backbone's weights where there is no source.

    Returns:
        The detector in train mode, and what became of the weights, None without any.

    Raises:
        ValueError: if parts do not fit each other, or weights cannot be had or do not fit.
    """
    model, report = build_model(config.model, config.data, len(class_names), pretrained=pretrained and source is None)
    return model, report if source is None else take_over(model, source, class_names, config.model_dump(mode="json"))


def needs_masks(model: ModelConfig) -> bool:
    """Whether a detector learns from masks and gives them."""
    return model.detector in MASK_DETECTORS


def check_dcn_backend(model: ModelConfig, device: torch.device) -> None:
    """Raise `ValueError`, with the reason, if the deformable layers' backend cannot run on a device."""
    head = getattr(model, model.detector, None)  # the name may be wrong, which is told elsewhere
    if model.backbone.dcn_v2_stages or getattr(head, "dcn_convs", 0):
        choose_backend(model.dcn_backend, torch.empty(0, device=device))


def read_split(
    data: DataConfig, split: str, track: Track = iter, *, masks: bool = False, check_images: bool = True
) -> CocoAnnotations:
    """Read and check the "train" or "val" split; `track` wraps the iteration over its images.

    `masks` says whether the detector needs them, see `needs_masks`. `check_images` is False where another process on
    the machine looks at them.

    Raises:
        ValueError: if something is missing or wrong, or nothing is there to learn from.
    """
    place = getattr(data, split)
    # boxes of the val split are judged as they stand, so they need no mending
    policy = data.invalid_boxes if split == "train" else "clip"
    # a mask cannot be mended, and without it there is nothing to judge by
    mask_policy = "raise" if data.invalid_boxes == "raise" else "drop"
    found = load_annotations(
        place.images,
        place.annotations,
        invalid_boxes=policy,
        invalid_masks=mask_policy if masks else None,
        source=data.source,
        check_images=check_images,
        progress=track,
    )
    unmasked = (
        f"; annotations without a `segmentation` that can be read, as masks need it: {found.dropped_masks}"
        if found.dropped_masks
        else ""
    )
    if not any(found.boxes.values()) and (split == "train" or unmasked):
        purpose = "learn from" if split == "train" else "judge by"
        raise ValueError(f"{found.path} has no image with a box to {purpose}{unmasked}")
    return found


def build_train_loader(
    config: RunConfig, annotations: CocoAnnotations, *, pin_memory: bool, world: World = ALONE
) -> DataLoader:
    """Build the loader of this process's share of the shuffled training steps."""
    data = config.data
    jitter = data.large_scale_jitter
    transform = train_transform(
        min_size=data.min_size,
        max_size=data.max_size,
        flip=data.flip,
        color_jitter=data.color_jitter,
        large_scale_jitter=jitter and (jitter.size, tuple(jitter.scale)),
    )
    return train_loader(
        CocoDetection(annotations, transform, keep_empty=data.keep_empty, masks=needs_masks(config.model)),
        batch_size=config.train.batch_size,
        workers=data.workers,
        seed=config.seed,
        accumulate=config.train.accumulate,
        rank=world.rank,
        processes=world.size,
        unreadable=data.unreadable,
        pin_memory=pin_memory,
    )


def build_eval_loader(
    config: RunConfig, annotations: CocoAnnotations, *, pin_memory: bool, world: World = ALONE
) -> DataLoader:
    """Build the loader of this process's share of the images of the val split, in order.

    Its targets have no masks: a detector is judged by those of the annotation file.
    """
    return eval_loader(
        CocoDetection(annotations, eval_transform()),
        batch_size=config.train.batch_size,
        workers=config.data.workers,
        rank=world.rank,
        processes=world.size,
        unreadable=config.data.unreadable,
        pin_memory=pin_memory,
    )


def build_optimization(
    settings: TrainConfig, model: nn.Module, *, steps_per_epoch: int, processes: int = 1
) -> tuple[Optimizer, LambdaLR]:
    """Build the optimizer over a model, its rate scaled to the images in a step, and the schedule that goes with it."""
    optimizer = build_optimizer(
        settings.optimizer,
        model,
        lr=scaled_lr(settings.lr, images_in_step(settings, processes), settings.reference_batch),
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        norm_weight_decay=settings.norm_weight_decay,
        bias_weight_decay=settings.bias_weight_decay,
        backbone_lr_factor=settings.backbone_lr_factor,
        offset_lr_factor=settings.offset_lr_factor,
    )
    schedule = build_schedule(
        optimizer,
        kind=settings.schedule,
        total_steps=total_steps(settings, steps_per_epoch),
        steps_per_epoch=steps_per_epoch,
        unit=settings.schedule_unit,
        warmup_steps=settings.warmup_steps,
        warmup_factor=settings.warmup_factor,
        milestones=settings.milestones,
        gamma=settings.gamma,
        min_lr_factor=settings.min_lr_factor,
    )
    return optimizer, schedule


def images_in_step(settings: TrainConfig, processes: int) -> int:
    """Count the images of one update, over all processes."""
    return settings.batch_size * settings.accumulate * processes


def total_steps(settings: TrainConfig, steps_per_epoch: int) -> int:
    """Count the updates of a whole run."""
    return min(settings.epochs * steps_per_epoch, settings.max_steps or math.inf)


def build_trainer(
    config: RunConfig,
    model: nn.Module,
    train: CocoAnnotations,
    val: CocoAnnotations,
    *,
    device: torch.device,
    world: World = ALONE,
    stop: StopRequest,
    progress: Progress,
    **parts: Any,
) -> Trainer:
    """Put loaders, optimizer, schedule, averages and evaluation around a model.

    Args:
        config: of the run.
        model: of `build_model`, on its device.
        train: split to learn from.
        val: split to judge by.
        device: that the model is on.
        world: the processes that train together.
        stop: knows whether this process was asked to stop.
        progress: shows what goes on.
        parts: the trainer's `save` and `board`, and whatever of its parts shall be others than those built here.
    """
    settings = config.train
    loader = build_train_loader(config, train, pin_memory=device.type == "cuda", world=world)
    built = {
        "epochs": settings.epochs,
        "max_steps": settings.max_steps,
        "early_stop": settings.early_stop,
        "cadence": Cadence(settings.log_every, settings.checkpoint_every, settings.eval_every, settings.picture_every),
        "worker_restarts": _worker_restarts(config),
        **_build_judges(config, val, device=device, world=world, stop=stop, progress=progress),
    }
    steps_per_epoch = loader.batch_sampler.steps
    built["health"] = Health(
        model if world.is_main else None,
        total_steps=total_steps(settings, steps_per_epoch),
        warmup_steps=settings.warmup_steps,
    )
    updater = build_updater(config, model, steps_per_epoch=steps_per_epoch, device=device, world=world)
    return Trainer(updater, loader, world=world, stop=stop, progress=progress, **(built | parts))


def build_updater(
    config: RunConfig, model: nn.Module, *, steps_per_epoch: int, device: torch.device, world: World = ALONE
) -> Updater:
    """Build what does the steps: optimizer, schedule and averages around a model on its device."""
    settings = config.train
    if settings.channels_last:
        model.to(memory_format=torch.channels_last)
    optimizer, schedule = build_optimization(settings, model, steps_per_epoch=steps_per_epoch, processes=world.size)
    ema = None if settings.ema_decay is None else Ema(model, settings.ema_decay)
    if settings.compile:
        model.backbone.compile(dynamic=True)
    return Updater(
        model,
        optimizer,
        schedule,
        device=device,
        seed=config.seed,
        amp=settings.amp,
        clip_norm=settings.clip_norm,
        ema=ema,
        world=world,
    )


def _build_judges(
    config: RunConfig,
    val: CocoAnnotations,
    *,
    device: torch.device,
    world: World,
    stop: StopRequest,
    progress: Progress,
) -> dict[str, Callable]:
    """Give the trainer's `evaluate` and `draw`."""
    loader = build_eval_loader(config, val, pin_memory=device.type == "cuda", world=world)

    def judge(model: nn.Module) -> dict[str, Any] | None:
        batches = resilient(loader, restarts=_worker_restarts(config), on_restart=log.warning)
        batches = progress.track(batches, "evaluate", len(loader))
        return evaluate(
            model,
            batches,
            val.category_ids,
            val.raw,
            masks=needs_masks(config.model),
            device=device,
            amp=config.train.amp,
            world=world,
            stop=stop,
        )

    def draw(model: nn.Module) -> dict[str, Tensor]:
        shown = _first_samples(config, val, PICTURES) or _samples_of(blank_batch())
        pictures = {"val/detections": draw_detections(model, shown, val.class_names, device=device)}
        image, target = next(iter(_first_samples(config, val, 1, keep_empty=False)), shown[0])
        pixels = box_centres(target["boxes"], PICTURE_POINTS, image)
        for name, picture in dcn_pictures(model, image, pixels, device=device).items():
            pictures["val/receptive_field" if name == "receptive_field" else f"dcn/{name}"] = picture
        return pictures

    return {"evaluate": judge, "draw": draw}


def _first_samples(
    config: RunConfig, annotations: CocoAnnotations, count: int, *, keep_empty: bool = True
) -> list[tuple[Tensor, dict]]:
    """The first images of a split that can be read, with their targets; with boxes only unless `keep_empty`."""
    dataset = CocoDetection(annotations, eval_transform(), keep_empty=keep_empty, masks=needs_masks(config.model))
    batches = eval_loader(dataset, batch_size=count, workers=0, unreadable=config.data.unreadable)
    return next((_samples_of(batch) for batch in batches if batch.images), [])


def _samples_of(batch: Batch) -> list[tuple[Tensor, dict]]:
    return [*zip(batch.images, batch.targets, strict=True)]


def _worker_restarts(config: RunConfig) -> int:
    return WORKER_RESTARTS if config.data.unreadable == "skip" else 0
