"""Command-line arguments that several tools share, and the old spellings of renamed options."""

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NoReturn

from engine.display import for_people
from models.options import REMOVAL

# old -> new, by tool; the old spellings work until release REMOVAL
RENAMED: dict[str, dict[str, str]] = {
    "predict": {
        "--score": "--score-threshold",
        "--batch": "--batch-size",
        "--every": "--frame-stride",
        "--no-pictures": "--no-images",
    },
    "visualize": {"--against": "--baseline", "--count": "--num-images", "--points": "--max-detections"},
    "compare": {"--rounds": "--bootstrap-samples", "--pictures": "--num-images"},
    "study": {"--rounds": "--bootstrap-samples", "--train": "--train-images", "--val": "--val-images"},
    "make_shapes": {"--train": "--train-images", "--val": "--val-images"},
    "check_dataset": {"--sheet": "--contact-sheet", "--samples": "--num-images"},
    "convert": {"--input": "--input-format", "--report": "--json"},
    "benchmark op": {"--batches": "--batch-sizes"},
    "benchmark train": {"--batch": "--batch-size"},
    "download_coco": {"--what": "--parts"},
}
_OVERRIDE = re.compile(r"[A-Za-z_]\w*(?:\.\w+)*=")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(for_people(message))


def make_parser(description: str | None, epilog: str) -> argparse.ArgumentParser:
    """Make a parser whose help keeps the line breaks of `epilog`; options cannot be abbreviated."""
    return _Parser(
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def current_spellings(tool: str) -> list[str]:
    """Return the command line of a tool with renamed options in their new spelling; each old one causes a warning."""
    arguments = sys.argv[1:]
    names = RENAMED.get(f"{tool} {arguments[0]}" if arguments else tool, {}) | RENAMED.get(tool, {})
    return [_current(argument, names) for argument in arguments]


def is_override(argument: str) -> bool:
    """Whether an argument has the form of a config value, `name.name=value`; a file needs a path then, as ./a=b.jpg."""
    return _OVERRIDE.match(argument) is not None


def split_overrides(arguments: Iterable[str]) -> tuple[list[str], list[str]]:
    """Split arguments into other arguments and config values."""
    arguments = list(arguments)
    return [text for text in arguments if not is_override(text)], [text for text in arguments if is_override(text)]


def config_values(args: argparse.Namespace) -> list[str]:
    """Return the config values of a command line, `--device` included."""
    return [*args.overrides, *([f"device={args.device}"] if args.device else [])]


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the trained detector, RUN."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder (its last.pt is used) or checkpoint file")


def add_overrides(parser: argparse.ArgumentParser, example: str) -> None:
    """Add config values as the last arguments."""
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help=f"config values, for example {example}"
    )


def add_device(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """Add `--device`; without a default, the config's device."""
    shown = default or "device of the config"
    parser.add_argument(
        "--device", metavar="D", default=default, help=f"auto, cpu, cuda, cuda:1 or mps (default: {shown})"
    )


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Add `--weights`."""
    parser.add_argument(
        "--weights",
        choices=("raw", "ema"),
        help="raw weights, or their moving average of a run with train.ema_decay (default: ema if available)",
    )


def add_out(parser: argparse.ArgumentParser, default: str | Path, *, what: str = "output folder") -> None:
    """Add `--out`, with a path as the default, or a text that describes it."""
    is_path = isinstance(default, Path)
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        metavar="PATH",
        default=default if is_path else None,
        help=f"{what} (default: {default})",
    )


def add_json(parser: argparse.ArgumentParser, what: str) -> None:
    """Add `--json`."""
    parser.add_argument("--json", type=Path, metavar="FILE", help=f"write {what} to this JSON file")


def add_batch_size(parser: argparse.ArgumentParser, default: int | None, shown: str = "%(default)s") -> None:
    """Add `--batch-size`."""
    parser.add_argument(
        "--batch-size", type=positive, metavar="N", default=default, help=f"images per forward pass (default: {shown})"
    )


def add_num_images(parser: argparse.ArgumentParser, default: int, what: str) -> None:
    """Add `--num-images`."""
    parser.add_argument(
        "--num-images", type=positive, metavar="N", default=default, help=f"{what} (default: {default})"
    )


def add_bootstrap_samples(parser: argparse.ArgumentParser) -> None:
    """Add `--bootstrap-samples`; fewer do not show the ends of a 95 % interval."""
    parser.add_argument(
        "--bootstrap-samples",
        type=at_least(100),
        metavar="N",
        default=1000,
        help="bootstrap samples of the val images, at least 100 (default: %(default)s)",
    )


def add_score_threshold(parser: argparse.ArgumentParser, default: float) -> None:
    """Add `--score-threshold`."""
    parser.add_argument(
        "--score-threshold",
        type=fraction,
        metavar="X",
        default=default,
        help="minimum score of a detection, 0 to 1 (default: %(default)s)",
    )


def at_least(minimum: int) -> Callable[[str], int]:
    """Return a function that reads an integer of at least `minimum`."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"must be an integer of at least {minimum}, got {text!r}")
        return int(text)

    return read


positive, not_negative = at_least(1), at_least(0)


def fraction(text: str) -> float:
    """Read a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, got {text!r}")
    return value


def _current(argument: str, names: Mapping[str, str]) -> str:
    option, equals, value = argument.partition("=")
    if option not in names:
        return argument
    print(f"warning: {option} is deprecated and will be removed in {REMOVAL}: use {names[option]}", file=sys.stderr)
    return f"{names[option]}{equals}{value}"
