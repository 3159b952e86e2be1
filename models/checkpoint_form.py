"""Form of a checkpoint: the type and range of each entry."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from .shown import shown
from .state_dict import check_weights

_MAX_VALUES = 100_000  # of a config or of metrics
_MAX_DEPTH = 20


class Form(NamedTuple):
    """Condition on a value.

    Attributes:
        text: The condition in words, as in "a whole number from 0".
        holds: Whether a value fulfils it.
        parts: Returns name, value and form of each part of a value that fulfils it.
    """

    text: str
    holds: Callable[[Any], bool]
    parts: Callable[[Any], Iterable[tuple[Any, Any, "Form"]]] = lambda _: ()


def _optional(form: Form) -> Form:
    return Form(
        f"{form.text} or None",
        lambda value: value is None or form.holds(value),
        lambda value: () if value is None else form.parts(value),
    )


def _mapping(key: Form, value: Form) -> Form:
    return Form(
        "a mapping",
        lambda given: isinstance(given, Mapping),
        lambda given: [
            *(("a key", name, key) for name in given if not key.holds(name)),
            *((name, part, value) for name, part in given.items()),
        ],
    )


def _entries(needed: Collection[str], **forms: Form) -> Form:
    """Form of a mapping with named entries, some of which are needed; others are allowed."""
    return Form(
        f"a mapping with {' and '.join(needed)}" if needed else "a mapping",
        lambda given: isinstance(given, Mapping) and {*needed} <= given.keys(),
        lambda given: [(name, given[name], form) for name, form in forms.items() if name in given],
    )


def _list(item: Form, least: int = 0) -> Form:
    return Form(
        "a list with at least one entry" if least else "a list",
        lambda given: isinstance(given, list | tuple) and len(given) >= least,
        lambda given: [(index, part, item) for index, part in enumerate(given)],
    )


def _is_plain(value: Any) -> bool:
    """Whether a value consists of text, numbers, lists and mappings, and would not grow without bound when written."""
    sizes: dict[int, float] = {}

    def size(part: Any, depth: int) -> float:
        if isinstance(part, str | int | float | None):
            return 1
        if depth == 0 or not isinstance(part, Mapping | list | tuple):
            return math.inf
        if id(part) not in sizes:  # the same list may be there many times
            sizes[id(part)] = math.inf  # a list in itself
            inner = [*part, *part.values()] if isinstance(part, Mapping) else part
            sizes[id(part)] = 1 + sum(size(item, depth - 1) for item in inner)
        return sizes[id(part)]

    return isinstance(value, Mapping) and size(value, _MAX_DEPTH) <= _MAX_VALUES


_TEXT = Form("text", lambda value: isinstance(value, str))
_COUNT = Form("a whole number from 0 to 2**53", lambda value: type(value) is int and 0 <= value <= 2**53)
_SIZE = Form("a whole number from 1 to 2**53", lambda value: type(value) is int and 1 <= value <= 2**53)
_ID = Form("a whole number", lambda value: type(value) is int and abs(value) <= 2**63)
_NUMBER = Form("a number", lambda value: type(value) is float or (type(value) is int and abs(value) < 2**1023))
_PLAIN = Form(f"a mapping of at most {_MAX_VALUES} plain values", _is_plain)
_WEIGHTS = Form(
    "a mapping of names to tensors",
    lambda value: isinstance(value, Mapping) and all(isinstance(key, str) for key in value),
)
_SLOT = Form("a tensor, a number or None", lambda value: value is None or isinstance(value, Tensor | int | float))
_PER_CLASS = _mapping(_TEXT, _NUMBER)
_OPTIONAL_METRICS = {"per_class": _PER_CLASS, "score_threshold": _NUMBER, "per_class_score_threshold": _PER_CLASS}
_NUMBERS = _entries(["AP", "AP50", "AP75"], AP=_NUMBER, AP50=_NUMBER, AP75=_NUMBER, **_OPTIONAL_METRICS)
_METRICS = Form(_NUMBERS.text, lambda value: _NUMBERS.holds(value) and _is_plain(value), _NUMBERS.parts)

_SCALER = ("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker")

_LOSS_TREND = _entries(
    ["train", "val", "parting", "lowest"],
    train=_optional(_NUMBER),
    val=_optional(_NUMBER),
    parting=_COUNT,
    lowest=_optional(_NUMBER),
)

FORMS: dict[str, Form] = {
    "config": Form(_PLAIN.text, _is_plain, _entries((), model=_PLAIN, data=_PLAIN, train=_PLAIN).parts),
    "class_names": _list(_TEXT, least=1),
    "category_ids": _list(_ID, least=1),
    "model": _WEIGHTS,
    "ema": _optional(_entries(["model"], model=_WEIGHTS, updates=_COUNT)),
    "step": _COUNT,
    "epoch": _COUNT,
    "batch": _COUNT,
    "metrics": _optional(_METRICS),
    "last_eval_step": _optional(_COUNT),
    "best_ap": _NUMBER,
    "evals_without_improvement": _COUNT,
    "optimizer": _optional(
        _entries(
            ["state", "param_groups"],
            state=_mapping(_COUNT, _mapping(_TEXT, _SLOT)),
            param_groups=_list(_entries(["params"], params=_list(_COUNT))),
        )
    ),
    "scaler": Form(
        f"an empty mapping or one with {', '.join(_SCALER)}",
        lambda value: isinstance(value, Mapping) and (not value or {*_SCALER} <= value.keys()),
        _mapping(_TEXT, _NUMBER).parts,
    ),
    "overflows": _COUNT,
    "unreadable": _mapping(_TEXT, _COUNT),
    "running_mean": _entries(["sums", "count"], sums=_mapping(_TEXT, _NUMBER), count=_COUNT),
    "losses_since_eval": _entries(["sums", "count"], sums=_mapping(_TEXT, _NUMBER), count=_COUNT),
    "loss_trend": _LOSS_TREND,
    "images_in_step": _SIZE,
    "parameters": _COUNT,
    "annotations": _mapping(_TEXT, _TEXT),
    "converted_from": _TEXT,
}
# Entries that are needed to build a detector, to use a run or a converted detector, to compare runs, and to resume
DETECTOR = ("config", "class_names", "model")
TRAINED = (*DETECTOR, "category_ids", "ema", "step")
_ENDED = ("epoch", "metrics", "last_eval_step", "evals_without_improvement")
RUN = (*TRAINED, *_ENDED, "images_in_step", "parameters", "annotations")
RESUMED = (*RUN, "batch", "best_ap", "optimizer", "scaler", "overflows", "unreadable", "running_mean")


def check_form(state: Mapping[Any, Any], name: str, needed: Collection[str]) -> None:
    """Check the entries of a checkpoint that are needed or present.

    Args:
        state: Content of the checkpoint.
        name: Its name, as in "checkpoint last.pt".
        needed: Keys that it must have.

    Raises:
        ValueError: If an entry is missing or has another form; the message has the key, the condition and the value.
    """
    for key, form in FORMS.items():
        if key in state:
            _check(state[key], form, key, name)
        elif key in needed:
            raise ValueError(f"{name} must contain {key!r}, {form.text}; it contains {shown([*state])}")
    ids, names = state.get("category_ids"), state.get("class_names")
    if ids is not None and names is not None and (len(ids) != len(names) or len({*ids}) < len(ids)):
        raise ValueError(
            f"{name} must contain a different category id for each class, got {shown(ids)} for {shown(names)}"
        )
    if state.get("last_eval_step") is not None and state.get("metrics", {}) is None:
        raise ValueError(
            f"metrics in {name} must not be None, because last_eval_step is {shown(state['last_eval_step'])}"
        )
    for key, tensors in (("model", state.get("model")), ("ema", state.get("ema"))):
        if tensors is not None:
            check_weights(tensors if key == "model" else tensors["model"], f"{key!r} in {name}")
    for index, slots in (state.get("optimizer") or {"state": {}})["state"].items():
        check_weights(
            {key: value for key, value in slots.items() if isinstance(value, Tensor)},
            f"the optimizer state {index} in {name}",
        )


def _check(value: Any, form: Form, key: str, name: str) -> None:
    if not form.holds(value):
        raise ValueError(f"{key} in {name} must be {form.text}, got {shown(value)}")
    for part, inner, its_form in form.parts(value):
        _check(inner, its_form, f"{key}.{shown(part)}", name)
