"""Entry points of torch.hub: backbones, detectors, and detectors that were trained in this clone.

A program that loads them may have another package `models`. This clone's package is therefore imported as
`resnet_dcn.models`, its name in the wheel. Every callable without a leading underscore is an entry point, so this file
imports modules instead of their names.
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
    """Import a module of this clone; raise `ImportError` if the program has imported another module of this name."""
    module = importlib.import_module(name)
    file = pathlib.Path(module.__file__ or module.__path__[0]).resolve()
    if _ROOT not in file.parents:
        raise ImportError(
            f"torch.hub loads {name} from {_ROOT}, but this program has already imported it from {file.parent}; use "
            "only one of them, or load the other in a separate process"
        )
    return module


_import("dcn")
_models = _import("resnet_dcn.models")
_options = _import("resnet_dcn.models.options")
# Options of all detectors in addition to their own, and options of detectors with deformable heads.
_INPUT = ("min_size", "max_size", "channels", "mean", "std")
_DCN = ("dcn_backend", "modulation", "offset_groups", "mask_scale")


def resnet(name: str = "resnet50", *, weights: str | None = None, **options: object) -> torch.nn.Module:
    """Build a torchvision ResNet, or its ResNet-D variant ("resnet50_vd"), with deformable stages.

    Args:
        name: One of `resnet_dcn.models.RESNETS`.
        weights: ImageNet weights: a name of torchvision's weights, such as "DEFAULT", or a file (./weights.pth). None
            initialises the network randomly.
        options: `dcn_v2_stages=[2, 3, 4]`, `dcn_every`, `modulation`, `offset_groups`, `mask_scale`, `norm`,
            `frozen_stages` and the other options of `resnet_dcn.models.resnet`.

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
        path: Run folder, such as "runs/demo_dcn", or checkpoint.
        weights: "raw" or "ema". None loads the EMA weights if the checkpoint has them, which its metrics refer to.

    Returns:
        The detector, on the CPU and in eval mode. It maps a list of images, `(channels, H, W)` in [0, 1], to a list of
            dicts with `boxes` (xyxy pixels), `labels`, `scores` and, from detectors with masks, `masks`. Label 1 is the
            first of its `class_names`.
    """
    return _models.load_detector(path, weights=weights)


def _keywords(function: collections.abc.Callable) -> list[str]:
    """Return the names of a function's keyword-only arguments."""
    return [p.name for p in inspect.signature(function).parameters.values() if p.kind == p.KEYWORD_ONLY]


def _dcn_entry(name: str) -> collections.abc.Callable:
    def entry(*, dcn_v2_stages: collections.abc.Sequence[int] = (2, 3, 4), **options: object) -> torch.nn.Module:
        return resnet(name, dcn_v2_stages=dcn_v2_stages, **options)

    entry.__doc__ = f"""Build {name} with DCNv2 in stages 2..4 (C3..C5); the options are those of `resnet`."""
    return entry


def _detector_entry(name: str, spec: _models.DetectorSpec) -> collections.abc.Callable:
    head = [*_options.field_annotations(spec.options)]
    # a head with deformable layers also has the settings of these layers
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
        _options.check_options(options, [*_INPUT, *head, *dcn], name)
        model = {"detector": name, "fpn": fpn, name: {key: options[key] for key in head if key in options}}
        model["backbone"] = {key: options[key] for key in dcn[1:] if key in options}
        model["dcn_backend"] = options.get("dcn_backend", "auto")
        data = {key: options[key] for key in _INPUT if key in options}
        body = resnet(**{"in_channels": data.get("channels", 3)} | backbone)
        return _models.build_detector({"model": model, "data": data}, num_classes, body=body)

    lines = [f"        {key}: {' '.join(text.split())}" for key, text in _options.field_docs(spec.options).items()]
    entry.__doc__ = f"""Build {name} on a ResNet and a feature pyramid; the heads have random weights.

    Args:
        num_classes: Number of foreground classes, without the background.
        backbone: Options of the entry point `resnet`, such as {{"name": "resnet50", "dcn_v2_stages": [2, 3, 4]}}.
        fpn: Options of `resnet_dcn.models.FpnOptions`, such as {{"out_channels": 128}}.
        options: `min_size` and `max_size` of images in evaluation, `channels` of images that are not RGB with their
            `mean` and `std`, and the options of the heads.

    {spec.build.__doc__}
    Options:
{chr(10).join(lines)}"""
    return entry


globals().update({f"{name}_dcn": _dcn_entry(name) for name in _models.RESNETS})
globals().update({name: _detector_entry(name, spec) for name, spec in _models.DETECTORS.items()})
