"""Entry points of torch.hub: backbones, detectors on them, and detectors that were trained in this clone.

A program that loads them may have a folder `models` of its own, imported or not. That of this clone is imported as
`resnet_dcn.models`, the name that the wheel has too. What is callable here and has no underscore is an entry point, so
modules are imported whole.
"""

from __future__ import annotations

import collections.abc
import importlib
import inspect
import pathlib
import types

import torch

dependencies = ["torch", "torchvision"]

_ROOT = pathlib.Path(__file__).resolve().parent


def _import(name: str) -> types.ModuleType:
    """Import a module of this clone, and say so where one of another place is in its place."""
    module = importlib.import_module(name)
    file = pathlib.Path(module.__file__ or module.__path__[0]).resolve()
    if _ROOT not in file.parents:
        raise ImportError(
            f"torch.hub loads {name} from {_ROOT}, but this program has imported the one of {file.parent} before: use "
            "one of them, or load the other in a process of its own"
        )
    return module


_import("dcn")
_models = _import("resnet_dcn.models")
_options = _import("resnet_dcn.models.options")
# Options of all detectors beside those of their heads, and of those whose heads can be deformable.
_SIZES = ("min_size", "max_size")
_DCN = ("dcn_backend", "modulation", "offset_groups", "mask_scale")


def resnet(name: str = "resnet50", *, weights: str | None = None, **options: object) -> torch.nn.Module:
    """Build a ResNet, a torchvision one or its ResNet-D ("resnet50_vd"), with deformable stages.

    Args:
        name: one of `resnet_dcn.models.RESNETS`.
        weights: ImageNet weights: torchvision's name for them, as in "DEFAULT", or a file (./weights.pth); None draws
            random ones.
        options: `dcn_v2_stages=[2, 3, 4]`, `dcn_every`, `modulation`, `offset_groups`, `mask_scale`, `norm`,
            `frozen_stages` and the others of `resnet_dcn.models.resnet`.

    Returns:
        The network, of torchvision's class; `layer1`..`layer4` are its stages.
    """
    options = _models.with_current_names({"model": {"backbone": options}})["model"]["backbone"]
    _options.check_options(options, [*_keywords(resnet), *_keywords(_models.resnet)], "resnet")
    network = _models.resnet(name, **options)
    if weights is not None:
        _models.load_backbone_weights(network, name, weights)
    return network


def detector(path: str, *, weights: str | None = None) -> torch.nn.Module:
    """Load a detector that was trained in a clone, or converted from another framework's weights.

    Args:
        path: folder of a run, as in "runs/demo_dcn", or a checkpoint.
        weights: "raw" or "ema" (their average); None takes the ones that the run was judged by.

    Returns:
        The detector, on the CPU and in eval mode: it maps a list of images, `(3, H, W)` in [0, 1], to a list of dicts
        with `boxes` (xyxy pixels), `labels`, `scores` and, from those that find them, `masks`. Label 1 is the first of
        its `class_names`.
    """
    return _models.load_detector(path, weights=weights)


def _keywords(function: collections.abc.Callable) -> list[str]:
    """Names of what a function takes by keyword alone."""
    return [p.name for p in inspect.signature(function).parameters.values() if p.kind == p.KEYWORD_ONLY]


def _dcn_entry(name: str) -> collections.abc.Callable:
    def entry(*, dcn_v2_stages: collections.abc.Sequence[int] = (2, 3, 4), **options: object) -> torch.nn.Module:
        return resnet(name, dcn_v2_stages=dcn_v2_stages, **options)

    entry.__doc__ = f"""Build {name} with DCNv2 in stages 2..4 (C3..C5); its options are those of `resnet`."""
    return entry


def _detector_entry(name: str, spec: _models.DetectorSpec) -> collections.abc.Callable:
    head = [*_options.field_annotations(spec.options)]
    # a head with deformable layers of its own takes how they are made
    deforms = any(
        _options.Deforms.LAYERS in kind.__metadata__ for kind in _options.field_annotations(spec.options).values()
    )
    dcn = [*_DCN] if deforms else []

    def entry(
        num_classes: int, *, backbone: dict | None = None, fpn: dict | None = None, **options: object
    ) -> torch.nn.Module:
        given = {name: options, "backbone": backbone or {}, "fpn": fpn or {}}
        options, backbone, fpn = _models.with_current_names({"model": given})["model"].values()
        known = ["name", *_keywords(resnet), *_keywords(_models.resnet)]
        _options.check_options(backbone, known, "`backbone`")
        _options.check_options(fpn, [*_options.field_annotations(_models.FpnOptions)], "`fpn`")
        _options.check_options(options, [*_SIZES, *head, *dcn], name)
        model = {"detector": name, "fpn": fpn, name: {key: options[key] for key in head if key in options}}
        model["backbone"] = {key: options[key] for key in dcn[1:] if key in options}
        model["dcn_backend"] = options.get("dcn_backend", "auto")
        sizes = {key: options[key] for key in _SIZES if key in options}
        return _models.build_detector({"model": model, "data": sizes}, num_classes, body=resnet(**backbone))

    lines = [f"        {key}: {' '.join(text.split())}" for key, text in _options.field_docs(spec.options).items()]
    entry.__doc__ = f"""Build {name} on a ResNet and its pyramid; the heads start at random.

    Args:
        num_classes: foreground classes, without background.
        backbone: options of the entry point `resnet`, as in {{"name": "resnet50", "dcn_v2_stages": [2, 3, 4]}}.
        fpn: options of `resnet_dcn.models.FpnOptions`, as in {{"out_channels": 128}}.
        options: `min_size` and `max_size`, to which images are scaled in evaluation, and those of the heads.

    {spec.build.__doc__}
    Options:
{chr(10).join(lines)}"""
    return entry


globals().update({f"{name}_dcn": _dcn_entry(name) for name in _models.RESNETS})
globals().update({name: _detector_entry(name, spec) for name, spec in _models.DETECTORS.items()})
