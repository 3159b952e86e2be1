"""Train from a config: everything is checked and built before anything is written."""

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from data import CocoAnnotations, WorkerError
from data.files import write_text
from data.paths import expanded
from models.checkpoint_form import RESUMED
from models.weights import LoadReport

from ..config import (
    RunConfig,
    check_config,
    describe_unused,
    dump_config,
    flatten,
    load_config,
    unused_options,
    with_current_names,
)
from ..devices import git_revision, pick_device, set_tf32
from ..display import Progress, log, only_shown, start_logging
from ..distributed import DistributedContext, PreemptedError, StopRequest, read_distributed_context
from ..evaluation import coco_eval_class, scalar_metrics
from ..runs import CONFIG_FILE, LOG_FILE, Checkpoints, choose_run, load_newest, lock_run
from ..training import Callback, MetricsLogger, NullLogger, Trainer, check_optimizer, check_schedule, load_callback
from ..weights import (
    Transfer,
    check_categories,
    check_initial_weights,
    check_same_model,
    check_same_optimizer,
    check_same_step,
    check_same_tensors,
    read_source,
)
from .augmented import draw_augmented
from .batch_size import AUTO, choose_batch_size, with_batch_size
from .channels import describe_channels, statistics_of, with_statistics
from .data import read_splits, write_checked_images
from .model import build_initialized_model, check_dcn_backend, check_norm
from .pipeline import load_pipeline
from .report import show_end, show_resumption, show_start
from .schedule_effects import options_beyond_run, schedule_warnings
from .training import build_trainer, images_in_step


class RunResult(NamedTuple):
    """Result of a training.

    Attributes:
        folder: run folder with checkpoints, log and metrics.
        metrics: metrics of the last evaluation as fractions, see `coco_metrics`.
    """

    folder: Path
    metrics: dict[str, Any]


class _Plan(NamedTuple):
    """A run that was checked and built, before anything is written."""

    config: RunConfig
    folder: Path
    splits: dict[str, CocoAnnotations]
    weights: LoadReport | Transfer | None
    about: dict[str, Any]
    checkpoint: Path | None
    state: dict[str, Any] | None
    broken: list[str]
    trainer: Trainer
    unused: dict[str, str]
    measured_images: int
    batch_note: str | None


def train(
    config: str | os.PathLike | Mapping[str, Any] | RunConfig,
    overrides: Sequence[str] = (),
    *,
    run_dir: str | os.PathLike | None = None,
    resume: str | os.PathLike | None = None,
) -> RunResult:
    """Train as tools/train.py does: check and build everything, train, and log the result and its files.

    Args:
        config: a YAML file, the bare name of one in `configs/`, the same options as a mapping, or a `RunConfig`.
        overrides: `dotted.key=value`, as on the command line.
        run_dir: run folder; None: `runs/<name of the config's file>`, or the folder of the checkpoint to resume from.
        resume: "auto" to continue from the newest intact checkpoint of the folder, if there is one, or a checkpoint
            file; None for a new run.

    Returns:
        The folder and the last metrics, the same in every process.

    Raises:
        ValueError: if the config, the data, the folder or a checkpoint cannot be used; nothing has been written then.
        PreemptedError: if SIGTERM, SIGUSR1 or SIGHUP asked the run to stop. Its state is saved, and `resume="auto"`
            continues.
        NonFiniteError: if the loss or its gradient is not finite.
    """
    distributed = read_distributed_context()
    with distributed.process_group():
        folder, checkpoint = run_dir and expanded(run_dir), resume and os.fspath(expanded(resume))
        plan = _prepare(config, overrides, folder, checkpoint, distributed)
        with ExitStack() as stack:
            distributed.run_on_main_and_broadcast(lambda: stack.enter_context(lock_run(plan.folder)))
            stack.enter_context(plan.trainer.stop.listen())
            _execute(plan)
    return RunResult(plan.folder, plan.trainer.metrics)


