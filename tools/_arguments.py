"""Command-line arguments that several tools share, and the old spellings of renamed options."""

import argparse
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from data.paths import expanded
from data.shown import shortened, shown
from engine.display import for_people
from models.options import REMOVAL
from models.score_thresholds import BEST
from models.tiling import MAX_OVERLAP, MIN_TILE

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
_SIZES = ("data.min_size", "data.max_size", "data.eval_size", "data.resize")
_VAL = ("data.val", "data.num_workers", "data.check_images", "data.invalid_annotations", "data.on_unreadable_image")
_VAL += ("data.classes", "data.download_hint", "train.batch_size", "eval.max_detections")
_INFERENCE = ("device", "model", *_SIZES, "train.amp", "train.tf32")
# Keys and sections of the config that a tool reads from a trained run; the others have no effect there.
_READ = {
    "eval": (*_INFERENCE, *_VAL, "eval", "tta", "tile"),
    "errors": (*_INFERENCE, *_VAL, "data.train", "tta", "tile"),
    "predict": (*_INFERENCE, "tta", "tile"),
    "visualize": (*_INFERENCE, *_VAL),
    "compare": (*_INFERENCE, *_VAL),
    "export": (*_INFERENCE, *_VAL),
    "check_dataset": ("data", "model", "eval.max_detections"),
}
# Options of the model that only training reads, because a checkpoint has all weights.
_TRAINING = ("model.weights", "model.backbone.weights", "model.backbone.frozen_stages")
_OVERRIDE = re.compile(r"([A-Za-z_]\w*(?:\.\w+)*)=")


class Parser(argparse.ArgumentParser):
    """Parser that records which options are given, and warns of options and config values that are given twice.

    Paths of the type `Path` have `~` expanded, because a shell does not expand it after `=`.

    `refuse_unused` then finds options that the command does not use, also those with the value of their default.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for name in (None, "store"):
            self.register("action", name, _Store)
        self.register("action", "store_true", _StoreTrue)
        self.register("type", Path, expanded)

    def error(self, message: str) -> NoReturn:
        """Print the message for people, and exit with 2."""
        super().error(for_people(message))


class _Store(argparse.Action):
    """Stores a value, and records the option in `given`."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        if option is None:
            _warn_of_repeated_keys(values if isinstance(values, list) else [])
        elif _record(self, namespace):
            _warn(f"{self.option_strings[-1]} is given twice; the last value counts")
        setattr(namespace, self.dest, values)


class _StoreTrue(argparse.Action):
    """Stores True, and records the option in `given`."""

    def __init__(self, option_strings: list[str], dest: str, default: bool = False, **options: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, default=default, **options)

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: Any) -> None:
        _record(self, namespace)
        setattr(namespace, self.dest, True)


def _record(action: argparse.Action, namespace: argparse.Namespace) -> bool:
    """Add an option to those that are given; return whether it was already."""
    before = getattr(namespace, "given", frozenset())
    namespace.given = before | {action.option_strings[-1]}
    return action.option_strings[-1] in before


def _warn_of_repeated_keys(arguments: list[Any]) -> None:
    """Warn of config values that a later argument replaces; mappings are merged."""
    texts = [text for text in arguments if isinstance(text, str) and is_override(text) and "={" not in text]
    for key, count in Counter(text.partition("=")[0] for text in texts).items():
        if count > 1:
            _warn(f"{key} is given twice; the last value counts")


def _warn(message: str) -> None:
    print(f"warning: {for_people(message)}", file=sys.stderr)


def refuse_unused(args: argparse.Namespace, why: str, *options: str) -> None:
    """Raise `ValueError` for an option that is given but has no effect in this command.

    Args:
        args: result of a `Parser`.
        why: reason, after the name of the option, such as "needs --html".
        options: long names of options; "key=value" for config values.
    """
    given = {option: option for option in getattr(args, "given", ())}
    if overrides := getattr(args, "overrides", None):
        given["key=value"] = overrides[0]
    if unused := [given[option] for option in options if option in given]:
        raise ValueError(f"{' and '.join(unused)} {'has' if len(unused) == 1 else 'have'} no effect: {why}")


