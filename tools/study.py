"""Repeat the study of the gain of DCN: networks with and without DCN, several seeds, increasing deformation."""

import argparse
import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import _clone

# isort: split
import torch
from _arguments import (
    add_bootstrap_samples,
    add_out,
    add_overrides,
    current_spellings,
    make_parser,
    positive,
    refuse_unused,
)
from _outputs import file_key

from data.files import write_json, write_text
from data.json_file import read_json
from data.synthetic import write_shapes
from engine.comparison import Study, compare_runs, mean_and_spread, render_report, render_study, with_interval
from engine.config import load_config
from engine.display import Progress, format_table, start_logging
from engine.runs import BEST, LAST, step_files
from engine.weights import load_trained
from models.checkpoint_form import RUN

EPILOG = """examples:
  python tools/study.py                          # sized for CPUs: 21 runs of 5 minutes on one core each
  python tools/study.py --jobs 8 --deformations 0 0.4 0.8
  python tools/study.py --size gpu               # ResNet-50 on larger images
  python tools/study.py --out runs/trial --data datasets/trial --seeds 0 train.max_steps=20
Run the same command again to continue an interrupted study. Finished runs are kept."""


class Size(NamedTuple):
    """Size of a study: the config of the plain network, and the images to generate."""

    config: str
    train: int
    val: int
    width: int
    height: int


class Network(NamedTuple):
    """A network of the comparison; the first one is the baseline."""

    dcn_v2_stages: list[int]
    modulation: bool
    at_every_deformation: bool


SIZES = {
    "cpu": Size("study.yaml", train=800, val=400, width=160, height=128),
    "gpu": Size("study_gpu.yaml", train=4000, val=1000, width=512, height=416),
}
NETWORKS = {
    "plain": Network([], modulation=True, at_every_deformation=True),
    "dcnv2_234": Network([2, 3, 4], modulation=True, at_every_deformation=True),
    "dcnv2_34": Network([3, 4], modulation=True, at_every_deformation=False),
    "dcnv2_4": Network([4], modulation=True, at_every_deformation=False),
    "dcnv1_234": Network([2, 3, 4], modulation=False, at_every_deformation=False),
}
# Keys that the study sets for each run.
OWN_KEYS = ("seed", "data.train", "data.val", "model.backbone.dcn_v2_stages", "model.backbone.modulation")
_LAST_LINES = 5
WIDTH = 120


class Run(NamedTuple):
    """A training of the study."""

    folder: Path
    config: str
    overrides: list[str]


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__, EPILOG)
    parser.add_argument("--size", choices=SIZES, default="cpu", help="size of networks and images (default: cpu)")
    add_out(parser, Path("runs/study"), what="folder of the runs and reports")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        default=Path("datasets/study"),
        help="folder of the generated data sets (default: %(default)s)",
    )
    parser.add_argument(
        "--deformations",
        nargs="+",
        type=float,
        default=[0.0, 0.8],
        metavar="X",
        help="0: shapes are rotated and scaled only, 1: strongly bent; all networks train on the largest, two on the "
        "others (default: 0 0.8)",
    )
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="training seeds (default: 0 1 2)"
    )
    parser.add_argument(
        "--jobs",
        type=positive,
        metavar="N",
        help="trainings at the same time (default: one per CPU core, or one on a GPU)",
    )
    parser.add_argument(
        "--networks",
        nargs="+",
        choices=NETWORKS,
        default=[*NETWORKS],
        metavar="NAME",
        help=f"{', '.join(NETWORKS)}; the first is the baseline (default: all)",
    )
    sizes = " or ".join(f"{size.train} for {name}" for name, size in SIZES.items())
    parser.add_argument("--train-images", type=positive, metavar="N", help=f"training images (default: {sizes})")
    sizes = " or ".join(f"{size.val} for {name}" for name, size in SIZES.items())
    parser.add_argument("--val-images", type=positive, metavar="N", help=f"validation images (default: {sizes})")
    add_bootstrap_samples(parser)
    add_overrides(parser, "train.max_steps=20, for all runs")
    args = parser.parse_intermixed_args(current_spellings("study"))
    for option in ("seeds", "networks"):
        if len(values := getattr(args, option)) != len({*values}):
            parser.error(f"--{option} must differ, got {values}")
    check_own_keys(args.overrides)
    if len(args.networks) == 1:
        refuse_unused(args, "it needs two networks", "--bootstrap-samples")
    if file_key(args.out) == file_key(args.data):
        parser.error(f"--out and --data must be different folders, got {args.out} and {args.data}")
    size = SIZES[args.size]
    args.size = size._replace(train=args.train_images or size.train, val=args.val_images or size.val)
    return args


def check_own_keys(overrides: Sequence[str]) -> None:
    """Raise `ValueError` for config values that the study sets for each run."""
    keys = [text.partition("=")[0] for text in overrides]
    if own := [key for key in keys if any(f"{key}.".startswith(f"{name}.") for name in OWN_KEYS)]:
        raise ValueError(f"{own[0]} must not be given: the study sets it for each run (--seeds, --networks, --data)")


def main() -> None:
    """Generate the data, train the missing runs, compare."""
    args = parse_arguments()
    start_logging()
    progress = Progress()
    load_config(args.size.config, args.overrides)  # reports errors before any work starts
    levels = sorted(set(args.deformations))
    plans = {level: plan_runs(args, level, everything=level == levels[-1]) for level in levels}
    by_seed = zip(*plans.values(), strict=True)  # an interrupted study then has complete comparisons
    missing = [run for plan in by_seed for runs in plan for run in runs if not is_finished(run)]
    jobs = args.jobs or (1 if torch.cuda.is_available() else torch.get_num_threads())
    for level in levels:
        draw(args.data / name_of(level), args.size, level, progress)
    train(missing, jobs, progress)
    study = Study(
        {
            level: compare_runs(
                [run.folder for runs in zip(*plan, strict=True) for run in runs],
                bootstrap_samples=args.bootstrap_samples,
                progress=progress,
            )
            for level, plan in plans.items()
        }
    )
    show(study)
    write(study, args.out)


