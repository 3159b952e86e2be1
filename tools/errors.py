"""Show where a detector fails: kinds of errors and what they cost, the worst images, and suspect labels."""

import argparse
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import _clone

# isort: split
from _arguments import (
    add_batch_size,
    add_device,
    add_json,
    add_overrides,
    add_weights,
    config_values,
    current_spellings,
    fraction,
    is_read,
    make_parser,
    positive,
    refuse_unused,
    split_overrides,
)
from _outputs import check_outputs, run_files

from data import CocoAnnotations, CocoDetection, eval_transform, load_annotations, read_batches
from data.files import without_nan, write_json, write_text
from data.json_file import read_json
from engine.building import build_eval_loader, check_dcn_backend, max_aspect_ratio, read_split
from engine.config import describe_unused, unused_overrides
from engine.devices import pick_device, set_tf32
from engine.display import Progress, counted, for_people, format_table, percent
from engine.errors import (
    KIND_TEXTS,
    SUSPICIONS,
    ErrorAnalysis,
    analyse_errors,
    fiftyone_dataset,
    open_fiftyone,
    render_errors,
    require_fiftyone,
    suspects_dataset,
)
from engine.evaluation import MAX_DETECTIONS, check_results, detect, result_doubts
from engine.inference import describe_mode, restore_model, with_tiles, with_tta
from engine.weights import Trained, check_categories, load_trained
from models.checkpoint import choose_weights

EPILOG = """examples:
  python tools/errors.py runs/cards                                     # writes runs/cards/errors.html
  python tools/errors.py runs/cards --split train --suspects check.json # label errors of the training data
  python tools/errors.py runs/cards --results runs/cards/last.detections.json    # without running the detector
  python tools/errors.py runs/cards/best.pt --worst 20 --json errors.json data.num_workers=8
  python tools/errors.py --results detections.json --annotations val.json --images photos --html errors.html
  python tools/errors.py runs/cards --fiftyone

The six kinds of errors are those of TIDE (https://arxiv.org/abs/2008.08115). dAP is the rise of the AP at IoU 0.5 if
all errors of one kind are fixed. The HTML page has the worst images of each kind.
--suspects writes suspect labels as a COCO file for a labelling tool: confident detections without a labelled object,
and labelled objects that nothing finds or that are confidently another class."""
# Classes in the terminal; the page lists all.
SHOWN_CLASSES = 20


class Source(NamedTuple):
    """Detections to analyse.

    Attributes:
        name: what they come from.
        split: annotations.
        results: COCO results.
        images: folder of the images, None if it is unknown.
    """

    name: str
    split: CocoAnnotations
    results: list[dict[str, Any]]
    images: Path | None


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__, EPILOG)
    parser.add_argument("run", nargs="?", metavar="RUN", help="run folder (its last.pt is used) or checkpoint file")
    add_overrides(parser, "data.num_workers=8")
    parser.add_argument(
        "--split", choices=("val", "train"), default="val", help="split of the data set (default: %(default)s)"
    )
    parser.add_argument("--results", type=Path, metavar="FILE", help="COCO results file, instead of running a detector")
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="COCO annotation file; with --results")
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of the images; with --annotations")
    parser.add_argument("--masks", action="store_true", help="use the IoU of masks instead of boxes")
    parser.add_argument(
        "--max-detections",
        type=positive,
        metavar="N",
        default=MAX_DETECTIONS,
        help="detections that count in an image, over all classes (default: %(default)s)",
    )
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="page to write (default: errors.html in the run folder)"
    )
    parser.add_argument(
        "--worst",
        type=positive,
        metavar="N",
        default=8,
        help="images of each kind of errors on the page (default: %(default)s)",
    )
    add_json(parser, "all figures")
    parser.add_argument(
        "--suspects", type=Path, metavar="FILE", help="write suspect labels as a COCO file, for a labelling tool"
    )
    parser.add_argument(
        "--suspect-score",
        type=fraction,
        metavar="X",
        help="minimum score of a confident detection (default: the median score of the correct ones of its class)",
    )
    parser.add_argument("--fiftyone", action="store_true", help="open the result in FiftyOne, if it is installed")
    add_device(parser)
    add_batch_size(parser, None, "train.batch_size of the config")
    add_weights(parser)
    parser.add_argument(
        "--detections", type=Path, metavar="FILE", help="also write the detections to this file, for --results"
    )
    args = parser.parse_intermixed_args(current_spellings("errors"))
    runs, args.overrides = split_overrides([*([args.run] if args.run else []), *args.overrides])
    args.run = Path(runs[0]) if runs else None
    if len(runs) > 1:
        parser.error(f"expected one RUN and key=value, got {' and '.join(runs)}")
    if bool(args.run) == bool(args.annotations) or not (args.run or args.results):
        parser.error("give either RUN, or --results and --annotations")
    if args.results:
        why = "--results has the detections, so that no detector runs"
        refuse_unused(args, why, "--weights", "--detections", "--device", "--batch-size")
    if args.annotations:
        refuse_unused(args, "it needs RUN", "--split", "key=value")
    else:
        refuse_unused(args, "RUN knows the folder of its images", "--images")
        args.overrides = config_values(args, {"--batch-size": "train.batch_size"})
        folder = args.run if args.run.is_dir() else args.run.parent
        args.html = args.html or folder / ("errors.html" if args.split == "val" else "errors_train.html")
    if not args.html:
        refuse_unused(args, "it needs --html", "--worst")
    return args


