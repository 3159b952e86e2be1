"""Train a detector from a YAML config."""

import argparse
from pathlib import Path
from typing import Any

import _clone

# isort: split
import torch
from torch import Tensor, nn

from data import CocoAnnotations
from engine.board import METRICS_FILE, Board
from engine.build import (
    build_eval_loader,
    build_model,
    build_optimization,
    build_train_loader,
    check_dcn_backend,
    read_split,
)
from engine.checkpoint import (
    check_categories,
    check_same_model,
    check_same_optimizer,
    load_checkpoint,
    save_checkpoint,
)
from engine.config import RunConfig
from engine.config_file import dump_config, flatten, load_config
from engine.drawing import draw_detections
from engine.environment import describe, git_revision, pick_device
from engine.evaluator import COCO_FIGURES, evaluate
from engine.optimizer import check_optimizer, scaled_lr, summarize_groups
from engine.preemption import PreemptedError, StopRequest
from engine.progress import Progress, log, start_logging
from engine.runs import BEST, CONFIG_FILE, LAST, LOG_FILE, choose_run, own_run
from engine.tables import format_table, percent
from engine.trainer import Cadence, Trainer
from models import ReplacedConvs, replaced_convs
from models.weights import LoadReport

EPILOG = """examples:
  python tools/train.py --config demo_dcn.yaml
  python tools/train.py --config r50_dcn.yaml train.batch_size=4 model.backbone.dcn_v2_stages=[3,4]
  python tools/train.py --config r50_dcn.yaml --run-dir runs/mine --resume auto
A bare config name is looked up in configs/. Every key is explained in engine/config.py.
SIGTERM or SIGUSR1 stops after the step under way, with a checkpoint and exit code 3; --resume auto goes on."""
PICTURES = 4
PREEMPTED = 3


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="YAML file, or the name of one in configs/")
    parser.add_argument("--run-dir", type=Path, help="folder of the run (default: runs/<config name>)")
    parser.add_argument(
        "--resume",
        metavar="auto|FILE",
        help="go on: auto from the run folder's last.pt if there is one, or from a checkpoint",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config values, as in train.epochs=1")
    return parser.parse_intermixed_args()


def main() -> None:
    """Check everything, build everything, train, and say where it lies."""
    args = parse_arguments()
    config = load_config(args.config, args.overrides)
    check_optimizer(config.train.optimizer)  # now, before there is a run folder
    device = pick_device(config.device)
    check_dcn_backend(config.model, device)
    folder, checkpoint = choose_run(args.run_dir, args.resume, Path("runs") / Path(args.config).stem)
    progress = Progress()
    train_split, val_split = (
        read_split(config.data, split, lambda items, split=split: progress.track(items, f"check {split} images"))
        for split in ("train", "val")
    )
    check_same_categories(train_split, val_split)
    about = {
        "config": config.model_dump(mode="json"),
        "class_names": train_split.class_names,
        "category_ids": train_split.category_ids,
        "revision": git_revision(),
    }
    state = load_checkpoint(checkpoint) if checkpoint else None
    if state is not None:
        check_categories(state, train_split.class_names, train_split.category_ids, checkpoint, train_split.path)
        check_same_model(state, about["config"], checkpoint)
        check_same_optimizer(state, about["config"], checkpoint)
    torch.manual_seed(config.seed)
    model, weights = build_model(config.model, config.data, len(train_split.class_names), pretrained=state is None)

    about["parameters"] = sum(parameter.numel() for parameter in model.parameters())

    stop = StopRequest()
    with own_run(folder), stop.listen():
        start_logging(folder / LOG_FILE)
        (folder / CONFIG_FILE).write_text(dump_config(config), encoding="utf-8")
        board = Board(folder, state["step"] if state else 0)
        trainer = build_trainer(
            config,
            model.to(device),
            train_split,
            val_split,
            device=device,
            save=lambda state, name: save_checkpoint(folder / name, about | state),
            board=board,
            progress=progress,
            stop=stop,
        )
        if state is not None:
            trainer.load_state_dict(state)
            log.info("going on from %s, step %d of %d", checkpoint, trainer.step, trainer.total_steps)
            for change in changed_options(state["config"], about["config"]):
                log.warning("changed since then: %s", change)
        if not trainer.is_finished:
            show_start(config, weights, trainer, train_split, val_split)
            board.text("config", dump_config(config))
            try:
                figures = trainer.fit()
            except PreemptedError as reason:
                board.close()
                log.warning("%s at step %d; go on by --resume auto --run-dir %s", reason, trainer.step, folder)
                raise SystemExit(PREEMPTED) from None
            options = {key: value for key, value in flatten(about["config"]) if not key.startswith("data.")}
            board.outcome(options, {name: figures[name] for name in COCO_FIGURES})
        board.close()
        show_end(trainer, folder)


def build_trainer(
    config: RunConfig,
    model: nn.Module,
    train_split: CocoAnnotations,
    val_split: CocoAnnotations,
    *,
    device: torch.device,
    **outputs: Any,
) -> Trainer:
    """Put loaders, optimizer, schedule and evaluation around a model.

    `outputs` are the trainer's `save`, `board`, `progress` and `stop`.
    """
    settings, pin = config.train, device.type == "cuda"
    loader = build_train_loader(config, train_split, pin_memory=pin)
    eval_loader = build_eval_loader(config, val_split, pin_memory=pin)
    optimizer, schedule = build_optimization(settings, model, steps_per_epoch=len(loader))

    def judge() -> dict[str, Any]:
        # what was learned is saved before an evaluation, so that it may be given up
        batches = outputs["stop"].guard(outputs["progress"].track(eval_loader, "evaluate"))
        return evaluate(model, batches, val_split.category_ids, val_split.raw, device=device, amp=settings.amp)

    def draw() -> Tensor:
        shown = range(min(PICTURES, len(eval_loader.dataset)))
        return draw_detections(model, eval_loader.dataset, shown, val_split.class_names, device=device)

    return Trainer(
        model,
        optimizer,
        schedule,
        loader,
        device=device,
        epochs=settings.epochs,
        max_steps=settings.max_steps,
        amp=settings.amp,
        clip_norm=settings.clip_norm,
        cadence=Cadence(settings.log_every, settings.checkpoint_every, settings.eval_every, settings.picture_every),
        evaluate=judge,
        draw=draw,
        **outputs,
    )


def changed_options(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """List the options of a run that are not those of its checkpoint."""
    before, after = dict(flatten(old)), dict(flatten(new))
    return [f"{key}: {before.get(key)!r} -> {value!r}" for key, value in after.items() if before.get(key) != value]


def check_same_categories(train: CocoAnnotations, val: CocoAnnotations) -> None:
    """Raise `ValueError` unless both splits have the same categories."""
    a, b = (list(zip(split.category_ids, split.class_names, strict=True)) for split in (train, val))
    if a != b:
        only = sorted(set(a) ^ set(b))[:3]
        raise ValueError(f"{train.path} has {len(a)} categories and {val.path} has {len(b)}; they differ in {only}")


def show_start(
    config: RunConfig, weights: LoadReport | None, trainer: Trainer, train: CocoAnnotations, val: CocoAnnotations
) -> None:
    """Log the device, what was replaced, what learns how fast, and what there is to learn from."""
    log.info("device: %s", describe(trainer.device))
    show_model(config, weights, replaced_convs(trainer.model))
    header = ("parameter group", "tensors", "parameters", "learning rate")
    rows = [(*group[:3], f"{group.lr:.3g}") for group in summarize_groups(trainer.optimizer)]
    log.info("%s:\n%s", config.train.optimizer, format_table(header, rows))
    lr, batch, reference = config.train.lr, config.train.batch_size, config.train.reference_batch
    log.info(
        "batch %d: learning rate %g (%g is meant for a batch of %s)",
        batch,
        scaled_lr(lr, batch, reference),
        lr,
        reference or "any size",
    )
    rows = []
    for name, split, used in (("train", train, len(trainer.loader.dataset)), ("val", val, len(val.images))):
        crowd = sum(bool(annotation["iscrowd"]) for annotation in split.raw["annotations"])
        rows.append((name, len(split.images), used, sum(map(len, split.boxes.values())), crowd, len(split.class_names)))
    log.info("data:\n%s", format_table(("split", "images", "used", "boxes", "crowd regions", "classes"), rows))
    if train.fixed_boxes:
        log.warning(
            "%d invalid training boxes were met (data.invalid_boxes: %s)", train.fixed_boxes, config.data.invalid_boxes
        )
    log.info("%d steps, an epoch is %d", trainer.total_steps, len(trainer.loader))


def show_model(config: RunConfig, weights: LoadReport | None, convs: list[ReplacedConvs]) -> None:
    """Log which convolutions are deformable, and what the backbone starts from."""
    backbone = config.model.backbone
    if convs:
        header = ("layer", "level", "stride", "convs replaced", "parameters added")
        total = ("total", "", "", sum(row.count for row in convs), sum(row.parameters_added for row in convs))
        log.info(
            "%s in %s:\n%s",
            "DCNv2" if backbone.modulation else "DCNv1",
            backbone.name,
            format_table(header, [*convs, total]),
        )
    else:
        log.info("%s without deformable convolutions (model.backbone.dcn_v2_stages is empty)", backbone.name)
    if weights is not None:
        log.info(
            "%s: %d tensors loaded, %d new, %d dropped",
            backbone.weights,
            weights.loaded,
            len(weights.new),
            len(weights.dropped),
        )
    elif backbone.norm == "frozen_bn" and not backbone.weights:
        log.warning(
            "backbone.norm is frozen_bn without pretrained weights, so nothing is normalised; from scratch use gn or bn"
        )


def show_end(trainer: Trainer, folder: Path) -> None:
    """Log the result and where everything lies."""
    log.info(
        "done: AP %s, AP50 %s, AP75 %s after %d steps (best AP %s)",
        *(percent(trainer.figures[name]) for name in ("AP", "AP50", "AP75")),
        trainer.step,
        percent(trainer.best_ap),
    )
    best = folder / BEST
    rows = [
        ("last weights and state", folder / LAST),
        ("weights of the best AP", best if best.exists() else "where the run came from"),
        ("resolved config", folder / CONFIG_FILE),
        ("every figure by step", folder / METRICS_FILE),
        ("curves and pictures", f"tensorboard --logdir {folder.parent}"),
        ("AP of each class", f"python tools/eval.py --config {folder / CONFIG_FILE} --checkpoint {folder / LAST}"),
    ]
    log.info("%s", format_table(("what", "where"), [(what, str(where)) for what, where in rows]))


if __name__ == "__main__":
    _clone.run(main)
