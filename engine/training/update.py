"""One update of the weights: forward and backward passes of a step's micro-batches, checks, and the optimizer."""

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
from ..distributed import SINGLE_PROCESS, DistributedContext, OtherProcessError
from ..insight import largest_offset
from .ema import Ema
from .optimizer import current_lrs, load_optimizer_state, set_lrs
from .schedule import Schedule

# The loss scale of fp16 starts at 2**16 and halves with each step that overflows: by then it has done all it can.
_MOST_OVERFLOWS = 30


class NonFiniteError(FloatingPointError):
    """A loss or gradient that is NaN or infinite; raised before the update, so that the weights are still good."""


class StepRecord(NamedTuple):
    """What one update was like, the same in all processes.

    Attributes:
        numbers: "loss", its parts, and "grad_norm", the norm of the gradient before it was clipped.
        lrs: learning rate of each part that it was taken with.
        signalled: whether some process was asked to stop.
        unreadable: how many images could not be read.
    """

    numbers: dict[str, float]
    lrs: dict[str, float]
    signalled: bool
    unreadable: int


class Updater:
    """Updates a detector of torchvision's contract, step by step.

    The loss of a step is the mean over its images, however they are split into micro-batches and processes. Each target
    gets "step_boxes", the boxes of the whole step per image, at least one box: a detector that divides the losses of a
    batch by `len(images) * step_boxes` has the sum over the images of the step divided by the boxes of the step, which
    is also independent of the split.

    Args:
        model: on its device; `model(images, targets)` gives a dict of losses that are means over the images, or such
            means divided by `step_boxes`.
        optimizer: with a "name" in each group, at the rates of the first step.
        schedule: gives the factor of the learning rates of each step.
        device: where the model is.
        seed: what is random in a step depends on it, on the step and on the process, and on nothing before.
        amp: "off", "bf16" or "fp16".
        clip_grad_norm: bound on the norm of the gradient, or None.
        ema: average of the weights to keep, or None.
        distributed: the processes that train together.

    Attributes:
        step: updates done.
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
            batches: the micro-batches of a step of this process.
            error: why this process has no more images; it takes part in what the others wait for, before all give up.
            is_signalled: whether this process was asked to stop; asked after the backward pass.

        Raises:
            NonFiniteError: if the loss or its gradient is not finite, before the update.
            Exception: `error`, and `OtherProcessError` in the processes that have none.
        """
        torch.manual_seed(((self.seed * 1_000_003 + self.step) * 1_000_003 + self.distributed.rank) % 2**63)
        self.optimizer.zero_grad()
        step_boxes = self._count_boxes(batches)
        losses = [self._backward(batch, step_boxes) for batch in batches]
        self.scaler.unscale_(self.optimizer)
        norm = get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        told = {
            "weight": sum(batch.weight for batch in batches),
            "signals": is_signalled(),
            "unreadable": sum(len(batch.unreadable) for batch in batches),
            "errors": error is not None,
        }
        numbers, told = self._exchange(losses, norm, told)
        if told["errors"]:
            raise error or OtherProcessError("another process has no more images")
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
        return StepRecord(numbers, lrs, told["signals"] > 0, round(told["unreadable"]))

    def _count_boxes(self, batches: list[Batch]) -> float:
        """Return the boxes per image of the step over all processes, at least one box."""
        read = [target for batch in batches if batch.weight for target in batch.targets]
        counts = torch.tensor([sum(len(target["boxes"]) for target in read), len(read)])
        boxes, images = self.distributed.sum(counts).tolist()
        return max(boxes, 1) / max(images, 1)

    def _backward(self, batch: Batch, step_boxes: float) -> dict[str, Tensor]:
        """Add the gradient of a micro-batch's share of the loss; gives its share of the loss and of the parts."""
        images, targets = to_device(batch.images, batch.targets, self.device, self._dtype)
        targets = [target | {"step_boxes": step_boxes} for target in targets]
        with contextlib.nullcontext() if batch.ends_step or self.distributed.size == 1 else self._parallel.no_sync():
            with autocast(self.device, self.amp):
                losses = self._parallel(images, targets)
                loss = sum(losses.values())
            # gradients are averaged over the processes, where the shares of the images are to be added up
            self.scaler.scale(loss * (batch.weight * self.distributed.size)).backward()
        return {name: value.detach() * batch.weight for name, value in {"loss": loss, **losses}.items()}

    def _exchange(
        self, losses: list[dict[str, Tensor]], norm: Tensor, told: dict[str, float]
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Add up losses and what is to be told over micro-batches and processes; gives the numbers of the step too."""
        own = [sum(part[name] for part in losses).to(norm.dtype) for name in losses[0]]
        values = torch.cat([torch.stack(own), norm.new_tensor([float(value) for value in told.values()])])
        # one message between the processes and one wait for the device, not one for each number
        *totals, grad_norm = torch.cat([self.distributed.sum(values), norm[None]]).tolist()
        told = dict(zip(told, totals[len(own) :], strict=True))
        weight = told["weight"] or 1  # 0: nothing could be read
        numbers = {name: total / weight for name, total in zip(losses[0], totals[: len(own)], strict=True)}
        return numbers | {"grad_norm": grad_norm}, told

    def _check(self, numbers: dict[str, float], batches: list[Batch], losses: list[dict[str, Tensor]]) -> None:
        norm = numbers["grad_norm"]
        parts = [value for name, value in numbers.items() if name != "grad_norm"]
        self._overflows = self._overflows + 1 if self.scaler.is_enabled() and not math.isfinite(norm) else 0
        # the loss scaler skips a step whose gradient alone overflows, and tries a smaller scale
        is_excused = 0 < self._overflows <= _MOST_OVERFLOWS
        if all(map(math.isfinite, parts)) and (math.isfinite(norm) or is_excused):
            return
        guilty = [b for b, loss in zip(batches, losses, strict=True) if not loss["loss"].isfinite()]
        message = self._describe_failure(numbers, guilty or ([] if not all(map(math.isfinite, parts)) else batches))
        raise NonFiniteError(message) if self.distributed.is_main else OtherProcessError(message)

    def _describe_failure(self, numbers: dict[str, float], suspects: list[Batch]) -> str:
        """Name the loss parts, the rates, the images and the farthest offsets; all processes take part."""
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
        offsets = f"; the largest offsets are {reach.pixels:.4g} pixels, in {reach.layer}" if reach else ""
        hint = "a lower train.lr, more train.warmup_steps, a smaller train.clip_grad_norm, or amp off"
        if self._overflows > _MOST_OVERFLOWS:
            scale = self.scaler.get_scale()
            hint = f"amp bf16 or off: {self._overflows} steps in a row overflowed, down to a loss scale of {scale:g}"
        return (
            f"step {self.step + 1} is not finite and was not taken: {parts}; lr {rates}; image ids {images}{offsets}. "
            f"Weights up to step {self.step} are good; try {hint}"
        )

    def state_dict(self) -> dict[str, Any]:
        """What goes on from step to step, as tensors and plain values."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "overflows": self._overflows,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()` of an earlier process, with the rates and options that this one was built with.

        An average of weights that was not taken before starts from the weights as they are.
        """
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"] or {"model": state["model"], "updates": 0})
        load_optimizer_state(self.optimizer, state["optimizer"])
        set_lrs(self.optimizer, self.schedule(self.step))
        if state["scaler"]:  # empty where it was not in use
            self.scaler.load_state_dict(state["scaler"])
        self._overflows = state["overflows"]
