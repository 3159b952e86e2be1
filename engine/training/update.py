"""One update of the weights: forward and backward passes of the micro-batches, checks, and the optimizer step."""

import contextlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from data import Batch

from ..devices import autocast, to_device
from ..distributed import SINGLE_PROCESS, DistributedContext, OtherProcessError, PreemptedError
from ..insight import largest_offset
from .ema import Ema
from .optimizer import current_lrs, load_optimizer_state, set_lrs
from .schedule import Schedule

# Overflows in a row after which fp16 training fails: by then the loss scale, which starts at 2**16 and is halved after
# each overflow, is too small to help.
_MAX_OVERFLOWS = 30


class NonFiniteError(FloatingPointError):
    """A loss or gradient that is NaN or infinite. Raised before the update, so the weights stay intact."""


class StepRecord(NamedTuple):
    """Record of one update, equal in all processes.

    Attributes:
        numbers: "loss", its parts, and "grad_norm", the norm of the gradient before clipping.
        lrs: learning rate of each part of the model in this update.
        signalled: whether any process received a signal to stop.
        unreadable: number of images that could not be read.
    """

    numbers: dict[str, float]
    lrs: dict[str, float]
    signalled: bool
    unreadable: int


class Updater:
    """Updates a detector with torchvision's interface, step by step.

    The loss of a step is the mean over its images, for any split into micro-batches and processes.

    Each target has "step_boxes": the number of boxes per image over the whole step, with at least one box in the step.
    A detector that divides the losses of a batch by `len(images) * step_boxes` normalizes by the boxes of the whole
    step. This, too, does not depend on the split.

    Args:
        model: detector on its device. `model(images, targets)` returns a dict of losses that are means over the images,
            or such means divided by `step_boxes`.
        optimizer: optimizer with a "name" in each parameter group and the learning rates of the first step.
        schedule: returns the factor of the learning rates for a step.
        device: device of the model.
        seed: random seed. The random numbers of a step depend only on the seed, the step and the process.
        amp: "off", "bf16" or "fp16".
        clip_grad_norm: maximum norm of the gradient, or None.
        ema: moving average of the weights to update, or None.
        distributed: the processes of this training.

    Attributes:
        step: number of completed updates.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        schedule: Schedule,
        *,
        device: torch.device,
        seed: int = 0,
        amp: str = "off",
        clip_grad_norm: float | None = None,
        ema: Ema | None = None,
        distributed: DistributedContext = SINGLE_PROCESS,
    ) -> None:
        self.model, self.optimizer, self.schedule, self.ema = model, optimizer, schedule, ema
        self.device, self.seed, self.amp, self.distributed = device, seed, amp, distributed
        self.clip_grad_norm = math.inf if clip_grad_norm is None else clip_grad_norm
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")
        self.step = 0
        self._dtype = next(model.parameters()).dtype
        self._parallel = distributed.wrap_ddp(model, device)
        self._overflows = 0

    def __call__(
        self,
        batches: list[Batch],
        *,
        error: Exception | None = None,
        is_signalled: Callable[[], bool] = lambda: False,
    ) -> StepRecord:
        """Do one update.

        Args:
            batches: micro-batches of a step of this process.
            error: error to raise after the collective calls of this step. A `PreemptedError` is raised before the
                forward pass in all processes, so that the weights of the last step can be saved.
            is_signalled: returns whether this process received a signal to stop; called after the backward pass.

        Raises:
            NonFiniteError: if the loss or its gradient is not finite; raised before the update.
            PreemptedError: if `error` is one in any process.
            Exception: `error`, and `OtherProcessError` in the other processes.
        """
        torch.manual_seed(((self.seed * 1_000_003 + self.step) * 1_000_003 + self.distributed.rank) % 2**63)
        self.optimizer.zero_grad()
        step_boxes, is_preempted = self._count_boxes(batches, isinstance(error, PreemptedError))
        if is_preempted:
            raise error if isinstance(error, PreemptedError) else PreemptedError("another process was asked to stop")
        losses = [self._backward(batch, step_boxes) for batch in batches]
        self.scaler.unscale_(self.optimizer)
        norm = get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        counts = {
            "weight": sum(batch.weight for batch in batches),
            "signals": is_signalled(),
            "unreadable": sum(len(batch.unreadable) for batch in batches),
            "errors": error is not None,
        }
        numbers, counts = self._sum_over_processes(losses, norm, counts)
        if counts["errors"]:
            raise error or OtherProcessError("another process failed to read its images")
        self._check(numbers, batches, losses)

        if numbers["grad_norm"] > self.clip_grad_norm:
            clip_grads_with_norm_(self.model.parameters(), self.clip_grad_norm, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        lrs = current_lrs(self.optimizer)
        self.step += 1
        set_lrs(self.optimizer, self.schedule(self.step))
        if self.ema is not None:
            self.ema.update(self.model)
        return StepRecord(numbers, lrs, counts["signals"] > 0, round(counts["unreadable"]))

    def _count_boxes(self, batches: list[Batch], is_preempted: bool) -> tuple[float, bool]:
        """Return the boxes per image of the step over all processes, at least one box, and if any is preempted."""
        read = [target for batch in batches if batch.weight for target in batch.targets]
        counts = torch.tensor([sum(len(target["boxes"]) for target in read), len(read), is_preempted])
        boxes, images, preempted = self.distributed.sum(counts).tolist()
        return max(boxes, 1) / max(images, 1), preempted > 0

    def _backward(self, batch: Batch, step_boxes: float) -> dict[str, Tensor]:
        """Accumulate the gradient of a micro-batch, weighted by its images; return its weighted losses."""
        images, targets = to_device(batch.images, batch.targets, self.device, self._dtype)
        targets = [target | {"step_boxes": step_boxes} for target in targets]
        with contextlib.nullcontext() if batch.ends_step or self.distributed.size == 1 else self._parallel.no_sync():
            with autocast(self.device, self.amp):
                losses = self._parallel(images, targets)
                loss = sum(losses.values())
            # DDP averages gradients over the processes, where a sum is needed
            self.scaler.scale(loss * (batch.weight * self.distributed.size)).backward()
        return {name: value.detach() * batch.weight for name, value in {"loss": loss, **losses}.items()}

    def _sum_over_processes(
        self, losses: list[dict[str, Tensor]], norm: Tensor, counts: dict[str, float]
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Sum losses and counts over micro-batches and processes; return both, the losses with "grad_norm"."""
        own = [sum(part[name] for part in losses).to(norm.dtype) for name in losses[0]]
        values = torch.cat([torch.stack(own), norm.new_tensor([float(value) for value in counts.values()])])
        # one collective call and one synchronization with the device, not one per number
        *totals, grad_norm = torch.cat([self.distributed.sum(values), norm[None]]).tolist()
        counts = dict(zip(counts, totals[len(own) :], strict=True))
        weight = counts["weight"] or 1  # 0: no image could be read
        numbers = {name: total / weight for name, total in zip(losses[0], totals[: len(own)], strict=True)}
        return numbers | {"grad_norm": grad_norm}, counts

    def _check(self, numbers: dict[str, float], batches: list[Batch], losses: list[dict[str, Tensor]]) -> None:
        norm = numbers["grad_norm"]
        parts = [value for name, value in numbers.items() if name != "grad_norm"]
        self._overflows = self._overflows + 1 if self.scaler.is_enabled() and not math.isfinite(norm) else 0
        # if only the gradient overflows, GradScaler skips the step and reduces the loss scale
        is_retried = 0 < self._overflows <= _MAX_OVERFLOWS
        if all(map(math.isfinite, parts)) and (math.isfinite(norm) or is_retried):
            return
        failed = [b for b, loss in zip(batches, losses, strict=True) if not loss["loss"].isfinite()]
        message = self._describe_failure(numbers, failed or ([] if not all(map(math.isfinite, parts)) else batches))
        raise NonFiniteError(message) if self.distributed.is_main else OtherProcessError(message)

    def _describe_failure(self, numbers: dict[str, float], suspects: list[Batch]) -> str:
        """Describe the losses, learning rates, images and largest offset of a step; a collective call."""
        reach = None
        for batch in suspects:
            images, _ = to_device(batch.images, batch.targets, self.device, self._dtype)
            found = largest_offset(self.model, images)
            reach = max(filter(None, (reach, found)), default=None)
        ids = [target["image_id"] for batch in suspects for target in batch.targets if batch.weight]
        reports = self.distributed.gather((ids, reach))
        parts = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        rates = ", ".join(f"{name} {lr:.3g}" for name, lr in current_lrs(self.optimizer).items())
        images = ", ".join(str(image_id) for ids, _ in reports for image_id in ids)
        reach = max((found for _, found in reports if found is not None), default=None)
        offsets = f"; largest offset {reach.pixels:.4g} pixels, in {reach.layer}" if reach else ""
        hint = "a lower train.lr, more train.warmup_steps, a smaller train.clip_grad_norm, or train.amp=off"
        if self._overflows > _MAX_OVERFLOWS:
            scale = self.scaler.get_scale()
            hint = f"train.amp=bf16 or off: {self._overflows} overflows in a row reduced the loss scale to {scale:g}"
        return (
            f"step {self.step + 1} is not finite and was not applied: {parts}; lr {rates}; image ids {images}"
            f"{offsets}. The weights of step {self.step} are intact. Try {hint}"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the state of training as tensors and plain values."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "overflows": self._overflows,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the `state_dict()` of an earlier process. Learning rates and options stay as this updater was built.

        If the earlier run had no EMA, the average starts from the loaded weights.
        """
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"] or {"model": state["model"], "updates": 0})
        load_optimizer_state(self.optimizer, state["optimizer"])
        set_lrs(self.optimizer, self.schedule(self.step))
        if state["scaler"]:  # empty if the scaler was disabled
            self.scaler.load_state_dict(state["scaler"])
        self._overflows = state["overflows"]
