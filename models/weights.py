"""Pretrained weights for a backbone, from torchvision or from a local file."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.hub import get_dir
from torchvision.models import get_model_weights
from torchvision.models.resnet import ResNet

from .resnet import VD


class LoadReport(NamedTuple):
    """What became of the tensors: keys `new` in the network stay as initialised, `dropped` ones were not needed."""

    loaded: int
    new: list[str]
    dropped: list[str]


def load_backbone_weights(network: ResNet, name: str, weights: str) -> LoadReport:
    """Load ImageNet weights into a ResNet of `models.resnet`.

    Args:
        network: the ResNet, not yet under an FPN.
        name: of the ResNet.
        weights: "DEFAULT" or another name of torchvision's weights for it ("IMAGENET1K_V1"), which torchvision
            downloads and caches; or a file with a state dict that has the keys of `models.resnet`.

    Raises:
        ValueError: if there are no such weights, they cannot be downloaded, or do not fit the network.
    """
    state = _read_file(Path(weights)) if is_file_name(weights) else _download(name, weights)
    own = network.state_dict()
    wrong = [key for key in own if key in state and state[key].shape != own[key].shape and not key.startswith("fc.")]
    missing = [key for key in own if key not in state and not _may_be_new(key)]
    for problem, keys in (("have another shape for", wrong), ("lack", missing)):
        if keys:
            raise ValueError(
                f"weights {weights!r} do not fit {name}: they {problem} {len(keys)} tensors, first {keys[0]!r}"
            )
    taken = {key: tensor for key, tensor in state.items() if key in own and own[key].shape == tensor.shape}
    network.load_state_dict(taken, strict=False)
    return LoadReport(len(taken), [key for key in own if key not in taken], [key for key in state if key not in taken])


def is_file_name(weights: str) -> bool:
    """Whether weights are meant as a file, and not as one of torchvision's names."""
    return bool(Path(weights).suffix) or "/" in weights


def _may_be_new(key: str) -> bool:
    """Tensors that ImageNet weights need not have: those of DCN, a classifier, and counters."""
    return ".conv_offset." in key or key.startswith("fc.") or key.endswith("num_batches_tracked")


def _read_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"weights file {path} does not exist (resolved: {path.resolve()})")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch.load raises a dozen types, by what is broken
        raise ValueError(f"weights file {path} cannot be read as a state dict: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"weights file {path} must hold a plain state dict of tensors with torchvision's keys")
    return state


def _download(name: str, weights: str) -> dict[str, Tensor]:
    if name.endswith(VD):
        raise ValueError(
            f"torchvision has no weights for {name}, got {weights!r}: give a file whose state dict has the keys of "
            "models.resnet, as in ./weights.pth (those of timm's resnet50d fit resnet50_vd), or null (random start)"
        )
    choices = get_model_weights(name)
    if weights != "DEFAULT" and weights not in choices.__members__:
        known = ", ".join(["DEFAULT", *choices.__members__])
        raise ValueError(
            f"torchvision has no weights {weights!r} for {name}, known: {known}; or give a file, as in ./weights.pth"
        )
    entry = choices[weights]
    try:
        return entry.get_state_dict(progress=True, check_hash=True)
    except Exception as error:
        # no network, another checksum, or a broken file in the cache, which torch.load raises a dozen types for
        raise ValueError(
            f"the weights {weights} of {name} could not be had from {entry.url} ({error}). Without a network, put that "
            f"file into {get_dir()}/checkpoints/, or name a local file or null (random start) as model.backbone.weights"
        ) from error
