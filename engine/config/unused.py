"""Options of a config that change nothing, since another option decides that nothing uses them.

They are told and not refused: runs that are compared differ in one option, as in r50_dcn.yaml with and without
`model.backbone.dcn_v2_stages=[]`, and what goes with that one stays where it is.
"""

from collections.abc import Sequence

from models import DETECTORS

from .loading import flatten
from .options import RunConfig

_OF_STAGES = ("model.backbone.dcn_every", "model.backbone.recompute_dcn_stages")
_OF_ALL_DEFORMABLE = (
    "model.backbone.modulation",
    "model.backbone.offset_groups",
    "model.backbone.mask_scale",
    "model.dcn_backend",
    "train.offset_lr_factor",
)
_OF_SCHEDULES = {"train.milestones": "step", "train.gamma": "step", "train.min_lr_factor": "cosine"}


def unused_options(config: RunConfig, overrides: Sequence[str] = ()) -> dict[str, str]:
    """Find options that nothing uses, among those that are not at their default.

    Args:
        config: of a run.
        overrides: `key=value` of the command line that went into it. What belongs to the other choice of a detector or
            of a schedule counts only if it stands here: base configs bring it along.

    Returns:
        By dotted key, why nothing uses it.
    """
    model, train, data = config.model, config.train, config.data
    stages = model.backbone.dcn_v2_stages
    deformable = bool(stages) or getattr(getattr(model, model.detector, None), "dcn_convs", 0) > 0
    why: dict[str, str] = {}
    if not stages:
        why |= dict.fromkeys(_OF_STAGES, "model.backbone.dcn_v2_stages is empty")
    if not deformable:
        why |= dict.fromkeys(_OF_ALL_DEFORMABLE, "nothing is deformable")
    elif not model.backbone.modulation:
        why["model.backbone.mask_scale"] = "DCNv1 has no mask"
    if data.large_scale_jitter and not isinstance(data.min_size, int):
        why["data.min_size"] = "data.large_scale_jitter scales in training, and evaluation uses the last size alone"
    others = tuple(f"model.{name}." for name in DETECTORS if name != model.detector)
    changed = _changed(config)
    unchosen = {key: f"model.detector is {model.detector}" for key in changed if key.startswith(others)}
    schedule = _OF_SCHEDULES.items()
    unchosen |= {key: f"train.schedule is {train.schedule}" for key, kind in schedule if kind != train.schedule}
    if not train.warmup_steps:
        unchosen["train.warmup_factor"] = "train.warmup_steps is 0"
    why |= {key: reason for key, reason in unchosen.items() if _is_said(key, overrides)}
    return {key: reason for key, reason in why.items() if key in changed}


def unused_overrides(config: RunConfig, overrides: Sequence[str]) -> dict[str, str]:
    """Find those of the command line alone, for tools that take the config of a run."""
    return {key: why for key, why in unused_options(config, overrides).items() if _is_said(key, overrides)}


def describe_unused(unused: dict[str, str]) -> str:
    """Say in words what `unused_options` found."""
    return "\n".join(["these options change nothing here:", *(f"  - {key}: {why}" for key, why in unused.items())])


def _changed(config: RunConfig) -> set[str]:
    """Keys whose values are not the defaults, and all of the data set."""
    values = dict(flatten(config.model_dump()))
    defaults = dict(flatten(RunConfig.model_construct(data=None).model_dump()))
    return {key for key, value in values.items() if value != defaults.get(key)}


def _is_said(key: str, overrides: Sequence[str]) -> bool:
    """Whether the command line gives a key, by itself or with its section."""
    return any(f"{key}.".startswith(f"{override.partition('=')[0]}.") for override in overrides)
