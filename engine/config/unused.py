"""Find options of a config that nothing uses because of another option.

Unused options cause a warning, not an error, so that you can switch DCN off with `model.backbone.dcn_v2_stages=[]`
without editing the options that belong to it.
"""

from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter

from pydantic.fields import FieldInfo

from models import DETECTORS
from models.detectors import RGB
from models.options import UsedIf

from .loading import flatten
from .options import RunConfig
from .overrides import read_overrides
from .sections import options_of


def unused_options(config: RunConfig, overrides: Sequence[str] = ()) -> dict[str, str]:
    """Find options without effect, among those that differ from their default.

    Args:
        config: config of a run, with the overrides.
        overrides: `key=value` of the command line. Options of other detectors and schedules count only if they are
            given here, because base configs may contain them.

    Returns:
        The reason by dotted key.
    """
    model, data, jitter = config.model, config.data, config.data.augment.large_scale_jitter
    changed, given = changed_options(config), _keys_of(overrides)
    why: dict[str, str] = {}
    if data.weak_last_epochs and not data.augment.strong_keys:
        why["data.weak_last_epochs"] = "no strong augmentation is on (data.augment)"
    if data.channels != RGB:
        why |= {
            f"data.augment.{key}": f"images of {data.channels} channels are not RGB"
            for key in ("grayscale", "jpeg")
            if getattr(data.augment, key)
        }
    if not data.augment.keys_that_cut and _is_given("data.augment.min_visibility", given):
        why["data.augment.min_visibility"] = "no augmentation that cuts boxes is on"
    smallest = min([data.min_size] if isinstance(data.min_size, int) else data.min_size)
    if is_used(config, "data.max_size") and data.max_size < smallest and not jitter:
        why["data.min_size"] = f"data.max_size {data.max_size} is smaller, and decides the size of every image"
    if jitter and not data.weak_last_epochs:
        if data.eval_size:
            why["data.min_size"] = "training uses large_scale_jitter, and evaluation uses data.eval_size"
        elif not isinstance(data.min_size, int):
            why["data.min_size"] = "training uses large_scale_jitter, and evaluation uses only the last size"
    for key, field in options_of(RunConfig).items():
        for mark, reason in _reasons(config, key, field):
            if not mark.if_given or _is_given(key, given):
                why.setdefault(key, reason)
    unchosen = {f"model.{name}.": f"model.detector is {model.detector}" for name in {*DETECTORS} - {model.detector}}
    if not model.spec.uses_fpn:
        unchosen["model.fpn."] = f"{model.detector} has no feature pyramid"
    for section, reason in unchosen.items():
        why |= {key: reason for key in changed if key.startswith(section) and _is_given(key, given)}
    return {key: reason for key, reason in why.items() if key in changed}


def is_used(config: RunConfig, key: str) -> bool:
    """Whether an option has an effect, by the marks at its field."""
    return not any(_reasons(config, key, options_of(RunConfig)[key]))


def _reasons(config: RunConfig, key: str, field: FieldInfo) -> Iterator[tuple[UsedIf, str]]:
    """Yield each mark that makes an option unused, with the reason."""
    for mark in field.metadata:
        if not isinstance(mark, UsedIf):
            continue
        other = mark.option if "." in mark.option else f"{key.rpartition('.')[0]}.{mark.option}"
        value = attrgetter(other)(config)
        if value not in mark.values if mark.values else not value:
            yield mark, mark.otherwise or f"{other} is {'empty' if value == [] else value}"


def unused_overrides(
    config: RunConfig, overrides: Sequence[str], is_read: Callable[[str], bool] = lambda _: True
) -> dict[str, str]:
    """Find unused options of the command line only, for tools that read the config of a run.

    Args:
        config: config of the run, with the overrides.
        overrides: `key=value` of the command line.
        is_read: returns whether the tool reads an option.

    Returns:
        The reason by dotted key.
    """
    given = _keys_of(overrides)
    unread = {key: "this tool does not read it" for key in given if not is_read(key)}
    return unread | {key: why for key, why in unused_options(config, overrides).items() if _is_given(key, given)}


def describe_unused(unused: dict[str, str]) -> str:
    """Format the result of `unused_options`."""
    return "\n".join(["these options have no effect:", *(f"  - {key}: {why}" for key, why in unused.items())])


def changed_options(config: RunConfig) -> set[str]:
    """Return the keys whose values differ from the defaults, and all keys of the data set."""
    values = dict(flatten(config.model_dump()))
    defaults = dict(flatten(RunConfig.model_construct(data=None).model_dump()))
    return {key for key, value in values.items() if value != defaults.get(key)}


def _keys_of(overrides: Sequence[str]) -> list[str]:
    return [key for key, _ in flatten(read_overrides(overrides, is_silent=True))]


def _is_given(key: str, given: Sequence[str]) -> bool:
    """Whether the command line sets an option; a mapping is set by any of its keys."""
    return any(f"{other}.".startswith(f"{key}.") for other in given)
