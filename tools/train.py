"""Train a detector from a YAML config."""

import argparse
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

import _clone

# isort: split
import torch

from data import CocoAnnotations, WorkerError
from engine.training import Board, NoBoard
from engine.building import build_trainer, check_dcn_backend, images_in_step, needs_masks, read_split
from engine.runs import Checkpoints, load_newest
from engine.weights import check_categories, check_same_model, check_same_optimizer, check_same_step
from engine.config import RunConfig
from engine.config import dump_config, flatten, load_config
from engine.distributed import World, read_world
from engine.devices import git_revision, pick_device
from engine.evaluation import number_figures
from engine.training import check_optimizer, check_schedule
from engine.devices import set_tf32
from engine.distributed import PreemptedError, StopRequest
from engine.display import Progress, log, start_logging
from engine.building import show_end, show_start
from engine.runs import CONFIG_FILE, LOG_FILE, choose_run, own_run
from engine.training import Trainer
from engine.weights import Transfer, check_start, read_source
from engine.building import build_started
from engine.config import describe_unused, unused_options
from models.weights import LoadReport

EPILOG = """examples:
  python tools/train.py --config demo_dcn.yaml
  python tools/train.py --config r50_dcn.yaml train.batch_size=4 model.backbone.dcn_v2_stages=[3,4]
  python tools/train.py --config r50_dcn.yaml --run-dir runs/mine --resume auto
  torchrun --nproc-per-node=8 tools/train.py --config r50_dcn.yaml train.batch_size=2
A bare config name is looked up in configs/. Every key is explained in docs/config.md.
SIGTERM or SIGUSR1 stops after the step under way, with a checkpoint and exit code 3; --resume auto goes on."""
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
        help="go on: auto from the newest whole checkpoint in the run folder, if there is one, or from a checkpoint",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config values, as in train.epochs=1")
    return parser.parse_intermixed_args()


class Plan(NamedTuple):
    """A run of which everything has been checked and built, while nothing has been written."""

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


def main() -> None:
    """Check everything, build everything, train, and say where it lies."""
    args = parse_arguments()
    world = read_world()
    with world.joined():
        plan = prepare(args, world)
        with ExitStack() as stack:
            world.from_main(lambda: stack.enter_context(own_run(plan.folder)))
            stack.enter_context(plan.trainer.stop.listen())
            train(plan)


