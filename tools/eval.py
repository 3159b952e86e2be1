"""Evaluate a trained detector, or a COCO results file, with COCO metrics."""

import argparse
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import _clone

# isort: split
from _arguments import (
    TILE_OPTIONS,
    add_batch_size,
    add_device,
    add_json,
    add_overrides,
    add_tiles,
    add_weights,
    at_least,
    config_values,
    current_spellings,
    is_read,
    make_parser,
    refuse_unused,
    split_overrides,
)
from _outputs import check_outputs, run_files

from data import load_annotations, read_batches
from data.files import without_nan, write_json, write_text
from data.json_file import read_json
from data.objects import with_masks
from engine.building import (
    AUTO,
    build_eval_loader,
    build_model,
    check_dcn_backend,
    describe_changes,
    describe_limits,
    describe_skipped_check,
    max_aspect_ratio,
    read_split,
    saved_statistics,
    with_batch_size,
    with_statistics,
)
from engine.config import describe_unused, load_config, unused_overrides
from engine.devices import pick_device, set_tf32
from engine.display import Progress, counted, for_people, format_table, percent
from engine.distributed import DistributedContext, read_distributed_context
from engine.evaluation import (
    MASK_PREFIX,
    MAX_DETECTIONS,
    ScoreReport,
    check_results,
    class_table,
    coco_eval_class,
    coco_metrics,
    describe_backend,
    describe_confusion,
    detect,
    gather_results,
    has_masks,
    limit_problems,
    metric_meanings,
    render_scores,
    result_doubts,
    score_report,
)
from engine.inference import describe_mode, with_tiles, with_tta
from engine.runs import LAST, load_checkpoint
from engine.weights import Trained, check_categories, check_same_model, load_trained
from models.checkpoint import check_tensors, choose_weights
from models.checkpoint_form import TRAINED

EPILOG = """examples:
  python tools/eval.py runs/demo_dcn
  python tools/eval.py runs/r50_dcn/best.pt --json figures.json --html figures.html data.num_workers=8
  python tools/eval.py runs/r50_dcn tta.flip=true                   # with horizontal-flip test-time augmentation
  python tools/eval.py runs/r50_dcn --tile 640 --overlap 0.2        # large images with small objects
  python tools/eval.py --config other.yaml --checkpoint runs/r50_dcn/best.pt
  python tools/eval.py --results detections.json --annotations instances_val2017.json
  torchrun --nproc-per-node=8 tools/eval.py runs/r50_dcn

The tool writes the detections next to the checkpoint as COCO results (or to --detections).
--config evaluates with another config than the checkpoint's; the detector must be the same."""


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__, EPILOG)
    parser.add_argument("run", nargs="?", metavar="RUN", help="run folder (its last.pt is used) or checkpoint file")
    add_overrides(parser, "data.num_workers=8")
    add_device(parser)
    add_batch_size(parser, None, "train.batch_size of the config")
    add_weights(parser)
    add_tiles(parser, "detect in overlapping", "tile.overlap of the config")
    parser.add_argument(
        "--detections", type=Path, metavar="FILE", help="COCO results to write (default: <checkpoint>.detections.json)"
    )
    parser.add_argument(
        "--max-detections",
        type=at_least(MAX_DETECTIONS),
        metavar="N",
        help=f"detections of a class that AP and AR count in an image, at least {MAX_DETECTIONS} (default: "
        f"eval.max_detections of the config; with --results {MAX_DETECTIONS})",
    )
    add_json(parser, "all metrics, thresholds and errors")
    parser.add_argument(
        "--html",
        type=Path,
        metavar="FILE",
        help="page to write: best score thresholds, curves of precision, recall and F1, and the confusion matrix",
    )
    parser.add_argument("--config", metavar="C", help="YAML file, or the name of a file in configs/; with --checkpoint")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="checkpoint file; with --config")
    parser.add_argument("--results", type=Path, metavar="FILE", help="COCO results file to evaluate without a model")
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="COCO annotation file; with --results")
    parser.add_argument(
        "--ignore-unmasked",
        action="store_true",
        help="with --results: evaluate masks although some annotations have none, and ignore these objects",
    )
    args = parser.parse_intermixed_args(current_spellings("eval"))
    runs, args.overrides = split_overrides([*([args.run] if args.run else []), *args.overrides])
    args.run = runs[0] if runs else None
    if len(runs) > 1:
        parser.error(f"expected one RUN and key=value, got {' and '.join(runs)}")
    given = [bool(args.run), bool(args.config), bool(args.checkpoint), bool(args.results), bool(args.annotations)]
    if given not in ([True, *[False] * 4], [False, True, True, False, False], [*[False] * 3, True, True]):
        parser.error("give either RUN, or --config and --checkpoint, or --results and --annotations")
    if args.results:
        why = "--results evaluates a file of detections without a model"
        refuse_unused(args, why, "--weights", "--detections", "--device", "--batch-size", *TILE_OPTIONS, "key=value")
    else:
        refuse_unused(args, "it needs --results", "--ignore-unmasked")
        options = {"--batch-size": "train.batch_size", "--max-detections": "eval.max_detections"} | TILE_OPTIONS
        args.overrides = config_values(args, options)
    return args


