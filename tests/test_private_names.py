"""Private names of PyTorch and torchvision that the project uses; a new release may change them without notice."""

import importlib
import inspect

import pytest
import torch
import torchvision  # noqa: F401  registers its operators
from torch.utils.data import DataLoader

# the first parameters, in the order used here
PARAMETERS = {
    "torch.nn.modules.utils._pair": ["x"],
    "torch.nn.modules.batchnorm._BatchNorm": ["num_features"],
    "torchvision.models.detection._utils.BoxCoder": ["weights", "bbox_xform_clip"],
    "torchvision.models.detection._utils.Matcher": ["high_threshold", "low_threshold", "allow_low_quality_matches"],
    "torchvision.ops.poolers.LevelMapper": ["k_min", "k_max", "canonical_scale", "canonical_level"],
}
OPERATORS = {
    "torchvision._deform_conv2d_backward": (
        "grad input weight offset mask bias stride_h stride_w pad_h pad_w dilation_h dilation_w groups offset_groups "
        "use_mask"
    ),
    "aten._embedding_bag_per_sample_weights_backward": "grad weight indices offsets offset2bag mode padding_idx",
    "aten._foreach_lerp_.Scalar": "self tensors1 weight",
    "aten._foreach_copy_": "self src non_blocking",
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_classes_and_functions(name):
    path, _, last = name.rpartition(".")
    found = getattr(importlib.import_module(path), last, None)
    assert found is not None, f"this release has no {name}: see who imports it"
    wanted = PARAMETERS[name]
    assert [*inspect.signature(found).parameters][: len(wanted)] == wanted, (
        f"{name} takes other arguments: see its calls"
    )


@pytest.mark.parametrize("name", OPERATORS)
def test_operators(name):
    library, operator, *overload = name.split(".")
    packet = getattr(getattr(torch.ops, library), operator, None)
    assert packet is not None, f"this release has no operator {name}: see who calls it"
    found = getattr(packet, *overload or ["default"])._schema.arguments
    assert " ".join(a.name for a in found) == OPERATORS[name], f"operator {name} takes other arguments: see its calls"


def test_workers_of_a_loader():
    """data/workers.py finds workers by these names, and PyTorch's signal handler by its module."""
    loader = DataLoader([0, 1], num_workers=1, persistent_workers=True)
    assert loader._iterator is None
    assert [*loader]
    assert all(worker.is_alive() for worker in loader._iterator._workers)
    importlib.import_module("torch.utils.data._utils.signal_handling")
