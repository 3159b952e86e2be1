"""A detector that starts from the weights of another one, whose classes may be others."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from models import DETECTORS
from models.checkpoint import choose_weights
from models.detector import ClassRows
from models.options import Affects
from models.weights import is_file_name

from ..config import ModelConfig, check_config, is_used, keys_that_affect, options_that_deform
from ..display import first_lines
from ..runs import CheckpointError
from .compatibility import model_differences
from .trained import load_trained

_OFFSET = ".conv_offset."
_COUNTER = "num_batches_tracked"
_SHOWN = 8  # tensors of a kind in an error


class Source(NamedTuple):
    """Weights to start from.

    Attributes:
        path: their file.
        told: what they are, as in "averaged weights of step 500".
        tensors: state dict of a detector.
        class_names: of its labels 1, 2, ...
        config: that it was built by, as plain values.
    """

    path: Path
    told: str
    tensors: dict[str, Tensor]
    class_names: list[str]
    config: dict[str, Any]


class Transfer(NamedTuple):
    """What a detector took from another.

    Attributes:
        path: the other one's file.
        told: what its weights are, as in "averaged weights of step 500".
        whole: how many tensors were taken as they are.
        by_class: how many were taken row by row, for the classes that both have.
        kept: names of the classes that were taken over.
        new: names of those that start anew.
        dropped: names of the other one's that have no place.
        alike: (new, dropped) names that differ in case or in what is between their words alone.
        new_offsets: how many deformable layers start with offsets of zero, since the other one's are plain.
        options: (key, value there, value here) of the options of the model that are others.
    """

    path: Path
    told: str
    whole: int
    by_class: int
    kept: list[str]
    new: list[str]
    dropped: list[str]
    alike: list[tuple[str, str]]
    new_offsets: int
    options: list[tuple[str, Any, Any]]


def check_start(model: ModelConfig) -> None:
    """Check that a config does not name two files to start from.

    Raises:
        ValueError: if it does. One of torchvision's names is let through, as it stands in every recipe; it is not read.
    """
    backbone = model.backbone.weights
    if model.weights and backbone and is_file_name(backbone):
        raise ValueError(
            f"model.weights {model.weights!r} holds a whole detector, its backbone too, so that model.backbone.weights "
            f"must not name a file besides, got {backbone!r}: set one of them to null"
        )


def read_source(weights: str) -> Source:
    """Read the weights of a detector: of a run of this project, those that it was judged by, or converted ones.

    Args:
        weights: a checkpoint, or the folder of a run, whose last.pt is used.

    Raises:
        ValueError: if there are none, or the file is damaged or none of this project's.
    """
    try:
        path, _, state = load_trained(Path(weights))
    except CheckpointError as error:
        raise ValueError(
            f"model.weights must name a checkpoint of tools/train.py, or what tools/convert.py --config makes of "
            f"another framework's (a backbone alone goes to model.backbone.weights): {error}"
        ) from error
    is_averaged = choose_weights(state, None, path) == "ema"
    told = f"{'averaged ' * is_averaged}weights of step {state['step']}"
    if "converted_from" in state:
        told = f"converted from {state['converted_from']}"
    tensors = state["ema"]["model"] if is_averaged else state["model"]
    return Source(path, told, tensors, state["class_names"], state["config"])


def take_over(model: nn.Module, source: Source, class_names: Sequence[str], config: Mapping[str, Any]) -> Transfer:
    """Load the weights of another detector of the same architecture, on the classes that both have by name.

    Rows of the other classes stay as the model has them. Layers that are deformable here and plain there keep offsets
    of zero: with `mask_scale` 2, or DCNv1, they start as the plain ones.

    Args:
        model: as initialised.
        source: where to take from.
        class_names: of the model's labels 1, 2, ...
        config: that the model was built by, as plain values.

    Raises:
        ValueError: if tensors are missing, have no place or have other shapes, or mean something else under the config;
            nothing was loaded then.
    """
    own, theirs = model.state_dict(), source.tensors
    differ = model_differences(source.config, config)
    pairs = _matching_classes(source.class_names, class_names)
    class_rows = DETECTORS[config["model"]["detector"]].class_rows
    counts = len(source.class_names), len(class_names)
    layouts = {key: _layout(key, theirs[key], own[key], class_rows, *counts) for key in own if key in theirs}
    _check_fit(source, own, layouts, differ)
    _check_meaning(source, differ)
    taken = {}
    for key, layout in layouts.items():
        taken[key] = theirs[key] if layout is None else _join_rows(theirs[key], own[key], pairs, layout)
    model.load_state_dict(own | taken)
    by_class = sum(layout is not None for layout in layouts.values())
    there, here = ({pair[side] for pair in pairs} for side in (0, 1))
    new = [name for index, name in enumerate(class_names) if index not in here]
    dropped = [name for index, name in enumerate(source.class_names) if index not in there]
    spelt = {_plain(name): name for name in dropped}
    return Transfer(
        source.path,
        source.told,
        whole=len(taken) - by_class,
        by_class=by_class,
        kept=[name for index, name in enumerate(class_names) if index in here],
        new=new,
        dropped=dropped,
        alike=[(name, spelt[_plain(name)]) for name in new if _plain(name) in spelt],
        new_offsets=sum(f"{_OFFSET}weight" in key for key in own.keys() - theirs.keys()),
        options=differ,
    )


def _matching_classes(theirs: Sequence[str], ours: Sequence[str]) -> list[tuple[int, int]]:
    """Pair the places of classes of the same name; of those that stand twice in their order."""
    there, here = (
        {(name, names[:index].count(name)): index for index, name in enumerate(names)} for names in (theirs, ours)
    )
    return [(there[name], place) for name, place in here.items() if name in there]


def _plain(name: str) -> str:
    """A name without case, spaces and signs."""
    return re.sub(r"[\W_]", "", name.casefold())


class _Layout(NamedTuple):
    """How a tensor's rows are arranged: by anchor, by class, and by output of a class."""

    anchors: int
    each: int
    background: bool


