"""The training loop over built objects."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader

from data import Batch, ImageError, WorkerError, read_batches

from ..devices import peak_memory_gib
from ..display import Progress, log, only_shown, percent
from ..distributed import SINGLE_PROCESS, DistributedContext, PreemptedError, StopRequest
from ..evaluation import MASK_PREFIX, describe_metrics, scalar_metrics
from ..insight import Health, SamplingRecord
from ..runs import BEST, LAST
from .callback import Callback
from .metrics_logger import MetricsLogger
from .overfitting import LossTrend
from .running_mean import RunningMean
from .update import StepRecord, Updater


@dataclass(frozen=True)
class Intervals:
    """Intervals between records, checkpoints, evaluations and figures, in steps or epochs as their names state."""

    log_every_steps: int = 50
    checkpoint_every_steps: int = 1000
    eval_every_epochs: int = 1
    images_every_steps: int = 1000


class Trainer:
    """Trains a detector with objects that are already built.

    In distributed training each process has a trainer, and all trainers execute the same steps.

    Args:
        updater: computes the updates of the weights.
        loader: loader of `data.train_loader`.
        epochs: number of passes over the loader.
        max_steps: maximum number of steps, or None.
        early_stopping_patience: training ends after this many evaluations without a better AP; None: never.
        intervals: intervals between records, checkpoints, evaluations and figures.
        evaluate: returns the metrics of a model, see `coco_metrics`, and optionally its `losses`, see `mean_losses`, or
            None if a signal interrupted it.
        draw: returns figures `(3, H, W)` for a model by tag.
        save: writes a state under a file name.
        health: measures the deformable layers in recorded steps.
        metrics_logger: receives scalars, images and histograms.
        progress: shows the steps.
        callback: receives the records of steps and evaluations.
        stop: reports whether this process received a signal to stop.
        distributed: the processes of this training.

    Attributes:
        step: number of completed updates.
        epoch: number of completed epochs.
        batch: number of completed steps of the current epoch.
        metrics: metrics of the last evaluation, with the averaged weights if there is an EMA; None before the first.
        last_eval_step: step of the last evaluation; None before the first.
        best_ap: best box AP of all evaluations. Detectors with masks use box AP too, so that all runs are comparable.
        evals_without_improvement: number of evaluations since `best_ap`.
        unreadable: for each image that could not be read, by its message: how often it was skipped.
    """

    def __init__(
        self,
        updater: Updater,
        loader: DataLoader,
        *,
        epochs: int,
        max_steps: int | None,
        early_stopping_patience: int | None = None,
        intervals: Intervals,
        evaluate: Callable[[nn.Module], dict[str, Any] | None],
        draw: Callable[[nn.Module], dict[str, Tensor]],
        save: Callable[[dict[str, Any], str], None],
        health: Health,
        metrics_logger: MetricsLogger,
        progress: Progress,
        callback: Callback | None = None,
        stop: StopRequest,
        distributed: DistributedContext = SINGLE_PROCESS,
    ) -> None:
        self.updater, self.loader = updater, loader
        self.epochs, self.early_stopping_patience, self.intervals = epochs, early_stopping_patience, intervals
        self.evaluate, self.draw, self.save = evaluate, draw, save
        self.health, self.metrics_logger, self.progress = health, metrics_logger, progress
        self.callback = callback or Callback()
        self.stop, self.distributed = stop, distributed
        self.epoch_steps = loader.batch_sampler.steps
        self.total_steps = min(epochs * self.epoch_steps, max_steps or math.inf)
        self.epoch = self.batch = 0
        self.metrics: dict[str, Any] | None = None
        self.last_eval_step: int | None = None
        self.best_ap = -math.inf
        self.evals_without_improvement = 0
        self.unreadable: Counter[str] = Counter()
        self._running_mean = RunningMean()
        self._losses_since_eval = RunningMean()
        self._loss_trend = LossTrend()

    @property
    def step(self) -> int:
        """Number of completed updates."""
        return self.updater.step

    @property
    def eval_model(self) -> nn.Module:
        """The model of `metrics`: the averaged one if there is an EMA."""
        return self.updater.ema.model if self.updater.ema is not None else self.updater.model

    @property
    def has_stopped_early(self) -> bool:
        """Whether early stopping ended training."""
        return (
            self.early_stopping_patience is not None and self.evals_without_improvement >= self.early_stopping_patience
        )

    @property
    def is_finished(self) -> bool:
        """Whether training has ended and its last step is evaluated."""
        return self.last_eval_step == self.step and (self.step >= self.total_steps or self.has_stopped_early)

    def fit(self) -> dict[str, Any]:
        """Train to the end and return the metrics of the last evaluation.

        Raises:
            NonFiniteError: if the loss or its gradient is not finite.
            WorkerError: if a worker process of a loader dies.
            PreemptedError: if any process received a signal to stop. The state is saved first.
        """
        while not self.is_finished:
            self._train_epoch()
            if self.batch == self.epoch_steps:  # not if `max_steps` ends the run within an epoch
                self.epoch, self.batch = self.epoch + 1, 0
            if self.step >= self.total_steps or self.epoch % self.intervals.eval_every_epochs == 0:
                self._evaluate()
            self._save(LAST)
            if self.is_finished:
                self._draw()
        return self.metrics

    def _train_epoch(self) -> None:
        self.loader.batch_sampler.set_position(self.epoch, self.batch)
        self.progress.start_epoch(self.epoch + 1, self.epochs, self.epoch_steps, self.batch)
        batches = read_batches(self.loader)
        try:
            while self.batch < self.epoch_steps and self.step < self.total_steps:
                self.train_step(batches)
        finally:
            batches.close()
            self.progress.end_epoch()
        # saved before the evaluation, which can fail even if training did not
        self._save(LAST)

    def train_step(self, batches: Iterator[Batch]) -> None:
        """Update the model with the micro-batches of one step; log, draw and save at their intervals.

        Raises:
            NonFiniteError, WorkerError, PreemptedError: see `fit`.
        """
        asked = time.perf_counter()
        parts, error = self._next_parts(batches)
        got = time.perf_counter()
        intervals = self.intervals
        is_shown = self._is_due(self.step + 1, intervals.log_every_steps) or self._is_due(
            self.step + 1, intervals.images_every_steps
        )
        try:
            with self.health.capture(is_shown) as seen:
                record = self.updater(parts, error=error, is_signalled=lambda: self.stop.received is not None)
        except PreemptedError:  # in all processes, before the step
            self._save(LAST)
            self._end_preempted()
        self.batch += 1
        images = len(parts[0].images) / parts[0].weight if parts[0].weight else 0.0
        if record.unreadable:
            self._log_unreadable([message for part in parts for message in part.unreadable])
        self._record(record, seen, data_s=got - asked, step_s=time.perf_counter() - asked, images=images)
        if record.signalled:
            self._save(LAST)
            self._end_preempted()
        if self.step % self.intervals.checkpoint_every_steps == 0:
            self._save(LAST)
        if self.step % self.intervals.images_every_steps == 0:
            self._draw()

    def _next_parts(self, batches: Iterator[Batch]) -> tuple[list[Batch], Exception | None]:
        """Return the micro-batches of a step and None, or on an error a dummy batch and the error.

        With the dummy batch this process takes part in the collective calls of the step. All processes fail after it.
        A signal to stop ends the wait for a batch, which may never come.
        """
        try:
            with self.stop.waiting():
                parts = [next(batches)]
                while not parts[-1].ends_step:
                    parts.append(next(batches))
        except (ImageError, WorkerError, PreemptedError) as error:
            return [self.loader.dataset.dummy_batch()], error
        return parts, None

    def _is_due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self.total_steps

    def _record(
        self, record: StepRecord, seen: Mapping[str, SamplingRecord], *, data_s: float, step_s: float, images: float
    ) -> None:
        numbers = record.numbers | {"data_s": data_s, "compute_s": step_s - data_s, "step_s": step_s}
        self._running_mean.add(numbers | {"images": images})
        self._losses_since_eval.add({"loss": record.numbers["loss"]})
        mean = self._running_mean.mean()
        display = {
            "step": self.step,
            "lr": max(record.lrs.values()),
            "images_per_s": mean["images"] / mean["step_s"],
            "eta_s": (self.total_steps - self.step) * mean["step_s"],
            "peak_gib": peak_memory_gib(self.updater.device),
            "skipped": self.unreadable.total(),
        }
        self.progress.step(mean | numbers | display)
        if self._is_due(self.step, self.intervals.log_every_steps):
            self.progress.line(mean | display, self.epoch + 1, self.epochs)
            scalars, warnings = _tagged(mean | display, record.lrs), []
            with only_shown("statistics of the deformable layers"):
                health = self.health.report(self.step, seen)
                scalars, warnings = scalars | health.scalars, health.warnings
            self.metrics_logger.log_scalars(self.step, scalars)
            self.callback("step", self.step, scalars)
            for warning in warnings:
                log.warning("%s", warning)
            self._running_mean.clear()
        if self._is_due(self.step, self.intervals.images_every_steps):
            with only_shown("histograms of the deformable layers"):
                for tag, values in self.health.histograms(seen).items():
                    self.metrics_logger.log_histogram(self.step, tag, values)

    def _log_unreadable(self, unreadable: list[str]) -> None:
        """Count and log the images that any process could not read."""
        for messages in self.distributed.gather(unreadable):
            for message in messages:
                self.unreadable[message] += 1
                if self.unreadable[message] == 1:
                    log.warning("skipped in every epoch: %s", message)

    def _evaluate(self) -> None:
        """Evaluate the weights that were just saved; with an EMA both the averaged and the raw weights."""
        models = {"val": self.eval_model}
        if self.updater.ema is not None:
            models["val_no_ema"] = self.updater.model
        start = time.perf_counter()
        metrics, losses = {}, {}
        for name, model in models.items():
            found = self.evaluate(model)
            if found is None:
                self._end_preempted()  # the state is saved
            losses[name] = found.get("losses", {})
            metrics[name] = {key: value for key, value in found.items() if key != "losses"}
        took_s = time.perf_counter() - start

        self.metrics, self.last_eval_step = metrics["val"], self.step
        scalars = {"time/eval_s": took_s}
        for name, found in metrics.items():
            scalars |= {f"{name}/{key}": value for key, value in (scalar_metrics(found) | losses[name]).items()}
        for kind in ("", MASK_PREFIX):
            by_class = self.metrics.get(f"{kind}per_class", {})
            scalars |= {f"val_{kind}per_class/{name}": ap for name, ap in by_class.items()}
        self.metrics_logger.log_scalars(self.step, scalars)
        self.callback("eval", self.step, scalars)
        shown = describe_metrics(self.metrics)
        if "val_no_ema" in metrics:
            shown += f" with the averaged weights, AP {percent(metrics['val_no_ema']['AP'])} with the raw weights"
        note = None
        train_loss = self._losses_since_eval.mean().get("loss")
        if "loss" in losses["val"] and train_loss is not None:
            val_loss = losses["val"]["loss"]
            shown += f", validation loss {val_loss:.3f} (training {train_loss:.3f})"
            self._loss_trend = self._loss_trend.after(train_loss, val_loss)
            note = self._loss_trend.note
        self._losses_since_eval.clear()
        epoch = self.epoch + bool(self.batch)
        log.info("epoch %d/%d step %d: %s (evaluated in %.1f s)", epoch, self.epochs, self.step, shown, took_s)
        if note:
            log.warning("%s", note)

        self.evals_without_improvement += 1
        if not self.metrics["AP"] <= self.best_ap:  # also without ground truth, where AP is NaN
            self.best_ap, self.evals_without_improvement = self.metrics["AP"], 0
            self._save(BEST)
        if self.has_stopped_early and self.step < self.total_steps:
            log.info("early stopping: AP has not improved in %d evaluations", self.evals_without_improvement)

    def _draw(self) -> None:
        def log_images() -> None:
            with only_shown("figures of the validation images"):
                for tag, image in self.draw(self.eval_model).items():
                    self.metrics_logger.log_image(self.step, tag, image)

        self.distributed.run_on_main_and_broadcast(log_images)

    def _end_preempted(self) -> None:
        signals = [name for name in self.distributed.gather(self.stop.received) if name]
        raise PreemptedError(f"asked to stop by {signals[0]}")

    def _save(self, name: str) -> None:
        """Average the running statistics of batch norms over the processes, then save the state."""
        self.distributed.average_statistics(self.updater.model)
        if self.updater.ema is not None:
            self.distributed.average_statistics(self.updater.ema.model)
        self.distributed.run_on_main_and_broadcast(lambda: self.save(self.state_dict(), name))

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs, as tensors and plain values."""
        return self.updater.state_dict() | {
            "epoch": self.epoch,
            "batch": self.batch,
            "metrics": self.metrics,
            "last_eval_step": self.last_eval_step,
            "best_ap": self.best_ap,
            "evals_without_improvement": self.evals_without_improvement,
            "unreadable": dict(self.unreadable),
            "running_mean": self._running_mean.state_dict(),
            "losses_since_eval": self._losses_since_eval.state_dict(),
            "loss_trend": self._loss_trend._asdict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the `state_dict()` of an earlier process. Learning rates and options stay as this trainer was built."""
        self.updater.load_state_dict(state)
        self.epoch, self.batch = state["epoch"], min(state["batch"], self.epoch_steps)  # fewer images than then
        self.metrics, self.last_eval_step = state["metrics"], state["last_eval_step"]
        self.best_ap, self.evals_without_improvement = state["best_ap"], state["evals_without_improvement"]
        self.unreadable = Counter(state["unreadable"])
        self._running_mean.load_state_dict(state["running_mean"])
        if {"losses_since_eval", "loss_trend"} <= state.keys():  # not in checkpoints of earlier versions
            self._losses_since_eval.load_state_dict(state["losses_since_eval"])
            self._loss_trend = LossTrend(**state["loss_trend"])


def _tagged(record: dict[str, float], lrs: dict[str, float]) -> dict[str, float]:
    """Return the scalars of a record by tag."""
    times = ("step_s", "data_s", "compute_s", "images_per_s")
    return (
        {f"train/{name}": value for name, value in record.items() if name.startswith("loss") or name == "grad_norm"}
        | {f"lr/{name}": lr for name, lr in lrs.items()}
        | {f"time/{name}": record[name] for name in times}
        | {"memory/peak_gib": record["peak_gib"]}
    )
