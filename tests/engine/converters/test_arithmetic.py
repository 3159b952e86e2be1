"""What is folded into tensors, against a plain computation."""

import pytest
import torch
import torch.nn.functional as F

from engine.converters.arithmetic import choose_rows, fold_eps, fold_input, fold_mask_scale, ratio_major


@pytest.mark.parametrize("kind", ["rgb_std", "bgr_std", "bgr"])
def test_the_first_convolution_sees_the_same(kind, input_images):
    weight = torch.randn(4, 3, 7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theirs = F.conv2d(input_images[kind], weight, stride=2, padding=3)
    ours = F.conv2d(input_images["rgb_std"], fold_input(weight, kind), stride=2, padding=3)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_a_first_convolution_of_other_images_raises():
    with pytest.raises(ValueError, match=r"must have 3 input channels, got a weight of shape \[8, 4, 7, 7\]"):
        fold_input(torch.zeros(8, 4, 7, 7), "rgb_std")


def test_an_epsilon_is_folded():
    var = torch.tensor([0.5, 1e-7], dtype=torch.float64)
    for eps in (0.0, 1e-3):
        torch.testing.assert_close(fold_eps(var, eps) + 1e-5, var + eps)


def test_a_mask_scale_is_folded():
    weight = torch.tensor([3.0])
    assert 2 * fold_mask_scale(weight, 1.0, 2.0) == 1 * weight
    assert 1 * fold_mask_scale(weight, 2.0, 1.0) == 2 * weight


def test_rows_are_chosen_within_each_group():
    rows = torch.arange(2 * 3 * 2).view(-1, 1)  # two groups of three classes of two
    chosen = choose_rows(rows, [2, -1, 0], each=2, groups=2, fill=-9)
    assert chosen.flatten().tolist() == [4, 5, -9, -9, 0, 1, 10, 11, -9, -9, 6, 7]


def test_anchors_by_size_become_anchors_by_ratio():
    # outputs 0 and 1 of (size, ratio): size 0 has ratios a, b, c, size 1 too
    rows = torch.tensor([0, 1, 10, 11, 20, 21, 100, 101, 110, 111, 120, 121])
    assert ratio_major(rows, 3, 6).tolist() == [0, 1, 100, 101, 10, 11, 110, 111, 20, 21, 120, 121]
