"""Pipelines of Albumentations, from the content of the files that Albumentations writes."""

import importlib.metadata
import os
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from .shown import shortened, shown

_SUPPORTED = "2.0."
_INSTALL = 'pip install "albumentations==2.0.*"'
# of the file's `bbox_params`; format and labels are those of this module
_THRESHOLDS = ("min_area", "min_width", "min_height", "max_accept_ratio")
# what an image has, of all that transforms may ask for
_INPUTS = {"image", "bboxes"}
# They change a mask in another way than by moving its pixels.
_OF_MASKS = ("MaskDropout", "Morphological")


def compose_of(name: str, content: Any, min_visibility: float) -> Any:
    """Return the Compose of a file's content, with the boxes and masks of this project.

    Arguments and errors as of `Pipeline`.
    """
    library = _library()
    compose = content.get("transform") if isinstance(content, dict) else None
    if not isinstance(compose, dict) or compose.get("__class_fullname__") not in ("Compose", "albumentations.Compose"):
        raise ValueError(f"{name} must contain a Compose as albumentations.save() writes it, got {shown(content)}")
    given = compose.get("bbox_params") or {}
    if not isinstance(given, dict):
        raise ValueError(f"{name}: bbox_params must be a mapping or null, got {shown(given)}")
    boxes = {key: given[key] for key in _THRESHOLDS if key in given} | {
        "format": "pascal_voc",
        "label_fields": ["objects"],
        "clip": True,
        "filter_invalid_bboxes": True,
    }
    own = {"bbox_params": boxes, "keypoint_params": None, "additional_targets": {}, "mask_interpolation": 0}
    try:
        boxes["min_visibility"] = max(float(given.get("min_visibility", 0.0)), min_visibility)
        with warnings.catch_warnings():
            # a pipeline that changes only colours
            warnings.filterwarnings("ignore", message="Got processor for")
            # `_problems` has them
            warnings.filterwarnings("ignore", message=".* not valid for transform")
            found = library.from_dict({"transform": compose | own})
    except Exception as error:
        raise ValueError(f"{name} is not a valid pipeline of Albumentations: {reason_of(error)}") from None
    if problems := [*_problems(library, found)]:
        raise ValueError(f"{name} has transforms that cannot be used: {'; '.join(problems)}")
    return found


def _library() -> Any:
    """Import Albumentations."""
    try:
        version = importlib.metadata.version("albumentations")
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(
            f"data.augment.albumentations needs Albumentations, which is not installed: {_INSTALL}"
        ) from None
    if not version.startswith(_SUPPORTED):
        raise ValueError(f"data.augment.albumentations needs Albumentations {_SUPPORTED}x, got {version}: {_INSTALL}")
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks a server for its newest version
    try:
        import albumentations
        import cv2
    except Exception as error:  # of compiled code
        raise ValueError(f"the import of Albumentations failed ({reason_of(error)}): {_INSTALL}") from None
    cv2.setNumThreads(0)  # the loaders have processes; threads of OpenCV do not survive a fork
    return albumentations


def _problems(library: Any, compose: Any) -> Iterator[str]:
    """Yield why transforms of a pipeline cannot be used."""
    for transform in compose.transforms:
        kind = type(transform).__name__
        if isinstance(transform, library.BaseCompose):
            yield from _problems(library, transform)
            continue
        # save() writes `padding` of PadIfNeeded, which it does not read
        if invalid := {*getattr(transform, "invalid_args", ())} - {*transform.to_dict_private()}:
            yield f"{kind} has no argument {', '.join(sorted(invalid))}"
        if isinstance(transform, library.DualTransform) and "bboxes" not in transform.available_keys:
            yield f"{kind} moves pixels without their boxes"
        elif kind in _OF_MASKS:
            yield f"{kind} changes masks"
        elif missing := {*transform.targets_as_params} - _INPUTS:
            yield f"{kind} needs {', '.join(sorted(missing))}"
        if np.any(getattr(transform, "fill_mask", None) or 0):
            yield f"{kind} has fill_mask {shown(transform.fill_mask)}, which must be 0 or null"


def reason_of(error: Exception) -> str:
    """Return an error of the library in one short line."""
    return shortened(" ".join(f"{type(error).__name__}: {error}".split()), 300)