def _layout(
    key: str, theirs: Tensor, own: Tensor, class_rows: Mapping[str, ClassRows], their_classes: int, classes: int
) -> _Layout | None:
    """Return the layout of two tensors that have rows by class and else one shape.

    None: they do not depend on the classes, or do not fit.
    """
    kind = next((kind for pattern, kind in class_rows.items() if re.fullmatch(pattern, key)), None)
    if kind is None or own.shape[1:] != theirs.shape[1:]:
        return None
    classes, their_classes = classes + kind.background, their_classes + kind.background
    anchors, each = (len(own) // classes, 1) if kind.each is None else (1, kind.each)
    fits = [len(own), len(theirs)] == [anchors * classes * each, anchors * their_classes * each]
    return _Layout(anchors, each, kind.background) if fits else None


def _join_rows(theirs: Tensor, own: Tensor, pairs: Sequence[tuple[int, int]], layout: _Layout) -> Tensor:
    joined, grid = (tensor.unflatten(0, (layout.anchors, -1, layout.each)) for tensor in (own.clone(), theirs))
    if layout.background:
        pairs = [(0, 0), *((there + 1, here + 1) for there, here in pairs)]
    for there, here in pairs:
        joined[:, here] = grid[:, there].to(joined.dtype)
    return joined.flatten(0, 2)


def _check_fit(
    source: Source,
    own: Mapping[str, Tensor],
    layouts: Mapping[str, _Layout | None],
    differ: Sequence[tuple[str, Any, Any]],
) -> None:
    """Raise `ValueError` with the options and tensors that differ, unless all tensors find each other."""
    theirs = source.tensors
    missing = [key for key in own if key not in theirs and _OFFSET not in key and not key.endswith(_COUNTER)]
    unused = [key for key in theirs if key not in own and not key.endswith(_COUNTER)]
    shapes = [key for key, layout in layouts.items() if layout is None and own[key].shape != theirs[key].shape]
    if not (missing or unused or shapes):
        return
    lines = [f"the weights of {source.path} do not fit the config's detector:", *_told_options(differ)]
    for what, keys in (
        ("tensors have other shapes", shapes),
        ("of the config's tensors are not in the file", missing),
        ("of the file's tensors have no place in the config's detector", unused),
    ):
        if keys:
            told = [f"{key} {_told_shapes(theirs.get(key), own.get(key))}" for key in keys]
            lines += [f"  - {len(keys)} {what}:", *first_lines(told, _SHOWN)]
    if any(_OFFSET in key for key in unused):
        lines.append(
            "Deformable layers can be added to a plain detector, but not taken away: without their offsets the others "
            f"would compute something else. Let {', and '.join(sorted(options_that_deform()))}, hold those of the file"
        )
    raise ValueError("\n".join(lines))


def _check_meaning(source: Source, differ: Sequence[tuple[str, Any, Any]]) -> None:
    """Raise `ValueError` if the same tensors would compute something else by the options of the config."""
    keys, config = keys_that_affect(Affects.MEANING), check_config(source.config, str(source.path))
    wrong = [option for option in differ if option[0] in keys and is_used(config, option[0])]
    if wrong:
        head = f"under these options of the config, the weights of {source.path} would compute something else:"
        raise ValueError("\n".join([head, *_told_options(wrong)]))


def _told_options(options: Sequence[tuple[str, Any, Any]]) -> list[str]:
    return [f"  - {key}: {there!r} in the file, {here!r} in the config" for key, there, here in options]


def _told_shapes(theirs: Tensor | None, own: Tensor | None) -> str:
    told = {"in the file": theirs, "in the config": own}
    return ", ".join(f"{[*tensor.shape]} {where}" for where, tensor in told.items() if tensor is not None)