def main() -> None:
    """Analyse, print and write."""
    args = parse_arguments()
    outputs = {f"--{name}": getattr(args, name) for name in ("html", "json", "suspects", "detections")}
    check_outputs(outputs, {"--results": args.results, "--annotations": args.annotations})
    if args.fiftyone:
        require_fiftyone()
        if args.annotations and not args.images:
            raise ValueError("--fiftyone shows the images: add --images DIR")
    source = read_results(args) if args.annotations else read_run(args)
    warn(f"annotation file {source.split.path}: {problem}" for problem in source.split.warnings)
    analysis = analyse_errors(
        source.split.raw,
        source.results,
        kind="segm" if args.masks else "bbox",
        max_detections=args.max_detections,
        suspect_score=args.suspect_score,
    )
    print(source.name)
    show(analysis)
    write(analysis, source, args)
    if args.fiftyone:
        print("FiftyOne opens in a browser; stop with Ctrl-C")
        open_fiftyone(fiftyone_dataset(analysis, source.images))


def read_results(args: argparse.Namespace) -> Source:
    """Read a results file and its annotation file."""
    folder = args.images or args.annotations.parent
    if args.images and not folder.is_dir():
        raise ValueError(f"--images must be a folder, got {folder}")
    split = load_annotations(folder, args.annotations, invalid_boxes="keep", check_images="never")
    results = read_detections(args.results, split)
    name = f"{args.results} on {counted(len(split.arrays), 'image')} of {args.annotations}"
    return Source(name, split, results, args.images)


def read_detections(file: Path, split: CocoAnnotations) -> list[dict[str, Any]]:
    """Read a results file, and warn of results that are probably not meant so."""
    source = f"results file {file}"
    results = check_results(split.raw, read_json(file, "results file"), source)
    warn(f"{source}: {doubt}" for doubt in result_doubts(split.raw, results, MAX_DETECTIONS))
    return results


def read_run(args: argparse.Namespace) -> Source:
    """Read the split of a run, and run its detector unless there are results."""
    progress = Progress()
    trained = load_trained(args.run, args.overrides)
    if unused := unused_overrides(trained.config, args.overrides, partial(is_read, "errors")):
        print(f"{describe_unused(unused)}\n")
    data, spec = trained.config.data, trained.config.model.spec
    if args.masks and not spec.has_masks:
        raise ValueError(f"--masks needs a detector with masks, got {trained.config.model.detector}")
    place = getattr(data, args.split)
    outputs = {f"--{name}": getattr(args, name) for name in ("html", "json", "suspects", "detections")}
    check_outputs(outputs, run_files(args.run) | {f"data.{args.split}.annotations": Path(place.annotations)})
    split = read_split(
        data.model_copy(update={"val": place}),  # the training images are read as those of an evaluation
        "val",
        lambda items: progress.track(items, f"check {args.split} images"),
        masks=spec.has_masks,
        max_aspect_ratio=max_aspect_ratio(trained.config, "val"),
        run=trained.path.parent,
    )
    check_categories(trained.state, split.class_names, split.category_ids, trained.path, split.path)
    images = f"{counted(len(split.arrays), 'image')} of {split.path}"
    if args.results:
        return Source(f"{args.results} on {images}", split, read_detections(args.results, split), split.image_dir)
    results = run_detector(trained, split, args.weights, progress)
    if args.detections:
        write_json(args.detections, results)
    kind = "averaged weights" if choose_weights(trained.state, args.weights, trained.path) == "ema" else "weights"
    name = f"{trained.path} ({kind} of step {trained.state['step']}) on {images}{describe_mode(trained.config)}"
    return Source(name, split, results, split.image_dir)


