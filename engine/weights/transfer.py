"""Initialise a detector from the weights of another detector, which may have other classes."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from data.shown import shown
from models import DETECTORS
from models.checkpoint import choose_weights
from models.detector import ClassRows
from models.options import Affects
from models.weights import FIRST_CONVS, differ_in_channels, is_file_name, spread_channels

from ..config import ModelConfig, check_config, is_used, keys_that_affect, options_that_deform
from ..display import first_lines
from ..runs import CheckpointError
from .compatibility import model_differences
from .loading import load_trained

_OFFSET = ".conv_offset."
_COUNTER = "num_batches_tracked"
_SHOWN = 8  # tensors of a kind in an error


class Source(NamedTuple):
    """Weights of a detector, to initialise another one.

    Attributes:
        path: file of the weights.
        description: kind of weights, as in "averaged weights of step 500".
        tensors: state dict of the detector.
        class_names: names of labels 1, 2, ...
        config: config of the detector as plain values.
    """

    path: Path
    description: str
    tensors: dict[str, Tensor]
    class_names: list[str]
    config: dict[str, Any]


class Transfer(NamedTuple):
    """Report on the weights that a detector loaded from another one, the source.

    Attributes:
        path: file of the source.
        description: kind of weights, as in "averaged weights of step 500".
        copied: number of tensors that were copied whole.
        copied_by_class: number of tensors whose rows were copied for the classes in both detectors.
        matched_classes: names of the classes in both detectors.
        new_classes: names of the classes that only this detector has; their rows keep their initial values.
        dropped_classes: names of the classes that only the source has.
        similar_classes: (new, dropped) names that differ only in case, spaces or punctuation.
        new_offsets: number of deformable layers that are plain in the source; their offsets start at zero.
        options: (key, value in the source, value here) of the model options that differ.
        spread_from: number of channels of the source, if the first convolution was spread over another number, see
            `models.weights.spread_channels`.
    """

    path: Path
    description: str
    copied: int
    copied_by_class: int
    matched_classes: list[str]
    new_classes: list[str]
    dropped_classes: list[str]
    similar_classes: list[tuple[str, str]]
    new_offsets: int
    options: list[tuple[str, Any, Any]]
    spread_from: int | None = None


def check_initial_weights(model: ModelConfig) -> None:
    """Check that a config does not name two files of initial weights.

    A name of torchvision's weights, as in every recipe, is allowed next to `model.weights` and is not used.

    Raises:
        ValueError: if `model.weights` is set and `model.backbone.weights` names a file.
    """
    backbone = model.backbone.weights
    if model.weights and backbone and is_file_name(backbone):
        raise ValueError(
            f"model.weights {model.weights!r} contains a whole detector with its backbone, so model.backbone.weights "
            f"must not name a second file, got {backbone!r}: set one of them to null"
        )


def read_source(weights: str) -> Source:
    """Read the weights of a trained or converted detector; EMA weights if the checkpoint has them.

    Args:
        weights: checkpoint, or run folder, of which last.pt is used.

    Raises:
        ValueError: if the file is missing, damaged or not a checkpoint of this project.
    """
    try:
        path, _, state = load_trained(Path(weights))
    except CheckpointError as error:
        raise ValueError(
            f"model.weights must name a checkpoint of tools/train.py or of tools/convert.py --config "
            f"(use model.backbone.weights for a backbone): {error}"
        ) from error
    is_averaged = choose_weights(state, None, path) == "ema"
    description = f"{'averaged ' * is_averaged}weights of step {state['step']}"
    if "converted_from" in state:
        description = f"converted from {state['converted_from']}"
    tensors = state["ema"]["model"] if is_averaged else state["model"]
    return Source(path, description, tensors, state["class_names"], state["config"])


def load_matching(model: nn.Module, source: Source, class_names: Sequence[str], config: Mapping[str, Any]) -> Transfer:
    """Load the weights of another detector of the same architecture; classes are matched by name.

    Rows of other classes keep their initial values. Layers that are deformable here and plain in the source keep
    offsets of zero: with `mask_scale` 2, or DCNv1, they start as the plain layers.

    Args:
        model: initialised detector.
        source: weights to load.
        class_names: names of the model's labels 1, 2, ...
        config: config of the model as plain values.

    Returns:
        A report.

    Raises:
        ValueError: if tensors are missing, unexpected or of other shapes, or if an option gives them another meaning.
            The model is unchanged then.
    """
    own = model.state_dict()
    source, spread_from = _spread(source, own)
    theirs = source.tensors
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
        source.description,
        copied=len(taken) - by_class,
        copied_by_class=by_class,
        matched_classes=[name for index, name in enumerate(class_names) if index in here],
        new_classes=new,
        dropped_classes=dropped,
        similar_classes=[(name, spelt[_plain(name)]) for name in new if _plain(name) in spelt],
        new_offsets=sum(f"{_OFFSET}weight" in key for key in own.keys() - theirs.keys()),
        options=differ,
        spread_from=spread_from,
    )


def _spread(source: Source, own: Mapping[str, Tensor]) -> tuple[Source, int | None]:
    """Spread the first convolution of a source over the channels of a detector; return the number that it had."""
    for key in (f"backbone.body.{name}" for name in FIRST_CONVS):
        theirs = source.tensors.get(key)
        if theirs is not None and key in own and differ_in_channels(theirs, own[key]):
            spread = spread_channels(theirs, own[key].shape[1])
            return source._replace(tensors=source.tensors | {key: spread}), theirs.shape[1]
    return source, None


def _matching_classes(theirs: Sequence[str], ours: Sequence[str]) -> list[tuple[int, int]]:
    """Return the index pairs of classes with the same name; repeated names are paired in order."""
    there, here = (
        {(name, names[:index].count(name)): index for index, name in enumerate(names)} for names in (theirs, ours)
    )
    return [(there[name], place) for name, place in here.items() if name in there]


def _plain(name: str) -> str:
    """Return a name in lower case without spaces and punctuation."""
    return re.sub(r"[\W_]", "", name.casefold())


class _Layout(NamedTuple):
    """Arrangement of a tensor's rows: by anchor, then by class, then by output of a class."""

    anchors: int
    each: int
    background: bool


