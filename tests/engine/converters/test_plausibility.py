"""A wrong guess of the input format shows in the statistics of the first batch norm."""

import pytest
import torch
import torch.nn.functional as F

from engine.converters.arithmetic import INPUT_FORMATS, fold_input
from engine.converters.plausibility import _photograph, doubt_about_input


@pytest.fixture(scope="module")
def stem():
    """A first convolution for normalised RGB, with the statistics of its outputs."""
    generator = torch.Generator().manual_seed(1)
    conv = torch.randn(64, 3, 7, 7, generator=generator, dtype=torch.float64)
    variance = F.conv2d(_photograph(), conv, stride=2).var((0, 2, 3))
    return conv, variance * torch.rand(64, generator=generator, dtype=torch.float64).mul(2).exp()


@pytest.mark.parametrize("true", INPUT_FORMATS)
@pytest.mark.parametrize("assumed", INPUT_FORMATS)
@pytest.mark.parametrize("prefix", ["", "backbone.body."])
def test_formats_of_another_scale_are_doubted(true, assumed, prefix, stem):
    conv, variance = stem
    theirs = conv.flip(1) if INPUT_FORMATS[true][0] else conv
    theirs = theirs / (255 * torch.tensor([0.229, 0.224, 0.225])).view(1, 3, 1, 1) if INPUT_FORMATS[true][1] else theirs
    tensors = {f"{prefix}conv1.weight": fold_input(theirs, assumed), f"{prefix}bn1.running_var": variance}
    doubt = doubt_about_input(tensors, assumed)
    if INPUT_FORMATS[true][1] == INPUT_FORMATS[assumed][1]:
        assert doubt is None
    else:
        assert f"the input format {assumed} may be wrong, try --input-format" in doubt
        assert true in doubt.split("--input-format")[1]


def test_without_statistics_nothing_is_doubted(stem):
    conv, _ = stem
    assert doubt_about_input({"conv1.weight": conv}, "bgr") is None  # group norm
    folded = {"conv1.weight": 99 * conv, "bn1.running_var": torch.ones(64)}
    assert doubt_about_input(folded, "bgr") is None