def run_detector(
    trained: Trained, split: CocoAnnotations, weights: str | None, progress: Progress
) -> list[dict[str, Any]]:
    """Run the detector of a run over a split."""
    config = trained.config
    device = pick_device(config.device)
    check_dcn_backend(config.model, device)
    set_tf32(config.train.tf32)
    model = with_tiles(with_tta(restore_model(trained, weights=weights), config), config).to(device)
    loader = build_eval_loader(config, split, in_tiles=True, pin_memory=device.type == "cuda")
    batches = progress.track(read_batches(loader), "detect", len(loader))
    return detect(model, batches, split.category_ids, device=device, amp=config.train.amp)


def show(analysis: ErrorAnalysis) -> None:
    """Print the kinds of errors, the classes and the number of suspect labels."""
    figures, costs = analysis.as_json(), analysis.costs
    what = "masks" if analysis.kind == "segm" else "boxes"
    ignored, left_out = figures["detections_ignored"], figures["detections_left_out"]
    notes = [f"{ignored:,} ignored in crowd regions"] if ignored else []
    notes += [f"{left_out:,} more left out, see --max-detections"] if left_out else []
    of_these = f" ({', '.join(notes)})" if notes else ""
    counts = f"{counted(figures['detections'], 'detection')}{of_these}, {counted(figures['objects'], 'object')}"
    print(f"{counts}, AP50 of {what} x100: {percent(costs.ap)}\n")
    rows = [
        (kind, figures[f"errors_{kind}"], percent(costs.kinds[kind]), text.meaning) for kind, text in KIND_TEXTS.items()
    ]
    rows += [
        ("false positives", "", percent(costs.false_positives), "all detections that are not correct"),
        ("false negatives", "", percent(costs.false_negatives), "all objects without a correct detection"),
    ]
    print(format_table(("kind of errors", "errors", "dAP x100", "meaning"), rows))
    print("\nusual remedies, the most costly kind first:")
    for kind in sorted(KIND_TEXTS, key=lambda name: -costs.kinds[name]):
        if figures[f"errors_{kind}"]:
            print(f"  {kind}: {KIND_TEXTS[kind].help}")
    classes = sorted(
        figures["per_class"].items(), key=lambda item: (item[1]["AP50"] != item[1]["AP50"], item[1]["AP50"])
    )
    rows = [
        (name, percent(row["AP50"]), row["objects"], *(row[f"errors_{kind}"] for kind in KIND_TEXTS))
        for name, row in classes[:SHOWN_CLASSES]
    ]
    print(f"\n{format_table(('class', 'AP50 x100', 'objects', *KIND_TEXTS), rows)}")
    if len(classes) > SHOWN_CLASSES:
        print(f"  ... and {counted(len(classes) - SHOWN_CLASSES, 'class')} with a higher AP50")
    print("\nsuspect labels:")
    for suspicion, text in SUSPICIONS.items():
        print(f"  {len(analysis.suspects[suspicion]):,} {suspicion.replace('_', ' ')}: {text}")


def write(analysis: ErrorAnalysis, source: Source, args: argparse.Namespace) -> None:
    """Write the files that are asked for, and print their names."""
    print()
    if args.detections:
        print(f"detections: {args.detections} ({len(source.results):,})")
    if args.json:
        write_json(args.json, without_nan(analysis.as_json()))
        print(f"figures: {args.json}")
    if args.suspects:
        dataset = suspects_dataset(analysis, description=f"suspect labels of {source.split.path}")
        write_json(args.suspects, dataset)
        entries, images = len(dataset["annotations"]), len(dataset["images"])
        print(f"suspect labels: {args.suspects} ({counted(entries, 'label')} in {counted(images, 'image')})")
    if args.html:
        dataset = source.images and CocoDetection(source.split, eval_transform())
        page = render_errors(
            analysis,
            title=f"Errors of {args.run or args.results}",
            about=source.name,
            worst=args.worst,
            read=dataset and (lambda place: dataset[place][0]),
            track=Progress().track,
        )
        write_text(args.html, page)
        print(f"page: {args.html} (open it in a browser)")


def warn(messages: Iterable[str]) -> None:
    """Print warnings."""
    for message in messages:
        print(f"warning: {for_people(message)}", file=sys.stderr)


if __name__ == "__main__":
    _clone.run(main)
