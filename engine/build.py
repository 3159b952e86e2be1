"""From a checked config to built objects; beside config.py the only place in engine/ that knows the config."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from data import (
    CocoAnnotations,
    CocoDetection,
    eval_loader,
    eval_transform,
    load_annotations,
    train_loader,
    train_transform,
)
from dcn.functional import choose_backend
from models import DETECTORS, load_backbone_weights, resnet, resnet_fpn
from models.resnet import check_name
from models.weights import LoadReport

from .config import DataConfig, ModelConfig, RunConfig, TrainConfig
from .optimizer import build_optimizer, build_schedule, scaled_lr

Track = Callable[[Iterable], Iterable]


def build_model(
    model: ModelConfig, data: DataConfig, num_classes: int, *, pretrained: bool = True
) -> tuple[nn.Module, LoadReport | None]:
    """Build the detector of a config.

    Args:
        model: its architecture.
        data: gives the size that images are scaled to.
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
        modulation=backbone.modulation,
        offset_groups=backbone.offset_groups,
        mask_scale=backbone.mask_scale,
        frozen_stages=backbone.frozen_stages,
        norm=backbone.norm,
        dcn_backend=model.dcn_backend,
    )
    report = (
        load_backbone_weights(network, backbone.name, backbone.weights) if pretrained and backbone.weights else None
    )
    pyramid = resnet_fpn(network, levels=model.fpn.levels, channels=model.fpn.channels)
    options = getattr(model, model.detector).model_dump()
    detector = DETECTORS[model.detector](
        pyramid, num_classes, min_size=data.min_size, max_size=data.max_size, **options
    )
    return detector, report


def check_dcn_backend(model: ModelConfig, device: torch.device) -> None:
    """Raise `ValueError`, with the reason, if the deformable layers' backend cannot run on a device."""
    if model.backbone.dcn_v2_stages:
        choose_backend(model.dcn_backend, torch.empty(0, device=device))


def read_split(data: DataConfig, split: str, track: Track = iter) -> CocoAnnotations:
    """Read and check the "train" or "val" split; `track` wraps the iteration over its images.

    Raises:
        ValueError: if something is missing or wrong, or nothing is there to learn from.
    """
    place = getattr(data, split)
    # boxes of the val split are judged as they stand, so they need no mending
    policy = data.invalid_boxes if split == "train" else "clip"
    found = load_annotations(place.images, place.annotations, invalid_boxes=policy, source=data.source, progress=track)
    if split == "train" and not any(found.boxes.values()):
        raise ValueError(f"{found.path} has no image with a box to learn from")
    return found


def build_train_loader(config: RunConfig, annotations: CocoAnnotations, *, pin_memory: bool) -> Any:
    """Build the loader of shuffled training batches."""
    data = config.data
    dataset = CocoDetection(annotations, train_transform(flip=data.flip), keep_empty=data.keep_empty)
    return train_loader(
        dataset, batch_size=config.train.batch_size, workers=data.workers, seed=config.seed, pin_memory=pin_memory
    )


def build_eval_loader(config: RunConfig, annotations: CocoAnnotations, *, pin_memory: bool) -> Any:
    """Build the loader of all images of the val split, in order."""
    dataset = CocoDetection(annotations, eval_transform())
    return eval_loader(dataset, batch_size=config.train.batch_size, workers=config.data.workers, pin_memory=pin_memory)


def build_optimization(
    settings: TrainConfig, model: nn.Module, *, steps_per_epoch: int
) -> tuple[Optimizer, LRScheduler]:
    """Build the optimizer over a model, its rate scaled to the batch, and the schedule that goes with it."""
    optimizer = build_optimizer(
        settings.optimizer,
        model,
        lr=scaled_lr(settings.lr, settings.batch_size, settings.reference_batch),
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        offset_lr_factor=settings.offset_lr_factor,
    )
    schedule = build_schedule(
        optimizer,
        steps_per_epoch=steps_per_epoch,
        warmup_steps=settings.warmup_steps,
        warmup_factor=settings.warmup_factor,
        milestones=settings.milestones,
        gamma=settings.gamma,
    )
    return optimizer, schedule