def main() -> None:
    """Evaluate and print."""
    args = parse_arguments()
    check_files(args)
    distributed = read_distributed_context()
    with distributed.process_group():
        metrics, report = evaluate_results(args) if args.results else evaluate_run(args, distributed)
    if distributed.is_main:
        show(metrics | report.metrics, report, args)


def check_files(args: argparse.Namespace, **inputs: Path) -> None:
    """Raise `ValueError` if an output is another output or an input; `inputs` are more of them."""
    outputs: dict[str, Path | None] = {"--json": args.json, "--html": args.html}
    known = {"--results": args.results, "--annotations": args.annotations} | inputs
    if not args.results:
        run = Path(args.run) if args.run else args.checkpoint
        checkpoint = run / LAST if run.is_dir() else run
        outputs["--detections"] = args.detections or checkpoint.with_suffix(".detections.json")
        known |= run_files(run) | {"--config": args.config and Path(args.config)}
    check_outputs(outputs, known)


def read_trained(args: argparse.Namespace) -> Trained:
    """Read the checkpoint, with its own config or the one asked for."""
    if args.run:
        trained = load_trained(Path(args.run), args.overrides)
    else:
        config, state = load_config(args.config, args.overrides), load_checkpoint(args.checkpoint, TRAINED)
        if config.train.batch_size == AUTO:
            config = with_batch_size(config, state["config"]["train"]["batch_size"])
        config = with_statistics(config, saved_statistics(config.data, state["config"].get("data", {})))
        trained = Trained(args.checkpoint, config, state)
    check_same_model(trained.state, trained.config.model_dump(mode="json"), trained.path)
    return trained


def show(figures: dict[str, Any], report: ScoreReport, args: argparse.Namespace) -> None:
    """Print the metrics of boxes and masks, the best score thresholds and the errors, and write them to files."""
    if args.json:
        write_json(args.json, without_nan(figures | report.confusion.as_json()))
    kinds = {"": "box ", MASK_PREFIX: "mask "} if f"{MASK_PREFIX}AP" in figures else {"": ""}
    rows = [
        (name, *(percent(figures[f"{kind}{name}"]) for kind in kinds), meaning)
        for name, meaning in metric_meanings(figures).items()
    ]
    print(format_table(("metric", *(f"{kind}x100" for kind in kinds.values()), "over"), rows))
    if "max_detections" in figures:
        print(f"\nAP, ARs, ARm and ARl count up to {figures['max_detections']} detections of a class per image")
    print(f"\n{class_table(figures)}\n\n{describe_confusion(report.confusion)}")
    if args.json:
        print(f"\nmetrics: {args.json}")
    if args.html:
        source = args.results or args.run or args.checkpoint
        about = f"{sum(figures['per_class_objects'].values()):,} objects were evaluated."
        write_text(args.html, render_scores(report, figures, title=f"Score thresholds of {source}", about=about))
        print(f"\npage: {args.html} (open it in a browser)")


