"""The training loop over built objects."""

import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from .board import Board
from .environment import peak_memory_gib
from .evaluator import COCO_FIGURES
from .optimizer import current_lrs, load_optimizer_state, set_schedule_step
from .precision import autocast, to_device
from .preemption import StopRequest
from .progress import Progress, log
from .runs import BEST, LAST
from .tables import percent


class NonFiniteError(FloatingPointError):
    """A loss or gradient that is NaN or infinite; raised before the update, so that the weights are still good."""


@dataclass(frozen=True)
class Cadence:
    """What happens how often; all but `eval_every` (epochs) in steps."""

    log_every: int = 50
    checkpoint_every: int = 1000
    eval_every: int = 1
    picture_every: int = 1000


class Trainer:
    """Trains a detector of torchvision's contract; builds nothing itself.

    Args:
        model: on its device; `model(images, targets)` gives a dict of losses.
        optimizer: with a "name" in each group.
        schedule: stepped after every update.
        loader: of `data.train_loader`.
        device: where the model is.
        epochs: passes over the loader.
        max_steps: bound on the steps, or None.
        amp: "off", "bf16" or "fp16".
        clip_norm: bound on the norm of the gradient, or None.
        cadence: what happens how often.
        evaluate: gives the figures of `coco_figures` for the model as it is.
        draw: gives a picture `(3, H, W)` of detections of the model as it is.
        save: writes a dict of state under a file name.
        board: takes scalars and pictures.
        progress: shows the steps.
        stop: asked after every step whether to stop there.

    Attributes:
        step: updates done. epoch: epochs done. batch: batches done of the epoch under way.
        figures: of the last evaluation, None before one. judged_step: its step. best_ap: of all evaluations.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        schedule: LambdaLR,
        loader: DataLoader,
        *,
        device: torch.device,
        epochs: int,
        max_steps: int | None,
        amp: str,
        clip_norm: float | None,
        cadence: Cadence,
        evaluate: Callable[[], dict[str, Any]],
        draw: Callable[[], Tensor],
        save: Callable[[dict[str, Any], str], None],
        board: Board,
        progress: Progress,
        stop: StopRequest,
    ) -> None:
        self.model, self.optimizer, self.schedule, self.loader = model, optimizer, schedule, loader
        self.device, self.epochs, self.amp = device, epochs, amp
        self.clip_norm = math.inf if clip_norm is None else clip_norm
        self.cadence = cadence
        self.evaluate, self.draw, self.save = evaluate, draw, save
        self.board, self.progress, self.stop = board, progress, stop
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")
        self.total_steps = min(epochs * len(loader), max_steps or math.inf)
        self.step = self.epoch = self.batch = 0
        self.figures: dict[str, Any] | None = None
        self.judged_step: int | None = None
        self.best_ap = -math.inf
        self._lrs: dict[str, float] = {}  # of the last step
        self._window: defaultdict[str, list[float]] = defaultdict(list)

    @property
    def is_finished(self) -> bool:
        """Whether all steps are done and judged."""
        return self.step >= self.total_steps and self.judged_step == self.step

    def fit(self) -> dict[str, Any]:
        """Train to the end and give the figures of the last evaluation.

        Raises:
            NonFiniteError: if the loss or its gradient is not finite.
            PreemptedError: if it was asked to stop; the state is saved then.
        """
        while not self.is_finished:
            self._train_epoch()
            is_last = self.step >= self.total_steps
            if self.batch == len(self.loader):  # else `max_steps` ends the run within an epoch
                self.epoch, self.batch = self.epoch + 1, 0
            if is_last or self.epoch % self.cadence.eval_every == 0:
                self._evaluate()
            if is_last:
                self.board.picture(self.step, "val/detections", self.draw())
            self.save(self.state_dict(), LAST)
        return self.figures

    def _train_epoch(self) -> None:
        steps = len(self.loader)
        self.loader.batch_sampler.set_position(self.epoch, self.batch)
        self.progress.start_epoch(self.epoch + 1, self.epochs, steps, self.batch)
        batches = iter(self.loader)
        try:
            while self.batch < steps and self.step < self.total_steps:
                asked = time.perf_counter()
                batch = next(batches)
                got = time.perf_counter()
                record = self._train_step(batch)
                self._record(record, data_s=got - asked, step_s=time.perf_counter() - asked, images=len(batch[0]))
                if self.stop.received:
                    self.save(self.state_dict(), LAST)
                    self.stop.check()
                if self.step % self.cadence.picture_every == 0:
                    self.board.picture(self.step, "val/detections", self.draw())
                if self.step % self.cadence.checkpoint_every == 0:
                    self.save(self.state_dict(), LAST)
        finally:
            self.progress.end_epoch()
        # An evaluation can fail where training did not: what was learned is safe before it starts.
        self.save(self.state_dict(), LAST)

    def _train_step(self, batch: tuple[list[Tensor], list[dict]]) -> dict[str, float]:
        """Do one update; gives the loss, its parts and the norm of the gradient."""
        images, targets = to_device(batch, self.device)
        with autocast(self.device, self.amp):
            losses = self.model(images, targets)
            loss = sum(losses.values())
        values = torch.stack([loss, *losses.values()]).tolist()  # one wait for the device, not one for each
        record = dict(zip(["loss", *losses], values, strict=True))
        self._check_finite(record, targets)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        norm = clip_grad_norm_(self.model.parameters(), self.clip_norm).item()
        if not self.scaler.is_enabled():  # the scaler skips such a step by itself
            self._check_finite(record | {"grad_norm": norm}, targets)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._lrs = current_lrs(self.optimizer)
        self.schedule.step()
        self.step += 1
        self.batch += 1
        return record | {"grad_norm": norm}

    def _check_finite(self, record: dict[str, float], targets: list[dict]) -> None:
        if not all(math.isfinite(value) for value in record.values()):
            parts = ", ".join(f"{name} {value:.4g}" for name, value in record.items())
            images = ", ".join(str(target["image_id"]) for target in targets)
            rates = ", ".join(f"{name} {lr:.3g}" for name, lr in current_lrs(self.optimizer).items())
            raise NonFiniteError(
                f"step {self.step + 1} is not finite and was not taken: {parts}; lr {rates}; image ids {images}. "
                f"Weights up to step {self.step} are good; try a lower train.lr, more train.warmup_steps, or amp off"
            )

    def _record(self, record: dict[str, float], *, data_s: float, step_s: float, images: int) -> None:
        record = record | {"data_s": data_s, "compute_s": step_s - data_s, "step_s": step_s}
        for name, value in record.items():
            self._window[name].append(value)
        self._window["images"].append(images)
        mean = {name: sum(values) / len(values) for name, values in self._window.items()}
        display = {
            "step": self.step,
            "lr": max(self._lrs.values()),
            "images_per_s": mean["images"] / mean["step_s"],
            "eta_s": (self.total_steps - self.step) * mean["step_s"],
            "peak_gib": peak_memory_gib(self.device),
        }
        self.progress.step(mean | record | display)
        if self.step % self.cadence.log_every == 0 or self.step == self.total_steps:
            self.progress.line(mean | display, self.epoch + 1, self.epochs)
            self.board.scalars(self.step, self._tagged(mean | display))
            self._window.clear()

    def _tagged(self, record: dict[str, float]) -> dict[str, float]:
        times = ("step_s", "data_s", "compute_s", "images_per_s")
        return (
            {f"train/{name}": value for name, value in record.items() if name.startswith("loss") or name == "grad_norm"}
            | {f"lr/{name}": lr for name, lr in self._lrs.items()}
            | {f"time/{name}": record[name] for name in times}
            | {"memory/peak_gib": record["peak_gib"]}
        )

    def _evaluate(self) -> None:
        start = time.perf_counter()
        self.figures, self.judged_step = self.evaluate(), self.step
        took_s = time.perf_counter() - start
        scalars = {f"val/{name}": self.figures[name] for name in COCO_FIGURES}
        scalars |= {f"val_per_class/{name}": ap for name, ap in self.figures["per_class"].items()}
        self.board.scalars(self.step, scalars | {"time/eval_s": took_s})
        shown = ", ".join(f"{name} {percent(self.figures[name])}" for name in ("AP", "AP50", "AP75"))
        epoch = self.epoch + bool(self.batch)
        log.info("epoch %d/%d step %d: %s (evaluated in %.1f s)", epoch, self.epochs, self.step, shown, took_s)
        if not self.figures["AP"] <= self.best_ap:  # also where nothing can be judged and AP is NaN
            self.best_ap = self.figures["AP"]
            self.save(self.state_dict(), BEST)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs, as tensors and plain values."""
        cuda = self.device.type == "cuda"
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "epoch": self.epoch,
            "batch": self.batch,
            "figures": self.figures,
            "judged_step": self.judged_step,
            "best_ap": self.best_ap,
            "rng": torch.get_rng_state(),
            "rng_cuda": torch.cuda.get_rng_state(self.device) if cuda else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()` of an earlier process, with the rates and options that this one was built with."""
        self.model.load_state_dict(state["model"])
        load_optimizer_state(self.optimizer, state["optimizer"])
        set_schedule_step(self.schedule, state["step"])
        if state["scaler"]:  # empty where it was not in use
            self.scaler.load_state_dict(state["scaler"])
        self.step, self.epoch, self.batch = state["step"], state["epoch"], state["batch"]
        self.figures, self.judged_step, self.best_ap = state["figures"], state["judged_step"], state["best_ap"]
        torch.set_rng_state(state["rng"])
        if state["rng_cuda"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["rng_cuda"], self.device)