def is_read(tool: str, key: str) -> bool:
    """Return whether a tool for trained runs reads a key of the config."""
    within = lambda sections: any(f"{key}.".startswith(f"{section}.") for section in sections)  # noqa: E731
    return within(_READ[tool]) and not (tool != "check_dataset" and within(_TRAINING))


def make_parser(description: str | None, epilog: str) -> Parser:
    """Make a parser whose help keeps the line breaks of `epilog`; options cannot be abbreviated."""
    return Parser(
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
    """Split arguments into other arguments and config values.

    An argument of the form name=value, whose name is not a key of the config, is a file or folder if that exists.

    Raises:
        ValueError: if it does not exist.
    """
    from engine.config import guess_key, is_key  # some tools have no config and start faster without it

    others, overrides = [], []
    for argument in arguments:
        match = _OVERRIDE.match(argument)
        if match and is_key(match[1]):
            overrides.append(argument)
        elif match and not os.path.lexists(argument):
            hint = guess_key(match[1])
            raise ValueError(
                f"{shown(argument)} does not exist, and {shortened(match[1])} is not a key of a config{hint}"
            )
        else:
            others.append(str(expanded(argument)) if argument.startswith("~") else argument)
    return others, overrides


def config_values(args: argparse.Namespace, options: Mapping[str, str] | None = None) -> list[str]:
    """Return the config values of a command line, with options that set config values.

    Args:
        args: result of a `Parser`.
        options: config key of each option; `--device` is always one.

    Raises:
        ValueError: if an option and a config value set the same key.
    """
    values = [*args.overrides]
    for option, key in {"--device": "device", **(options or {})}.items():
        value = getattr(args, option.removeprefix("--").replace("-", "_"))
        if value is None:
            continue
        if twice := [text for text in args.overrides if text.partition("=")[0] == key]:
            raise ValueError(f"{option} and {twice[0]} set the same value: give one of them")
        values.append(f"{key}={value}")
    return values


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


def add_score_thresholds(parser: argparse.ArgumentParser, default: float) -> None:
    """Add `--score-threshold` for a score, or for the best score of each class."""
    parser.add_argument(
        "--score-threshold",
        type=_score_threshold,
        metavar="X",
        default=default,
        help="minimum score of a detection, 0 to 1; best: the best score of each class in the last evaluation of the "
        "training; or a file of tools/eval.py --json, for the best scores there (default: %(default)s)",
    )


TILE_OPTIONS = {"--tile": "tile.size", "--overlap": "tile.overlap"}


def add_tiles(parser: argparse.ArgumentParser, what: str, default: str) -> None:
    """Add `--tile` and `--overlap`."""
    parser.add_argument(
        "--tile", type=at_least(MIN_TILE), metavar="N", help=f"{what} tiles of N x N pixels, at least {MIN_TILE}"
    )
    parser.add_argument(
        "--overlap",
        type=overlap_fraction,
        metavar="X",
        help=f"fraction of a tile that neighbours share, 0 to {MAX_OVERLAP} (default: {default})",
    )


def at_least(minimum: int) -> Callable[[str], int]:
    """Return a function that reads an integer of at least `minimum`."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"must be an integer of at least {minimum}, got {text!r}")
        return int(text)

    return read


positive, not_negative = at_least(1), at_least(0)


def up_to(maximum: float) -> Callable[[str], float]:
    """Return a function that reads a number from 0 to `maximum`."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 <= value <= maximum:
            raise argparse.ArgumentTypeError(f"must be a number from 0 to {maximum}, got {text!r}")
        return value

    return read


fraction, overlap_fraction = up_to(1), up_to(MAX_OVERLAP)


def _score_threshold(text: str) -> float | str | Path:
    """Read a number from 0 to 1, "best", or the name of a JSON file."""
    if text == BEST:
        return text
    if text.lower().endswith(".json"):
        return expanded(text)
    try:
        return fraction(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}; it may also be best, or a file that ends in .json") from None


def _current(argument: str, names: Mapping[str, str]) -> str:
    option, equals, value = argument.partition("=")
    if option not in names:
        return argument
    _warn(f"{option} is deprecated and will be removed in {REMOVAL}: use {names[option]}")
    return f"{names[option]}{equals}{value}"