def evaluate_run(args: argparse.Namespace, distributed: DistributedContext) -> tuple[dict[str, Any], ScoreReport]:
    """Run the detector on the val split, write its detections, and evaluate them."""
    progress = Progress(silent=not distributed.is_main)
    with distributed.raise_together():
        path, config, state = read_trained(args)
        if config.tile.size is None:
            refuse_unused(args, "it needs --tile", "--overlap")
        check_files(args, **{"data.val.annotations": Path(config.data.val.annotations)})
        device = pick_device(config.device, distributed)
        check_dcn_backend(config.model, device)
        coco_eval_class(config.eval.backend)
        set_tf32(config.train.tf32)
        weights = choose_weights(state, args.weights, path)
        split = read_split(
            config.data,
            "val",
            lambda items: progress.track(items, "check val images"),
            masks=config.model.spec.has_masks,
            max_aspect_ratio=max_aspect_ratio(config, "val"),
            check_images=distributed.local_rank == 0,
            run=path.parent,
        )
        check_categories(state, split.class_names, split.category_ids, path, split.path)
        model, _ = build_model(config.model, config.data, len(split.class_names), pretrained=False)
        tensors = state["ema"]["model"] if weights == "ema" else state["model"]
        check_tensors(tensors, model.state_dict(), path)
        model.load_state_dict(tensors)
        model = with_tiles(with_tta(model, config), config)
        loader = build_eval_loader(
            config, split, in_tiles=True, pin_memory=device.type == "cuda", distributed=distributed
        )
    with distributed.raise_together():
        batches = progress.track(read_batches(loader), "evaluate", len(loader))
        results = detect(model.to(device), batches, split.category_ids, device=device, amp=config.train.amp)
    gathered = gather_results(results, split.raw, distributed)

    def evaluate() -> tuple[dict[str, Any], ScoreReport]:
        if unused := unused_overrides(config, args.overrides, partial(is_read, "eval")):
            print(f"{describe_unused(unused)}\n")
        if skipped := describe_skipped_check(config.data, {"val": split}):
            print(skipped)
        for line in describe_changes({"val": split}):
            print(line)
        kind = "averaged weights" if weights == "ema" else "weights"
        images = f"{counted(len(split.arrays), 'image')} of {split.path}"
        print(
            f"{path} ({kind} of step {state['step']}) on {images}{describe_mode(config)}, {device}, "
            f"AP by {describe_backend(config.eval.backend)}"
        )
        detections = args.detections or path.with_suffix(".detections.json")
        write_json(detections, gathered)
        print(f"detections: {detections} ({len(gathered)})\n")
        warn(f"annotation file {split.path}: {problem}" for problem in split.warnings)
        tile = config.tile
        warn(f"{split.path}: {problem}" for problem in describe_limits(config, split, in_tiles=tile.size is not None))
        most = config.eval.max_detections
        metrics = coco_metrics(
            split.raw,
            gathered,
            masks=config.model.spec.has_masks,
            max_detections=most,
            backend=config.eval.backend,
        )
        mode = {} if tile.size is None else {"tile": tile.size, "tile_overlap": tile.overlap}
        return metrics | mode, score_report(split.raw, gathered, max_detections=most)

    return distributed.run_on_main_and_broadcast(evaluate)


def evaluate_results(args: argparse.Namespace) -> tuple[dict[str, Any], ScoreReport]:
    """Evaluate a COCO results file: the boxes, and the masks if the file has any."""
    most = args.max_detections or MAX_DETECTIONS
    source = f"results file {args.results}"
    content = read_json(args.results, "results file")
    split = load_annotations(args.annotations.parent, args.annotations, invalid_boxes="keep", check_images="never")
    warn(f"annotation file {args.annotations}: {problem}" for problem in split.warnings)
    detections = check_results(split.raw, content, source)
    masks = has_masks(detections)
    if not masks:
        refuse_unused(args, f"{source} has no masks", "--ignore-unmasked")
    unmasked = with_masks(split.raw)[1] if masks else None
    if unmasked and unmasked.found:
        masks = args.ignore_unmasked
        how = "the metrics of masks ignore them" if masks else "only boxes are evaluated"
        hint = "" if masks else "; --ignore-unmasked evaluates the masks of the other objects"
        warn([f"annotation file {args.annotations}: {how}{hint}; {unmasked._replace(hint='')}"])
    images = counted(len(split.arrays), "image")
    print(f"{counted(len(detections), 'detection')} of {args.results} on {images} of {args.annotations}\n")
    warn(f"{args.annotations}: {problem}" for problem in limit_problems(split.raw, most, option="--max-detections"))
    warn(f"{source}: {doubt}" for doubt in result_doubts(split.raw, detections, most))
    options = {"masks": masks, "ignore_unmasked": args.ignore_unmasked, "max_detections": most}
    metrics = coco_metrics(split.raw, detections, **options)
    return metrics, score_report(split.raw, detections, max_detections=most)


def warn(messages: Iterable[str]) -> None:
    """Print warnings."""
    for message in messages:
        print(f"warning: {for_people(message)}", file=sys.stderr)


if __name__ == "__main__":
    _clone.run(main, distributed=True)
