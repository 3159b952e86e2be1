"""Losses of a detector on validation images, comparable to those of training."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from data import Batch

from ..devices import autocast, to_device
from ..distributed import SINGLE_PROCESS, DistributedContext, StopRequest


@torch.no_grad()
def mean_losses(
    model: nn.Module,
    loader: Iterable[Batch],
    *,
    boxes_per_image: float,
    device: torch.device,
    amp: str = "off",
    distributed: DistributedContext = SINGLE_PROCESS,
    stop: StopRequest | None = None,
) -> dict[str, float] | None:
    """Compute the mean losses over the images of a loader, without gradients, in all processes.

    Batch norms use their running statistics and keep them. The result does not depend on the batches and the processes.

    Args:
        model: detector.
        loader: loader of `data.eval_loader` over images that are transformed as in training, without augmentation.
        boxes_per_image: mean number of boxes of the images of all processes, see `step_boxes` in `Updater`.
        device: device of the model.
        amp: "off", "bf16" or "fp16".
        distributed: the processes that share the images.
        stop: checked before each batch.

    Returns:
        "loss" and its parts; empty if no image could be read, or None if any process received a signal to stop.
    """
    dtype = next(model.parameters()).dtype
    totals: dict[str, float] = {}
    images_read = 0
    with distributed.raise_together(), _in_train_mode(model):
        for batch in stop.until(loader) if stop else loader:
            if not batch.images:
                continue
            images, targets = to_device(batch.images, batch.targets, device, dtype)
            with autocast(device, amp):
                losses: dict[str, Tensor] = model(images, [t | {"step_boxes": boxes_per_image} for t in targets])
            images_read += len(images)
            for name, value in {"loss": sum(losses.values()), **losses}.items():
                totals[name] = totals.get(name, 0.0) + value.item() * len(images)
    parts = distributed.gather((totals, images_read, stop is not None and stop.received is not None))
    if any(signalled for _, _, signalled in parts):
        return None
    count = sum(images for _, images, _ in parts)
    names = dict.fromkeys(name for sums, _, _ in parts for name in sums)
    return {name: sum(sums.get(name, 0.0) for sums, _, _ in parts) / count for name in names}


@contextmanager
def _in_train_mode(model: nn.Module) -> Iterator[None]:
    """Context in which a detector returns losses; batch norms and dropout are as in evaluation."""
    modes = {module: module.training for module in model.modules()}
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm | nn.modules.dropout._DropoutNd):
            module.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