def _prepare(
    source: str | os.PathLike | Mapping[str, Any] | RunConfig,
    overrides: Sequence[str],
    run_dir: Path | None,
    resume: str | None,
    distributed: DistributedContext,
) -> _Plan:
    """Do everything that can raise a user's error, the quick checks first.

    Processes communicate between the contexts of `raise_together`, not within them: there one may have failed.
    """
    progress = Progress(silent=not distributed.is_main)
    with distributed.raise_together():
        config = load_config(source, overrides)
        check_optimizer(config.train.optimizer)
        check_schedule(config.train.lr_schedule)
        device = pick_device(config.device, distributed)
        check_norm(config.model.backbone.norm, device, distributed)
        check_initial_weights(config.model)
        check_dcn_backend(config.model, device)
        coco_eval_class(config.eval.backend)
        load_pipeline(config.data)
        wants_records = distributed.is_main and config.train.callback
        callback = Callback(load_callback(config.train.callback) if wants_records else None)
        set_tf32(config.train.tf32)
    default = Path("runs") / Path(source).stem if isinstance(source, str | os.PathLike) else None
    folder, candidates = distributed.run_on_main_and_broadcast(lambda: choose_run(run_dir, resume, default))
    with distributed.raise_together():
        start = read_source(config.model.weights) if config.model.weights and not candidates else None
        splits = read_splits(config, progress, folder, check_images=distributed.local_rank == 0)
    checkpoint, state, broken = distributed.run_on_main_and_broadcast(
        lambda: load_newest(candidates, RESUMED) if candidates else (None, None, [])
    )
    saved = {} if state is None else state["config"].get("data", {})
    statistics = distributed.run_on_main_and_broadcast(
        lambda: statistics_of(config.data, splits["train"], saved, progress)
    )
    with distributed.raise_together():
        config = with_statistics(config, statistics)
    batch_note = None
    if config.train.batch_size == AUTO:
        size, batch_note = choose_batch_size(config, splits["train"], state, device=device, distributed=distributed)
        config = with_batch_size(config, size)
    with distributed.raise_together():
        names, ids = splits["train"].class_names, splits["train"].category_ids
        about = {
            "config": config.model_dump(mode="json"),
            "images_in_step": images_in_step(config.train, distributed.size),
            "annotations": {name: split.sha256 for name, split in splits.items()},
            "class_names": names,
            "category_ids": ids,
            "revision": git_revision(),
        }
        if state is not None:
            saved = with_current_names(state["config"], str(checkpoint), is_written=True)
            state["config"] = check_config(saved, str(checkpoint)).model_dump(mode="json")
            check_categories(state, names, ids, checkpoint, splits["train"].path)
            check_same_model(state, about["config"], checkpoint)
            check_same_optimizer(state, about["config"], checkpoint)
            check_same_step(state, about["images_in_step"], checkpoint)
        torch.manual_seed(config.seed)
        model, weights = build_initialized_model(config, names, start, pretrained=state is None)
        if state is not None:
            check_same_tensors(state, model.state_dict(), checkpoint)
        about["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    with distributed.raise_together():  # an error of the config is the same in all processes
        newest = (checkpoint, state["step"]) if state else None
        trainer = build_trainer(
            config,
            model.to(device),
            *splits.values(),
            device=device,
            distributed=distributed,
            save=Checkpoints(folder, about, keep=config.train.keep_last, newest=newest).save,
            metrics_logger=NullLogger(),
            progress=progress,
            callback=callback,
            stop=StopRequest(),
        )
        if state is not None:
            trainer.load_state_dict(state)
    unused = unused_options(config, overrides)
    return _Plan(
        config,
        folder,
        splits,
        weights,
        about,
        checkpoint,
        state,
        broken,
        trainer,
        unused,
        statistics.images if statistics else 0,
        batch_note,
    )


def _execute(plan: _Plan) -> None:
    """Train as planned, in the run folder."""
    config, folder, trainer = plan.config, plan.folder, plan.trainer
    trainer.distributed.run_on_main_and_broadcast(lambda: _open_outputs(plan))
    if plan.state is not None:
        show_resumption(trainer, plan.checkpoint, plan.state, plan.about, passed_over=plan.broken)
    if not trainer.is_finished:
        show_start(config, plan.weights, trainer, *plan.splits.values())
        if channels := describe_channels(config, plan.measured_images):
            log.info("%s", channels)
        if plan.batch_note:
            log.info("%s", plan.batch_note)
        length = {"steps": trainer.total_steps, "epoch_steps": trainer.epoch_steps}
        unused = options_beyond_run(config, **length) | plan.unused
        if unused:
            log.warning("%s", describe_unused(unused))
        images, processes = trainer.loader.batch_sampler.images, trainer.distributed.size
        for message in schedule_warnings(config, **length, images=images, processes=processes):
            log.warning("%s", message)
        trainer.metrics_logger.log_text("config", dump_config(config))
        trainer.distributed.run_on_main_and_broadcast(lambda: _log_augmented(plan))
        trainer.callback("start", trainer.step, {"run_dir": str(folder), "config": config.model_dump(mode="json")})
        metrics = None
        try:
            metrics = trainer.fit()
        except PreemptedError as reason:
            trainer.metrics_logger.close()
            log.warning("%s at step %d; continue with --resume auto --run-dir %s", reason, trainer.step, folder)
            raise
        except (FloatingPointError, ValueError, OSError, WorkerError) as reason:
            with suppress(OSError):  # the log may be on the full disk; the terminal shows the error
                log.error("%s", reason, extra={"file_only": True})
            raise
        finally:
            final = {f"val/{name}": value for name, value in scalar_metrics(trainer.metrics or {}).items()}
            trainer.callback("end", trainer.step, {"finished": metrics is not None, **final})
        options = {key: value for key, value in flatten(plan.about["config"]) if not key.startswith("data.")}
        trainer.metrics_logger.log_hparams(options, scalar_metrics(metrics))
    else:
        log.warning(
            "nothing to train: the run ended at step %d of %d. A higher train.epochs, train.max_steps or "
            "train.early_stopping_patience continues it",
            trainer.step,
            trainer.total_steps,
        )
    trainer.metrics_logger.close()
    show_end(trainer, folder)


def _log_augmented(plan: _Plan) -> None:
    """Log training images with their augmentation."""
    with only_shown("the augmented images of TensorBoard"):
        figure = draw_augmented(plan.config, plan.splits["train"], images=3, draws=3, side=240)
        if figure is not None:
            plan.trainer.metrics_logger.log_image(plan.trainer.step, "train/augmented", figure)


def _open_outputs(plan: _Plan) -> None:
    """Open the log and the metrics, and write the config."""
    start_logging(plan.folder / LOG_FILE)
    write_text(plan.folder / CONFIG_FILE, dump_config(plan.config))
    write_checked_images(plan.folder, plan.splits.values())
    plan.trainer.metrics_logger = MetricsLogger(plan.folder, plan.trainer.step)