def show(study: Study) -> None:
    """Print AP and gains at each deformation, and the conclusions."""
    names = [*study.strongest.groups]
    rows = []
    for level, comparison in study.comparisons.items():
        groups = comparison.groups
        values = [mean_and_spread(groups[name], "AP") if name in groups else "" for name in names]
        rows.append([f"AP at deformation {level:g}", *values])
    for level, comparison in study.comparisons.items():
        gains = {name: found["AP"] for name, found in comparison.differences.items()}
        cells = [with_interval(gains[name]) if name in gains else "" for name in names]
        rows.append([f"gain at deformation {level:g}", *cells])
    print(format_table(("x100", *names), rows))
    for sentence in [*study.strongest.conclusions.values(), *study.sentences]:
        print(f"\n{textwrap.fill(sentence, WIDTH)}")


def write(study: Study, out: Path) -> None:
    """Write the reports, and all results as JSON."""
    write_json(out / "study.json", study.as_json())
    links = {}
    for level, comparison in study.comparisons.items():
        file = out / f"{name_of(level)}.html"
        write_text(file, render_report(comparison))
        links[f"deformation {level:g}"] = file.name
    write_text(out / "study.html", render_study(study, links))
    print(f"\nresults: {out / 'study.json'}\nreport: {out / 'study.html'} (open it in a browser)")


def name_of(level: float) -> str:
    """Return the name of the folders of one deformation."""
    return f"deformation_{level:g}"


def draw(folder: Path, size: Size, level: float, progress: Progress) -> None:
    """Generate the data set of one deformation, unless it exists.

    Raises:
        ValueError: if the folder holds another data set.
    """
    file = folder / "annotations/val.json"
    if not file.is_file():
        write_shapes(
            folder,
            train=size.train,
            val=size.val,
            width=size.width,
            height=size.height,
            deformation=level,
            progress=lambda items: progress.track(items, f"draw {folder}"),
        )
        return
    raw = read_json(file)
    try:
        found = (len(raw["images"]), raw["images"][0]["width"], raw["images"][0]["height"])
    except (LookupError, TypeError):
        raise ValueError(f"{file} must be a file of tools/make_shapes.py: remove {folder}, or choose --data") from None
    if found != (size.val, size.width, size.height):
        raise ValueError(
            f"{folder} must hold {size.val} validation images of {size.width}x{size.height} pixels for this size of "
            f"the study, but has {found[0]} of {found[1]}x{found[2]}: remove it, or choose another folder with --data"
        )


def plan_runs(args: argparse.Namespace, level: float, *, everything: bool) -> list[list[Run]]:
    """Return the runs on one deformation, a list per seed."""
    data, out = args.data / name_of(level), args.out / name_of(level)
    files = [f"data.{split}.images={data / split}" for split in ("train", "val")]
    files += [f"data.{split}.annotations={data / 'annotations' / f'{split}.json'}" for split in ("train", "val")]
    return [
        [
            Run(
                out / f"{name}_seed{seed}",
                args.size.config,
                [
                    *files,
                    f"seed={seed}",
                    f"model.backbone.dcn_v2_stages={network.dcn_v2_stages}",
                    f"model.backbone.modulation={str(network.modulation).lower()}",
                    *args.overrides,
                ],
            )
            for name in args.networks
            for network in [NETWORKS[name]]
            if everything or network.at_every_deformation
        ]
        for seed in args.seeds
    ]


def train(runs: list[Run], jobs: int, progress: Progress) -> None:
    """Train runs, several at the same time.

    Raises:
        ValueError: if one fails, with its last lines; the other runs are stopped and can be resumed.
    """
    if not runs:
        return
    on_gpu = torch.cuda.is_available()
    cores = torch.get_num_threads()
    print(f"{len(runs)} trainings, {jobs} at the same time; logs: {runs[0].folder / 'train.log'}")
    threads = {} if on_gpu else {"OMP_NUM_THREADS": str(max(1, cores // jobs))}
    processes: list[subprocess.Popen] = []

    def run_one(run: Run) -> None:
        command = [sys.executable, str(_clone.ROOT / "tools/train.py"), "--config", run.config]
        process = subprocess.Popen(
            [*command, "--run-dir", str(run.folder), "--resume", "auto", *run.overrides],
            env=os.environ | threads,
            text=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        processes.append(process)
        errors = process.communicate()[1]
        if process.returncode:
            last = "\n".join(errors.strip().splitlines()[-_LAST_LINES:])
            raise ValueError(f"the training in {run.folder} ended with exit code {process.returncode}:\n{last}")
        for file in (run.folder / BEST, *step_files(run.folder).values()):  # a study reads only last.pt
            file.unlink(missing_ok=True)

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(run_one, run) for run in runs]
        try:
            for future in progress.track(as_completed(futures), "train", len(futures)):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.terminate()  # each writes a checkpoint
            raise


def is_finished(run: Run) -> bool:
    """Whether a run is finished and evaluated.

    Raises:
        ValueError: if the folder holds a run with other options.
    """
    if not (run.folder / LAST).is_file():
        return False
    trained = load_trained(run.folder, needed=RUN)
    if trained.config != load_config(run.config, run.overrides):
        raise ValueError(
            f"{run.folder} holds a run with other options than this study: remove it, or choose another folder "
            "with --out"
        )
    return trained.is_finished


if __name__ == "__main__":
    _clone.run(main)
