"""Evaluate a checkpoint, or an existing COCO results file, by pycocotools."""

import argparse
import json
from pathlib import Path
from typing import Any

import _clone

# isort: split
from data import load_annotations, read_batches
from data.files import without_nan, write_json
from engine.building import (
    build_eval_loader,
    build_model,
    check_dcn_backend,
    describe_skipped_check,
    read_split,
)
from engine.config import describe_unused, load_config, unused_overrides
from engine.devices import pick_device, set_tf32
from engine.display import Progress, counted, format_table, percent
from engine.distributed import DistributedContext, read_distributed_context
from engine.evaluation import (
    COCO_METRICS,
    MASK_PREFIX,
    METRIC_MEANINGS,
    check_results,
    coco_metrics,
    detect,
    gather_results,
    has_masks,
)
from engine.inference import as_tested
from engine.runs import load_checkpoint
from engine.weights import check_categories, check_same_model
from models.checkpoint import choose_weights

EPILOG = """examples:
  python tools/eval.py --config demo_dcn.yaml --checkpoint runs/demo_dcn/best.pt
  python tools/eval.py --config r50_dcn.yaml --checkpoint runs/r50_dcn/last.pt --json figures.json data.num_workers=8
  python tools/eval.py --config r50_dcn.yaml --checkpoint runs/r50_dcn/last.pt tta.flip=true   # mirror images too
  torchrun --nproc-per-node=8 tools/eval.py --config r50_dcn.yaml --checkpoint runs/r50_dcn/best.pt
  python tools/eval.py --results detections.json --annotations instances_val2017.json
With a checkpoint, the detections are written beside it as COCO results (or to --detections)."""


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config", help="YAML file, or the name of one in configs/; that of the run is runs/<name>/config.yaml"
    )
    parser.add_argument("--checkpoint", type=Path, help="a .pt file of tools/train.py")
    parser.add_argument(
        "--detections", type=Path, help="where to write the COCO results (default: <checkpoint>.detections.json)"
    )
    parser.add_argument(
        "--weights", choices=("raw", "ema"), help="of a run with train.ema_decay (default: ema where there are any)"
    )
    parser.add_argument("--results", type=Path, help="COCO results file to judge, without a model")
    parser.add_argument("--annotations", type=Path, help="COCO annotation file that --results is about")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config values, as in data.num_workers=8")
    args = parser.parse_intermixed_args()
    if args.results and args.weights:
        parser.error("--weights is about a checkpoint")
    model, file = (args.config, args.checkpoint), (args.results, args.annotations)
    if [all(model), any(file)] != [True, False] and [all(file), any(model)] != [True, False]:
        parser.error("give either --config and --checkpoint, or --results and --annotations")
    return args


def main() -> None:
    """Judge and show."""
    args = parse_arguments()
    distributed = read_distributed_context()
    with distributed.process_group():
        figures = judge_file(args.results, args.annotations) if args.results else judge_checkpoint(args, distributed)
    if distributed.is_main:
        show(figures, args.json)


def show(figures: dict[str, Any], file: Path | None) -> None:
    """Print the figures of boxes, and of masks beside them; and write them to a file if there is one."""
    kinds = {"": "box ", MASK_PREFIX: "mask "} if f"{MASK_PREFIX}AP" in figures else {"": ""}
    rows = [
        (name, *(percent(figures[f"{kind}{name}"]) for kind in kinds), METRIC_MEANINGS[name]) for name in COCO_METRICS
    ]
    print(format_table(("figure", *(f"{kind}x100" for kind in kinds.values()), "over"), rows))
    print()
    rows = [(name, *(percent(figures[f"{kind}per_class"][name]) for kind in kinds)) for name in figures["per_class"]]
    print(format_table(("class", *(f"{kind}AP x100" for kind in kinds.values())), rows))
    if file:
        write_json(file, without_nan(figures))
        print(f"\nfigures: {file}")


def judge_checkpoint(args: argparse.Namespace, distributed: DistributedContext) -> dict[str, Any]:
    """Run the model of a checkpoint over the val split, write its detections, and judge them."""
    progress = Progress(silent=not distributed.is_main)
    with distributed.raise_together():
        config = load_config(args.config, args.overrides)
        device = pick_device(config.device, distributed)
        check_dcn_backend(config.model, device)
        set_tf32(config.train.tf32)
        state = load_checkpoint(args.checkpoint)
        check_same_model(state, config.model_dump(mode="json"), args.checkpoint)
        weights = choose_weights(state, args.weights, args.checkpoint)
        split = read_split(
            config.data,
            "val",
            lambda items: progress.track(items, "check val images"),
            masks=config.model.spec.has_masks,
            check_images=distributed.local_rank == 0,
            run=args.checkpoint.parent,
        )
        check_categories(state, split.class_names, split.category_ids, args.checkpoint, split.path)
        model, _ = build_model(config.model, config.data, len(split.class_names), pretrained=False)
        model.load_state_dict(state["ema"]["model"] if weights == "ema" else state["model"])
        model = as_tested(model, config)
        loader = build_eval_loader(config, split, pin_memory=device.type == "cuda", distributed=distributed)
    with distributed.raise_together():
        batches = progress.track(read_batches(loader), "evaluate", len(loader))
        results = detect(model.to(device), batches, split.category_ids, device=device, amp=config.train.amp)
    gathered = gather_results(results, split.raw, distributed)

    def judge() -> dict[str, Any]:
        if unused := unused_overrides(config, args.overrides):
            print(f"{describe_unused(unused)}\n")
        if skipped := describe_skipped_check(config.data, {"val": split}):
            print(skipped)
        kind = "averaged weights" if weights == "ema" else "weights"
        mirrored = " and their mirror images" if config.tta.flip else ""
        images = f"{counted(len(split.arrays), 'image')} of {split.path}"
        print(f"{args.checkpoint} ({kind} of step {state['step']}) on {images}{mirrored}, {device}")
        detections = args.detections or args.checkpoint.with_suffix(".detections.json")
        write_json(detections, gathered)
        print(f"detections: {detections} ({len(gathered)})\n")
        if split.dropped_masks:
            print(f"left out: {counted(split.dropped_masks, 'annotation')} without a mask that can be read\n")
        return coco_metrics(split.raw, gathered, masks=config.model.spec.has_masks)

    return distributed.run_on_main_and_broadcast(judge)


def judge_file(results: Path, annotations: Path) -> dict[str, Any]:
    """Judge a COCO results file: its boxes, and its masks if it has any."""
    if not results.is_file():
        raise ValueError(f"results file {results} does not exist (resolved: {results.resolve()})")
    try:
        detections = json.loads(results.read_bytes())
    except ValueError as error:
        raise ValueError(f"results file {results} is no JSON: {error}") from None
    masks = isinstance(detections, list) and has_masks(detections)
    split = load_annotations(
        annotations.parent,
        annotations,
        invalid_boxes="clip",
        invalid_masks="raise" if masks else None,
        check_images="never",
    )
    check_results(split.raw, detections)
    images = counted(len(split.arrays), "image")
    print(f"{counted(len(detections), 'detection')} of {results} on {images} of {annotations}\n")
    return coco_metrics(split.raw, detections)


if __name__ == "__main__":
    _clone.run(main)
