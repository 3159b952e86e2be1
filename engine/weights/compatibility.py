"""Whether a checkpoint fits what it is used for; the messages name what differs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models import DETECTORS
from models.options import Affects

from ..config import ModelConfig, flatten, keys_that_affect
from ..display import counted
from ..runs import CheckpointError


def check_categories(
    state: dict[str, Any], class_names: list[str], category_ids: list[int], path: Path, annotations: Path
) -> None:
    """Check that a checkpoint was trained on the categories it is used with.

    Raises:
        CheckpointError: if ids or names differ, with the first difference.
    """
    trained = list(zip(state["category_ids"], state["class_names"], strict=True))
    wanted = list(zip(category_ids, class_names, strict=True))
    if trained == wanted:
        return
    first = next(((a, b) for a, b in zip(trained, wanted, strict=False) if a != b), None)
    difference = (
        f"the first that differs is {first[0]} in the checkpoint and {first[1]} in the file"
        if first
        else "one is the start of the other"
    )
    raise CheckpointError(
        f"the categories of checkpoint {path} ({len(trained)}) are not those of {annotations} ({len(wanted)}): "
        f"{difference}"
    )


def model_differences(saved: Mapping[str, Any], asked: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Compare the models of two configs, plain values; what changes neither tensors nor their meaning is left out.

    Options that did not exist yet when the first was written have their defaults, and those of other detectors than the
    second one's do not matter.

    Returns:
        (dotted key, value of the first, value of the second) of each option that differs.
    """
    first, second = (dict(flatten({"model": values["model"]})) for values in (saved, asked))
    first = dict(flatten({"model": ModelConfig().model_dump(mode="json")})) | first
    unused = [f"model.{name}." for name in {*DETECTORS} - {second["model.detector"]}]
    if not DETECTORS[second["model.detector"]].uses_fpn:
        unused.append("model.fpn.")
    network = keys_that_affect(Affects.MEANING, Affects.NETWORK)
    return [
        (key, first[key], second[key])
        for key in second
        if key in network and first[key] != second[key] and not key.startswith(tuple(unused))
    ]


def check_same_model(state: dict[str, Any], config: dict[str, Any], path: Path) -> None:
    """Check that a checkpoint holds the model that a config describes; see `model_differences`.

    Raises:
        CheckpointError: listing the keys that differ.
    """
    differ = model_differences(state["config"], config)
    if differ:
        lines = [f"  - {key}: {saved!r} in the checkpoint, {asked!r} in the config" for key, saved, asked in differ]
        raise CheckpointError("\n".join([f"{path} is of another model than the config:", *lines]))


def check_same_optimizer(state: dict[str, Any], config: dict[str, Any], path: Path) -> None:
    """Check that a run can go on with what a checkpoint's optimizer has gathered; its rates may differ.

    Raises:
        CheckpointError: if it is another optimizer's, or the weights are converted ones of another framework.
    """
    if "converted_from" in state:
        raise CheckpointError(
            f"{path} holds weights alone, converted from {state['converted_from']}, so no run can go on from it: start "
            f"a new one from it by model.weights={path}"
        )
    saved, asked = (values["train"]["optimizer"] for values in (state["config"], config))
    if saved != asked:
        raise CheckpointError(
            f"{path} was trained by another optimizer than the config asks for, so the run cannot go on:\n"
            f"  - train.optimizer: {saved!r} in the checkpoint, {asked!r} in the config"
        )


def check_same_step(state: dict[str, Any], images_in_step: int, path: Path) -> None:
    """Check that a run goes on with as many images in a step, however they are split.

    Raises:
        CheckpointError: if not, since its place in the epoch and its schedule are counted in steps.
    """
    if state["images_in_step"] != images_in_step:
        raise CheckpointError(
            f"{path} was trained with {counted(state['images_in_step'], 'image')} in a step, so the run cannot go on "
            f"with {images_in_step}: choose train.batch_size x train.grad_accum_steps x processes = "
            f"{state['images_in_step']}"
        )
