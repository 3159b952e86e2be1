"""Check that a checkpoint fits its use; the errors list the differences."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from data import unique_names
from data.shown import shown
from models import DETECTORS
from models.checkpoint import check_tensors
from models.options import Affects

from ..config import DataConfig, ModelConfig, flatten, keys_that_affect
from ..display import counted
from ..runs import CheckpointError


def check_categories(
    state: dict[str, Any], class_names: list[str], category_ids: list[int], path: Path, annotations: Path
) -> None:
    """Check that a checkpoint was trained on the categories of an annotation file.

    Raises:
        CheckpointError: if ids or names differ; the message has the first difference.
    """
    # older checkpoints have names without the id that distinguishes categories of the same name
    trained = list(zip(state["category_ids"], unique_names(state["category_ids"], state["class_names"]), strict=True))
    wanted = list(zip(category_ids, class_names, strict=True))
    if trained == wanted:
        return
    first = next(((a, b) for a, b in zip(trained, wanted, strict=False) if a != b), None)
    difference = (
        f"the first difference is {first[0]} in the checkpoint and {first[1]} in the file"
        if first
        else "the longer list starts with the shorter list"
    )
    raise CheckpointError(
        f"the categories of checkpoint {path} ({len(trained)}) differ from those of {annotations} ({len(wanted)}): "
        f"{difference}"
    )


_INPUT = ("channels", "mean", "std")  # options of the data set that belong to the model


def model_differences(saved: Mapping[str, Any], asked: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """List the model options of two configs that differ and change tensors or their meaning.

    Args:
        saved: config of a checkpoint as plain values; missing options have their defaults.
        asked: config as plain values; only the options of its detector count.

    Returns:
        (dotted key, saved value, asked value) of each option that differs.
    """
    first, second = (
        dict(flatten({"model": values["model"]})) | _input_options(values.get("data", {})) for values in (saved, asked)
    )
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


def _input_options(data: Mapping[str, Any]) -> dict[str, Any]:
    return {f"data.{key}": data.get(key, DataConfig.model_fields[key].default) for key in _INPUT}


def check_same_model(state: dict[str, Any], config: dict[str, Any], path: Path) -> None:
    """Check that a checkpoint has the model of a config; see `model_differences`.

    Raises:
        CheckpointError: if options differ; the message lists them.
    """
    differ = model_differences(state["config"], config)
    if differ:
        lines = [
            f"  - {key}: {shown(saved)} in the checkpoint, {shown(asked)} in the config" for key, saved, asked in differ
        ]
        raise CheckpointError("\n".join([f"{path} contains another model than the config describes:", *lines]))


def check_same_optimizer(state: dict[str, Any], config: dict[str, Any], path: Path) -> None:
    """Check that a run can resume with the optimizer state of a checkpoint; learning rates may differ.

    Raises:
        CheckpointError: if the state is of another optimizer, or the checkpoint was converted and has no state.
    """
    if "converted_from" in state:
        raise CheckpointError(
            f"{path} was converted from {state['converted_from']} and contains only weights, so it cannot be resumed: "
            f"start a new run with model.weights={path}"
        )
    saved, asked = (values["train"]["optimizer"] for values in (state["config"], config))
    if saved != asked:
        raise CheckpointError(
            f"{path} was trained with another optimizer than the config selects, so it cannot be resumed:\n"
            f"  - train.optimizer: {shown(saved)} in the checkpoint, {shown(asked)} in the config"
        )
    if state.get("optimizer", {}) is None:
        raise CheckpointError(f"{path} contains no state of an optimizer (it is None), so it cannot be resumed")


def check_same_step(state: dict[str, Any], images_in_step: int, path: Path) -> None:
    """Check that a run resumes with the same number of images per step, for any split of the step.

    Raises:
        CheckpointError: if the number differs: the position in the epoch and the schedule are counted in steps.
    """
    if state["images_in_step"] != images_in_step:
        raise CheckpointError(
            f"{path} was trained with {counted(state['images_in_step'], 'image')} per step, so it cannot be resumed "
            f"with {images_in_step}: choose train.batch_size x train.grad_accum_steps x processes = "
            f"{state['images_in_step']}"
        )


def check_same_tensors(state: dict[str, Any], wanted: Mapping[str, Tensor], path: Path) -> None:
    """Check that a checkpoint has the tensors of a model, also as averaged weights, which need their number of updates.

    Raises:
        CheckpointError: if names or shapes differ, or the number of updates is missing.
    """
    check_tensors(state["model"], wanted, path)
    if state["ema"] is not None:
        check_tensors(state["ema"]["model"], wanted, path)
        if "updates" not in state["ema"]:
            raise CheckpointError(f"checkpoint {path} must contain 'updates' in 'ema', a whole number from 0")
