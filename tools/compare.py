"""Compare finished runs with confidence intervals, in the terminal and as an HTML report."""

import argparse
import math
import textwrap
from functools import partial
from pathlib import Path

import _clone

# isort: split
from _arguments import (
    add_bootstrap_samples,
    add_device,
    add_json,
    current_spellings,
    is_read,
    make_parser,
    not_negative,
    refuse_unused,
    split_overrides,
)
from _outputs import check_outputs, run_files

from data.files import write_json, write_text
from engine.comparison import (
    MASK_METRICS,
    Comparison,
    compare_runs,
    cost_rows,
    mean_and_spread,
    render_report,
    with_interval,
)
from engine.display import Progress, format_table, start_logging
from engine.evaluation import COCO_METRICS
from engine.runs import LAST

EPILOG = """examples:
  python tools/compare.py runs/demo runs/demo_dcn
  python tools/compare.py runs/plain_seed* runs/dcn_seed* --html comparison.html --json comparison.json
  python tools/compare.py runs/a runs/b data.val.images=photos data.val.annotations=photos/val.json

Runs that differ only in the seed form a group. The first group is the baseline. The tool compares the last weights. It
reads the detections from <run>/last.detections.json if tools/eval.py or an earlier comparison wrote them for these
weights. Otherwise it runs the detector on the val split and writes the file."""
WIDTH = 120


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__, EPILOG)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders; key=value sets a config value of all runs")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a self-contained HTML report to this file")
    add_json(parser, "all results")
    add_bootstrap_samples(parser)
    parser.add_argument(
        "--seed", type=not_negative, default=0, metavar="N", help="seed of the bootstrap (default: %(default)s)"
    )
    parser.add_argument(
        "--num-images",
        type=not_negative,
        default=6,
        metavar="N",
        help="images per comparison in the report (default: %(default)s)",
    )
    parser.add_argument(
        "--timed-images",
        type=not_negative,
        default=8,
        metavar="N",
        help="images for the inference time; 0: no inference time, and on a GPU no memory (default: %(default)s)",
    )
    add_device(parser, "auto")
    args = parser.parse_intermixed_args(current_spellings("compare"))
    runs, args.overrides = split_overrides(args.runs)
    args.runs = [Path(run) for run in runs]
    if not args.runs:
        parser.error("give at least one RUN; a folder whose name has the form key=value needs a path, as ./a=b")
    if not args.html:
        refuse_unused(args, "it needs --html", "--num-images")
    return args


def main() -> None:
    """Compare and print."""
    args = parse_arguments()
    start_logging()
    files = {name: file for run in args.runs for name, file in run_files(run).items()}
    detections = {f"the detections of {run}": (run / LAST).with_suffix(".detections.json") for run in args.runs}
    check_outputs({"--html": args.html, "--json": args.json}, files | detections)
    comparison = compare_runs(
        args.runs,
        overrides=args.overrides,
        is_read=partial(is_read, "compare"),
        device=args.device,
        bootstrap_samples=args.bootstrap_samples,
        seed=args.seed,
        num_images=args.num_images if args.html else 0,
        timed_images=args.timed_images,
        progress=Progress(),
    )
    if args.json:
        write_json(args.json, comparison.as_json())
    show(comparison)
    if args.json:
        print(f"\nresults: {args.json}")
    if args.html:
        write_text(args.html, render_report(comparison))
        print(f"\nreport: {args.html} (open it in a browser)")


def show(comparison: Comparison) -> None:
    """Print metrics, costs, options and conclusions."""
    print_figures(comparison)
    groups = comparison.groups
    rows = [
        (name, *(f"{value} ({times})" if times else value for value, times in cells))
        for name, _, cells in cost_rows([group.costs for group in groups.values()])
    ]
    print(f"\n{format_table(('', *groups), rows)}")
    print(f"\n{thresholds_table(comparison)}")
    rows = [
        ("seed", *(", ".join(str(run.seed) for run in group.runs) for group in groups.values())),
        ("steps", *(", ".join({f"{run.steps:,}": None for run in group.runs}) for group in groups.values())),
        *((key, *cells) for key, cells in comparison.options.items()),
    ]
    print(f"\n{format_table(('option', *groups), rows)}")
    for sentence in comparison.conclusions.values():
        print(f"\n{textwrap.fill(sentence, WIDTH)}")


def thresholds_table(comparison: Comparison) -> str:
    """Return the best score threshold for all classes of each group, and F1 there, as ranges over the runs."""

    def shown(values: list[float], form: str) -> str:
        texts = ["-" if math.isnan(value) else form.format(value) for value in sorted(values)]
        return texts[0] if len({*texts}) == 1 else f"{texts[0]} to {texts[-1]}"

    found = [group.thresholds for group in comparison.groups.values()]
    rows = [
        ("best score threshold", *(shown([one["score_threshold"] for one in runs], "{:.3f}") for runs in found)),
        ("F1 there, x100", *(shown([100 * one["F1"] for one in runs], "{:.1f}") for runs in found)),
    ]
    return format_table(("", *comparison.groups), rows)


def print_figures(comparison: Comparison) -> None:
    """Print the metrics of each group, and next to or below them the differences from the baseline."""
    groups, differences = comparison.groups, comparison.differences
    masks = MASK_METRICS if comparison.has_masks else ()
    keys = [*COCO_METRICS, *masks, *(f"AP {name}" for name in comparison.class_names)]
    labels = [key.replace("_", " ") if key in masks else key for key in keys]
    means = [
        [label, *(mean_and_spread(group, key) for group in groups.values())]
        for label, key in zip(labels, keys, strict=True)
    ]
    changes = [[with_interval(found[key]) if key in found else "-" for found in differences.values()] for key in keys]
    titles = [f"{other} - {comparison.base}" for other in differences]
    table = format_table(["", *groups, *titles], [one + two for one, two in zip(means, changes, strict=True)])
    if max(map(len, table.splitlines())) > WIDTH:
        below = format_table(
            [f"minus {comparison.base}", *differences],
            [[label, *cells] for label, cells in zip(labels, changes, strict=True)],
        )
        table = f"{format_table(['', *groups], means)}\n\n{below}"
    print(table)
    notes = ["AP and AR are x100"]
    if any(len(group.runs) > 1 for group in groups.values()):
        notes.append("mean ± standard deviation over seeds")
    if differences:
        notes.append(
            f"in brackets the 95 % confidence interval of a difference, over {comparison.settings['images']} images "
            "and over seeds if both groups have several; * the interval excludes 0"
        )
    print(f"\n{textwrap.fill('; '.join(notes) + '.', WIDTH)}")


if __name__ == "__main__":
    _clone.run(main)
