"""Compare finished runs, in the terminal and as an HTML report: is one better, by how much, and how sure is that?"""

import argparse
import textwrap
from pathlib import Path

import _clone

# isort: split
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

EPILOG = """examples:
  python tools/compare.py runs/demo runs/demo_dcn
  python tools/compare.py runs/plain_seed* runs/dcn_seed* --html comparison.html --json comparison.json
  python tools/compare.py runs/a runs/b data.val.images=photos data.val.annotations=photos/val.json
Runs whose configs differ in nothing but the seed are one group, and the first group is what the others are compared
with. What counts are the last weights. Detections are read from <run>/last.detections.json where tools/eval.py, or an
earlier comparison, left those of the same weights; else the model is run over the val split, and the file written."""
WIDTH = 120


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders; may be followed by key=value, as below")
    parser.add_argument("--html", type=Path, help="write a report to this file, which needs nothing beside it")
    parser.add_argument("--json", type=Path, help="write everything found to this file")
    parser.add_argument(
        "--rounds", type=int, default=1000, help="how often the bootstrap draws the images again (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: %(default)s)")
    parser.add_argument(
        "--pictures", type=int, default=6, help="pictures of each comparison in the report (default: %(default)s)"
    )
    parser.add_argument(
        "--timed-images",
        type=int,
        default=8,
        help="images to time inference with; 0: no time of inference and, on a GPU, no memory (default: %(default)s)",
    )
    parser.add_argument("--device", default="auto", help="to run the models on (default: a GPU if there is one)")
    args = parser.parse_intermixed_args()
    args.overrides = [argument for argument in args.runs if is_override(argument)]
    args.runs = [Path(argument) for argument in args.runs if not is_override(argument)]
    if not args.runs:
        parser.error("name one run or more")
    if args.rounds < 100:
        parser.error(f"--rounds must be at least 100, for the ends of an interval, got {args.rounds}")
    if min(args.seed, args.pictures, args.timed_images) < 0:
        parser.error("--seed, --pictures and --timed-images must not be below 0")
    for file in filter(None, (args.html, args.json)):
        above = next(place for place in file.absolute().parents if place.exists())
        if file.is_dir() or not above.is_dir():
            parser.error(f"--html and --json must name files that can be written, got {file}")
    return args


def is_override(argument: str) -> bool:
    """Whether an argument is a `key=value` and no folder."""
    return "=" in argument and not Path(argument).is_dir()


def main() -> None:
    """Compare and show."""
    args = parse_arguments()
    start_logging()
    comparison = compare_runs(
        args.runs,
        overrides=args.overrides,
        device=args.device,
        bootstrap_samples=args.rounds,
        seed=args.seed,
        num_images=args.pictures if args.html else 0,
        timed_images=args.timed_images,
        progress=Progress(),
    )
    show(comparison)
    if args.json:
        write_json(args.json, comparison.as_json())
        print(f"\neverything found: {args.json}")
    if args.html:
        write_text(args.html, render_report(comparison))
        print(f"\nreport: {args.html} (open it in a browser)")


def show(comparison: Comparison) -> None:
    """Print figures, costs, options and verdicts."""
    print_figures(comparison)
    groups = comparison.groups
    rows = [
        (name, *(f"{value} ({times})" if times else value for value, times in cells))
        for name, _, cells in cost_rows([group.costs for group in groups.values()])
    ]
    print(f"\n{format_table(('', *groups), rows)}")
    rows = [
        ("seed", *(", ".join(str(run.seed) for run in group.runs) for group in groups.values())),
        ("steps", *(", ".join({f"{run.steps:,}": None for run in group.runs}) for group in groups.values())),
        *((key, *cells) for key, cells in comparison.options.items()),
    ]
    print(f"\n{format_table(('option', *groups), rows)}")
    for sentence in comparison.conclusions.values():
        print(f"\n{textwrap.fill(sentence, WIDTH)}")


def print_figures(comparison: Comparison) -> None:
    """Print the figures of each group, and beside or below them their differences to the first."""
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
            [f"less {comparison.base}", *differences],
            [[label, *cells] for label, cells in zip(labels, changes, strict=True)],
        )
        table = f"{format_table(['', *groups], means)}\n\n{below}"
    print(table)
    notes = ["AP and AR are x100"]
    if any(len(group.runs) > 1 for group in groups.values()):
        notes.append("means over the seeds ± their standard deviation")
    if differences:
        notes.append(
            f"in brackets the 95 % interval of a difference over {comparison.settings['images']} images"
            " and, where both have several, seeds; * where it leaves out 0"
        )
    print(f"\n{textwrap.fill('; '.join(notes) + '.', WIDTH)}")


if __name__ == "__main__":
    _clone.run(main)
