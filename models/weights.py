"""Pretrained weights of a backbone, from torchvision or a local file."""

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.hub import get_dir
from torchvision.models import get_model_weights
from torchvision.models.resnet import ResNet

from .resnet import VD
from .shown import shown
from .state_dict import StateDict, check_weights, find_state_dict
from .weights_file import read_weights_file, unreadable


class LoadReport(NamedTuple):
    """The result of loading weights.

    Attributes:
        loaded: Number of loaded tensors.
        new: Keys of the network that were not in the weights and keep their initial values.
        dropped: Keys of the weights that the network does not use.
        unused: Other networks in the file, see `state_dict.StateDict`.
        spread_from: Number of channels of the weights, if the first convolution was spread over another number, see
            `spread_channels`.
    """

    loaded: int
    new: list[str]
    dropped: list[str]
    unused: Sequence[str] = ()
    spread_from: int | None = None


# The first convolution of a ResNet and of its vd variant
FIRST_CONVS = ("conv1.weight", "conv1.0.weight")


def spread_channels(weight: Tensor, channels: int) -> Tensor:
    """Spread the weights of a first convolution over another number of channels.

    The weights are repeated cyclically: channel 4 has those of red. Copies are divided by their number, as
    in the inflation of https://arxiv.org/abs/1705.07750. With fewer channels, each has an equal part of the sum. The
    response to an image whose channels are equal therefore stays the same, except for rounding.

    Args:
        weight: `(outputs, inputs, kh, kw)`.
        channels: Number of channels of the new weights.

    Returns:
        `(outputs, channels, kh, kw)`.
    """
    inputs = weight.shape[1]
    if channels < inputs:
        return (weight.sum(1, keepdim=True) / channels).expand(-1, channels, -1, -1).contiguous()
    source = torch.arange(channels, device=weight.device) % inputs
    copies = source.bincount(minlength=inputs)[source].to(weight.dtype)
    return weight[:, source] / copies[:, None, None]


def differ_in_channels(weight: Tensor, own: Tensor) -> bool:
    """Whether the weights of two first convolutions differ only in the number of channels."""
    return weight.shape != own.shape and weight.ndim == own.ndim == 4 and weight[:, 0].shape == own[:, 0].shape


def load_backbone_weights(network: ResNet, name: str, weights: str) -> LoadReport:
    """Load ImageNet weights into a ResNet of `models.resnet`.

    Args:
        network: ResNet, without an FPN.
        name: Name of the ResNet.
        weights: Name of torchvision's weights, such as "DEFAULT" or "IMAGENET1K_V1", which torchvision downloads and
            caches; or a file with a state dict with the keys of `models.resnet`. `weights_file.read_weights_file` lists
            the formats of files, and `state_dict.find_state_dict` the containers and prefixes.

    Returns:
        The numbers and keys of loaded, new and dropped tensors.

    Raises:
        ValueError: If the weights are unknown, cannot be downloaded, or do not match the network.
    """
    own = network.state_dict()
    file = Path(os.path.expanduser(weights))  # noqa: PTH111 - Path.expanduser() raises for an unknown user
    found = _read_file(file, own) if is_file_name(weights) else StateDict(_download(name, weights), [])
    state, spread_from = dict(found.tensors), None
    for key in FIRST_CONVS:
        if key in state and key in own and differ_in_channels(state[key], own[key]):
            spread_from = state[key].shape[1]
            state[key] = spread_channels(state[key], own[key].shape[1])
    wrong = [key for key in own if key in state and state[key].shape != own[key].shape and not key.startswith("fc.")]
    missing = [key for key in own if key not in state and not _may_be_new(key)]
    for problem, keys in (("tensors with another shape", wrong), ("missing tensors", missing)):
        if keys:
            is_resnet = "layer1.0.conv1.weight" in state
            hint = "" if is_resnet else "; convert files of other frameworks with tools/convert.py"
            raise ValueError(f"weights {weights!r} do not match {name}: {len(keys)} {problem}, first {keys[0]!r}{hint}")
    taken = {key: tensor for key, tensor in state.items() if key in own and own[key].shape == tensor.shape}
    check_weights(taken, f"weights {weights}")
    network.load_state_dict(taken, strict=False)
    new, dropped = ([key for key in names if key not in taken] for names in (own, state))
    return LoadReport(len(taken), new, dropped, found.unused, spread_from)


def is_file_name(weights: str) -> bool:
    """Return whether weights are a file name, not one of torchvision's names."""
    return bool(Path(weights).suffix) or "/" in weights


def _may_be_new(key: str) -> bool:
    """Return whether ImageNet weights may lack a tensor: of DCN, of the classifier, or a counter."""
    return ".conv_offset." in key or key.startswith("fc.") or key.endswith("num_batches_tracked")


def _read_file(path: Path, wanted: Collection[str]) -> StateDict:
    try:
        content = read_weights_file(path)
        found = find_state_dict(content, wanted)
    except ValueError as error:
        raise ValueError(f"weights file {path} {unreadable(error)}") from error
    if isinstance(content, Mapping) and isinstance(content.get("format"), int) and "class_names" in content:
        raise ValueError(f"weights file {path} is a whole detector of this project: set model.weights to it")
    if not found.tensors:
        raise ValueError(
            f"weights file {path} must contain a state dict of tensors with torchvision's keys, got {shown(content)}"
        )
    return found


def _download(name: str, weights: str) -> dict[str, Tensor]:
    if name.endswith(VD):
        raise ValueError(
            f"torchvision has no weights for {name}, got {weights!r}; use a file with the state-dict keys of "
            "models.resnet, such as ./weights.pth (timm's resnet50d matches resnet50_vd), or null (random weights)"
        )
    choices = get_model_weights(name)
    if weights != "DEFAULT" and weights not in choices.__members__:
        known = ", ".join(["DEFAULT", *choices.__members__])
        raise ValueError(
            f"torchvision has no weights {weights!r} for {name}, known: {known}; or use a file, such as ./weights.pth"
        )
    entry = choices[weights]
    try:
        return entry.get_state_dict(progress=True, check_hash=True)
    except Exception as error:
        # no network, another checksum, or a broken file in the cache: a dozen exception types
        raise ValueError(
            f"the weights {weights} of {name} could not be downloaded from {entry.url} ({error}). Without a network, "
            f"copy that file to {get_dir()}/checkpoints/, or set model.backbone.weights to a local file or null "
            "(random weights)"
        ) from error
