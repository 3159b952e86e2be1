"""Checkpoints: plain dicts of state, written atomically, read as data and never as code."""

import os
from pathlib import Path
from typing import Any

import torch

from .config_file import flatten

FORMAT = 1
# Options of a model that change neither its tensors nor what they mean
_FREE = (
    "dcn_backend",
    "weights",
    "rpn_proposals_train",
    "rpn_proposals_test",
    "rpn_batch_size",
    "box_batch_size",
    "score_threshold",
    "nms_threshold",
    "detections_per_image",
)


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file."""


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint so that `path` always holds a whole one: the old or the new."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        torch.save({"format": FORMAT, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of `save_checkpoint` onto the CPU.

    Raises:
        CheckpointError: if it is missing, cut short, or none of this project's.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist (resolved: {path.resolve()})")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch.load raises a dozen types, by what is broken
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = sorted(state)[:5] if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(f"checkpoint {path} was not written by this project's trainer; it holds {found}")
    return state


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
        f"the {len(trained)} categories of checkpoint {path} are not the {len(wanted)} of {annotations}: {difference}"
    )


def check_same_model(state: dict[str, Any], config: dict[str, Any], path: Path) -> None:
    """Check that a checkpoint holds the model that a config describes; what is not learned may differ.

    Raises:
        CheckpointError: listing the keys that differ.
    """
    saved, asked = (dict(flatten(values["model"])) for values in (state["config"], config))
    differ = [key for key in asked if saved.get(key) != asked[key] and key.rpartition(".")[2] not in _FREE]
    if differ:
        lines = [
            f"  - model.{key}: {saved.get(key)!r} in the checkpoint, {asked[key]!r} in the config" for key in differ
        ]
        raise CheckpointError("\n".join([f"{path} is of another model than the config:", *lines]))


def check_same_optimizer(state: dict[str, Any], config: dict[str, Any], path: Path) -> None:
    """Check that a run can go on with what a checkpoint's optimizer has gathered; its rates may differ.

    Raises:
        CheckpointError: if it is another optimizer's.
    """
    saved, asked = (values["train"]["optimizer"] for values in (state["config"], config))
    if saved != asked:
        raise CheckpointError(
            f"{path} was trained by another optimizer than the config asks for, so the run cannot go on:\n"
            f"  - train.optimizer: {saved!r} in the checkpoint, {asked!r} in the config"
        )
