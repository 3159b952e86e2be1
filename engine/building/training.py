"""Build a trainer for a model from the train section of a config."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from data import CocoAnnotations, CocoDetection, eval_transform, read_batches
from models import set_class_weights

from ..config import RunConfig, TrainConfig
from ..display import Progress
from ..distributed import SINGLE_PROCESS, DistributedContext, StopRequest
from ..evaluation import ScoreReport, draw_curves, draw_matrix, draw_predictions, evaluate, mean_losses
from ..insight import Health, box_centres, dcn_figures
from ..training import (
    Callback,
    Ema,
    Intervals,
    MetricsLogger,
    Schedule,
    Trainer,
    Updater,
    build_optimizer,
    build_schedule,
    scaled_lr,
    set_lrs,
)
from .classes import class_weights
from .data import build_eval_loader, build_loss_loader, build_train_loader, first_samples

# validation images drawn with ground truth and detections, and objects drawn with sampling points
NUM_IMAGES, NUM_OBJECTS = 4, 2


def build_optimization(
    config: RunConfig, model: nn.Module, *, steps_per_epoch: int, processes: int = 1
) -> tuple[Optimizer, Schedule]:
    """Build the optimizer of a model, with the learning rates of the first step, and its schedule.

    Learning rates are scaled to the number of images per step.
    """
    settings, spec = config.train, config.model.spec
    optimizer = build_optimizer(
        settings.optimizer,
        model,
        lr=scaled_lr(settings.lr, images_in_step(settings, processes), settings.base_batch_size),
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        norm_weight_decay=settings.norm_weight_decay,
        bias_weight_decay=settings.bias_weight_decay,
        backbone_lr_factor=settings.backbone_lr_factor,
        offset_lr_factor=settings.offset_lr_factor,
        lr_factors=settings.lr_factors,
        weight_decay_factors=settings.weight_decay_factors,
        detector_lr_factors=spec.lr_factors,
        detector_weight_decay_factors=spec.weight_decay_factors,
    )
    schedule = build_schedule(
        kind=settings.lr_schedule,
        total_steps=total_steps(settings, steps_per_epoch),
        steps_per_epoch=steps_per_epoch,
        unit=settings.lr_schedule_unit,
        warmup_steps=settings.warmup_steps,
        warmup_factor=settings.warmup_factor,
        milestones=settings.milestones,
        gamma=settings.gamma,
        min_lr_factor=settings.min_lr_factor,
    )
    set_lrs(optimizer, schedule(0))
    return optimizer, schedule


def images_in_step(settings: TrainConfig, processes: int) -> int:
    """Return the number of images per step over all processes."""
    return settings.batch_size * settings.grad_accum_steps * processes


def total_steps(settings: TrainConfig, steps_per_epoch: int) -> int:
    """Return the number of steps of a whole run."""
    return min(settings.epochs * steps_per_epoch, settings.max_steps or math.inf)


def build_trainer(
    config: RunConfig,
    model: nn.Module,
    train: CocoAnnotations,
    val: CocoAnnotations,
    *,
    device: torch.device,
    distributed: DistributedContext = SINGLE_PROCESS,
    stop: StopRequest,
    progress: Progress,
    save: Callable[[dict[str, Any], str], None],
    metrics_logger: MetricsLogger,
    callback: Callback | None = None,
    evaluate: Callable[[nn.Module], dict[str, Any] | None] | None = None,
    draw: Callable[[nn.Module], dict[str, Tensor]] | None = None,
) -> Trainer:
    """Build a trainer with loaders, optimizer, schedule, EMA and evaluation.

    Args:
        config: config of the run.
        model: model of `build_model`, on its device.
        train: training split.
        val: validation split.
        device: device of the model.
        distributed: the processes that train together.
        stop: request to stop this process.
        progress: progress display.
        save: writes a state dict under a file name.
        metrics_logger: logger of scalars, images and histograms.
        callback: receives the records of steps and evaluations.
        evaluate: returns the metrics of a model; None: evaluates the val split.
        draw: returns figures of a model by tag; None: draws the first images of the val split.

    Returns:
        The trainer.
    """
    settings = config.train
    reports: dict[nn.Module, ScoreReport] = {}  # of the last evaluation, until they are drawn
    loader = build_train_loader(config, train, pin_memory=device.type == "cuda", distributed=distributed)
    steps_per_epoch = loader.batch_sampler.steps
    if (weights := class_weights(train, settings.class_weights)) is not None:
        set_class_weights(model, weights)
    return Trainer(
        build_updater(config, model, steps_per_epoch=steps_per_epoch, device=device, distributed=distributed),
        loader,
        epochs=settings.epochs,
        max_steps=settings.max_steps,
        early_stopping_patience=settings.early_stopping_patience,
        intervals=Intervals(
            settings.log_every_steps,
            settings.checkpoint_every_steps,
            settings.eval_every_epochs,
            settings.images_every_steps,
        ),
        evaluate=evaluate
        or _evaluator(config, val, reports, device=device, distributed=distributed, stop=stop, progress=progress),
        draw=draw or _drawer(config, val, reports, device=device),
        save=save,
        health=Health(
            model if distributed.is_main else None,
            total_steps=total_steps(settings, steps_per_epoch),
            warmup_steps=settings.warmup_steps,
        ),
        metrics_logger=metrics_logger,
        progress=progress,
        callback=callback,
        stop=stop,
        distributed=distributed,
    )


def build_updater(
    config: RunConfig,
    model: nn.Module,
    *,
    steps_per_epoch: int,
    device: torch.device,
    distributed: DistributedContext = SINGLE_PROCESS,
) -> Updater:
    """Build the updater of a model on its device, with optimizer, schedule and EMA."""
    settings = config.train
    if settings.channels_last:
        model.to(memory_format=torch.channels_last)
    optimizer, schedule = build_optimization(config, model, steps_per_epoch=steps_per_epoch, processes=distributed.size)
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
        clip_grad_norm=settings.clip_grad_norm,
        ema=ema,
        distributed=distributed,
    )


def _evaluator(
    config: RunConfig,
    val: CocoAnnotations,
    reports: dict[nn.Module, ScoreReport],
    *,
    device: torch.device,
    distributed: DistributedContext,
    stop: StopRequest,
    progress: Progress,
) -> Callable[[nn.Module], dict[str, Any] | None]:
    """Return the trainer's `evaluate`, which adds the report of the model."""
    pin_memory = device.type == "cuda"
    loader = build_eval_loader(config, val, pin_memory=pin_memory, distributed=distributed)
    loss_loader, boxes_per_image = build_loss_loader(config, val, pin_memory=pin_memory, distributed=distributed)

    def evaluate_model(model: nn.Module) -> dict[str, Any] | None:
        batches = progress.track(read_batches(loader), "evaluate", len(loader))
        metrics = evaluate(
            model,
            batches,
            val.category_ids,
            val.raw,
            masks=config.model.spec.has_masks,
            max_detections=config.eval.max_detections,
            backend=config.eval.backend,
            device=device,
            amp=config.train.amp,
            distributed=distributed,
            stop=stop,
            inspect=lambda report: reports.update({model: report}),
        )
        if metrics is None or not config.train.val_loss or not len(loss_loader.dataset):
            return metrics
        losses = mean_losses(
            model,
            progress.track(read_batches(loss_loader), "validation loss", len(loss_loader)),
            boxes_per_image=boxes_per_image,
            device=device,
            amp=config.train.amp,
            distributed=distributed,
            stop=stop,
        )
        return None if losses is None else metrics | {"losses": losses}

    return evaluate_model


def _drawer(
    config: RunConfig, val: CocoAnnotations, reports: dict[nn.Module, ScoreReport], *, device: torch.device
) -> Callable[[nn.Module], dict[str, Tensor]]:
    """Return the trainer's `draw`, which draws the report of the model once and removes all reports."""

    def draw(model: nn.Module) -> dict[str, Tensor]:
        shown = first_samples(config, val, NUM_IMAGES) or [CocoDetection(val, eval_transform()).dummy()]
        figures = {"val/detections": draw_predictions(model, shown, val.class_names, device=device)}
        image, target = next(iter(first_samples(config, val, 1, keep_images_without_boxes=False)), shown[0])
        pixels = box_centres(target["boxes"], NUM_OBJECTS, image)
        for name, figure in dcn_figures(model, image, pixels, device=device).items():
            figures["val/receptive_field" if name == "receptive_field" else f"dcn/{name}"] = figure
        if model in reports:
            report = reports[model]
            figures |= {"val/score_curves": draw_curves(report), "val/confusion_matrix": draw_matrix(report.confusion)}
        reports.clear()
        return figures

    return draw