def prepare(args: argparse.Namespace, world: World) -> Plan:
    """Do all that can show a mistake, the quick first.

    Processes talk to each other between the contexts of `together` and not within, where one of them may have failed.
    """
    progress = Progress(silent=not world.is_main)
    with world.together():
        config = load_config(args.config, args.overrides)
        check_optimizer(config.train.optimizer)
        check_schedule(config.train.schedule)
        device = pick_device(config.device, world)
        check_norm(config.model.backbone.norm, device, world)
        check_start(config.model)
        check_dcn_backend(config.model, device)
        set_tf32(config.train.tf32)
    folder, candidates = world.from_main(
        lambda: choose_run(args.run_dir, args.resume, Path("runs") / Path(args.config).stem)
    )
    with world.together():
        source = read_source(config.model.weights) if config.model.weights and not candidates else None
        splits = read_splits(config, progress, check_images=world.local_rank == 0)
    checkpoint, state, broken = world.from_main(lambda: load_newest(candidates) if candidates else (None, None, []))
    with world.together():
        names, ids = splits["train"].class_names, splits["train"].category_ids
        about = {
            "config": config.model_dump(mode="json"),
            "images_in_step": images_in_step(config.train, world.size),
            "annotations": {name: split.sha256 for name, split in splits.items()},
            "class_names": names,
            "category_ids": ids,
            "revision": git_revision(),
        }
        if state is not None:
            check_categories(state, names, ids, checkpoint, splits["train"].path)
            check_same_model(state, about["config"], checkpoint)
            check_same_optimizer(state, about["config"], checkpoint)
            check_same_step(state, about["images_in_step"], checkpoint)
        torch.manual_seed(config.seed)
        model, weights = build_started(config, names, source, pretrained=state is None)
        about["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    with world.together():  # whose mistakes, of the config, all processes make alike
        newest = (checkpoint, state["step"]) if state else None
        trainer = build_trainer(
            config,
            model.to(device),
            *splits.values(),
            device=device,
            world=world,
            save=Checkpoints(folder, about, keep=config.train.keep_last, newest=newest).save,
            board=NoBoard(),
            progress=progress,
            stop=StopRequest(),
        )
        if state is not None:
            trainer.load_state_dict(state)
    unused = unused_options(config, args.overrides)
    return Plan(config, folder, splits, weights, about, checkpoint, state, broken, trainer, unused)


def read_splits(config: RunConfig, progress: Progress, *, check_images: bool) -> dict[str, CocoAnnotations]:
    """Read and check both splits."""
    splits = {
        name: read_split(
            config.data,
            name,
            lambda items, name=name: progress.track(items, f"check {name} images"),
            masks=needs_masks(config.model),
            check_images=check_images,
        )
        for name in ("train", "val")
    }
    check_same_categories(*splits.values())
    return splits


def train(plan: Plan) -> None:
    """Train by a plan, in the run folder."""
    config, folder, trainer = plan.config, plan.folder, plan.trainer
    trainer.world.from_main(lambda: open_outputs(plan))
    if plan.state is not None:
        show_resumption(plan)
    if not trainer.is_finished:
        show_start(config, plan.weights, trainer, *plan.splits.values())
        if plan.unused:
            log.warning("%s", describe_unused(plan.unused))
        trainer.board.text("config", dump_config(config))
        try:
            figures = trainer.fit()
        except PreemptedError as reason:
            trainer.board.close()
            log.warning("%s at step %d; go on by --resume auto --run-dir %s", reason, trainer.step, folder)
            raise SystemExit(PREEMPTED) from None
        except (FloatingPointError, ValueError, OSError, WorkerError) as reason:
            with suppress(OSError):  # the log may be on the disk that is full; the terminal is told by `_clone.run`
                log.error("%s", reason, extra={"file_only": True})
            raise
        options = {key: value for key, value in flatten(plan.about["config"]) if not key.startswith("data.")}
        trainer.board.outcome(options, number_figures(figures))
    trainer.board.close()
    show_end(trainer, folder)


def open_outputs(plan: Plan) -> None:
    """Open what is written as the run goes on, and write down its config."""
    start_logging(plan.folder / LOG_FILE)
    (plan.folder / CONFIG_FILE).write_text(dump_config(plan.config), encoding="utf-8")
    plan.trainer.board = Board(plan.folder, plan.trainer.step)


def show_resumption(plan: Plan) -> None:
    """Log where a run goes on, what was passed over for it, and what is not as it was."""
    for message in plan.broken:
        log.warning("passed over: %s", message)
    log.info("going on from %s, step %d of %d", plan.checkpoint, plan.trainer.step, plan.trainer.total_steps)
    old, new = plan.state["config"], plan.about["config"]
    before, after = dict(flatten(old)), dict(flatten(new))
    for key, value in after.items():
        if before.get(key) != value:
            log.warning("changed since then: %s: %r -> %r", key, before.get(key), value)
    for split, digest in plan.about["annotations"].items():
        if plan.state["annotations"][split] != digest:
            log.warning("changed since then: the contents of data.%s.annotations", split)


def check_norm(norm: str, device: torch.device, world: World) -> None:
    """Raise `ValueError` where PyTorch's synchronised batch norm cannot run."""
    if norm == "sync_bn" and world.size > 1 and device.type == "cpu":
        raise ValueError(
            "model.backbone.norm sync_bn over several processes needs GPUs; on CPUs use gn, bn or frozen_bn"
        )


def check_same_categories(train: CocoAnnotations, val: CocoAnnotations) -> None:
    """Raise `ValueError` unless both splits have the same categories."""
    a, b = (list(zip(split.category_ids, split.class_names, strict=True)) for split in (train, val))
    if a != b:
        only = sorted(set(a) ^ set(b))[:3]
        raise ValueError(f"{train.path} has {len(a)} categories and {val.path} has {len(b)}; they differ in {only}")


if __name__ == "__main__":
    _clone.run(main)