def _layout(
    key: str, theirs: Tensor, own: Tensor, class_rows: Mapping[str, ClassRows], their_classes: int, classes: int
) -> _Layout | None:
    """Return the row layout of two tensors that differ only in their number of classes.

    Returns:
        None if the tensors have no rows per class, or do not fit.
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
    """Raise `ValueError` with the options and tensors that differ, unless the state dicts match."""
    theirs = source.tensors
    missing = [key for key in own if key not in theirs and _OFFSET not in key and not key.endswith(_COUNTER)]
    unused = [key for key in theirs if key not in own and not key.endswith(_COUNTER)]
    shapes = [key for key, layout in layouts.items() if layout is None and own[key].shape != theirs[key].shape]
    if not (missing or unused or shapes):
        return
    lines = [f"the weights of {source.path} do not fit the config's detector:", *_option_lines(differ)]
    for what, keys in (
        ("tensors have other shapes", shapes),
        ("tensors of the config's detector are missing in the file", missing),
        ("tensors of the file are unexpected in the config's detector", unused),
    ):
        if keys:
            tensors = [f"{key} {_describe_shapes(theirs.get(key), own.get(key))}" for key in keys]
            lines += [f"  - {len(keys)} {what}:", *first_lines(tensors, _SHOWN)]
    if any(_OFFSET in key for key in unused):
        lines.append(
            "Deformable layers can be added to a plain detector but not removed: without offsets the other weights "
            f"would compute something else. Set {' and '.join(sorted(options_that_deform()))} to the values of the file"
        )
    raise ValueError("\n".join(lines))


def _check_meaning(source: Source, differ: Sequence[tuple[str, Any, Any]]) -> None:
    """Raise `ValueError` if the same tensors would compute something else with the options of the config."""
    keys, config = keys_that_affect(Affects.MEANING), check_config(source.config, str(source.path))
    wrong = [option for option in differ if option[0] in keys and is_used(config, option[0])]
    if wrong:
        head = f"with these options of the config, the weights of {source.path} would compute something else:"
        raise ValueError("\n".join([head, *_option_lines(wrong)]))


def _option_lines(options: Sequence[tuple[str, Any, Any]]) -> list[str]:
    return [f"  - {key}: {shown(there)} in the file, {shown(here)} in the config" for key, there, here in options]


def _describe_shapes(theirs: Tensor | None, own: Tensor | None) -> str:
    places = {"in the file": theirs, "in the config": own}
    return ", ".join(f"{[*tensor.shape]} {where}" for where, tensor in places.items() if tensor is not None)
