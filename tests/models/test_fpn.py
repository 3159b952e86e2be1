"""The pyramid's maps: names, sizes, channels and errors."""

import pytest
import torch

from models import FpnOptions, replaced_convs, resnet, resnet_fpn
from models.fpn import level_names, map_strides


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("levels", [[2, 3, 4, 5], [3, 4, 5], [2, 3], [4]])
def test_maps(name, levels):
    pyramid = resnet_fpn(resnet(name), FpnOptions(levels=levels, out_channels=24))
    with torch.no_grad():
        maps = pyramid(torch.zeros(1, 3, 128, 64))
    assert list(maps) == [*(f"p{level}" for level in levels), "pool"]
    assert level_names(pyramid) == [f"p{level}" for level in levels]
    assert list(map_strides(pyramid)) == list(maps)
    assert pyramid.out_channels == 24
    for key, stride in zip(maps, [*(2**level for level in levels), 2 ** (levels[-1] + 1)], strict=True):
        assert tuple(maps[key].shape) == (1, 24, 128 // stride, 64 // stride), key


@pytest.mark.parametrize(("kind", "source"), [("p6p7", "p5"), ("p6p7_from_c5", "c5")])
@pytest.mark.parametrize("channels", [24, 512])  # 512, as C5: torchvision compares the numbers of channels
def test_levels_6_and_7(kind, source, channels):
    pyramid = resnet_fpn(
        resnet("resnet18"), FpnOptions(levels=[3, 4, 5], out_channels=channels, extra_levels=kind)
    ).double()
    image = torch.rand(1, 3, 256, 128, dtype=torch.float64)
    with torch.no_grad():
        maps, stages = pyramid(image), pyramid.body(image)
    assert list(maps) == list(map_strides(pyramid)) == ["p3", "p4", "p5", "p6", "p7"]
    assert level_names(pyramid) == ["p3", "p4", "p5"]
    for key, stride in map_strides(pyramid).items():
        assert tuple(maps[key].shape) == (1, channels, 256 // stride, 128 // stride), key
    assert [*map_strides(pyramid).values()] == [8, 16, 32, 64, 128]
    p6, p7 = pyramid.fpn.extra_blocks.p6, pyramid.fpn.extra_blocks.p7
    below = maps["p5"] if source == "p5" else stages["p5"]
    expected = torch.nn.functional.conv2d(below, p6.weight, p6.bias, stride=2, padding=1)
    torch.testing.assert_close(maps["p6"], expected)
    expected = torch.nn.functional.conv2d(expected.clamp(min=0), p7.weight, p7.bias, stride=2, padding=1)
    torch.testing.assert_close(maps["p7"], expected)


@pytest.mark.parametrize("kind", ["p6p7", "p6p7_from_c5"])
def test_levels_6_and_7_follow_level_5(kind):
    message = rf"`levels` must end with 5 for `extra_levels` {kind}, which adds P6 and P7, got \[2, 3\]"
    with pytest.raises(ValueError, match=message):
        resnet_fpn(resnet("resnet18"), FpnOptions(levels=[2, 3], extra_levels=kind))


def test_extra_levels_that_do_not_exist():
    with pytest.raises(ValueError, match="unknown extra levels 'p6', known: pool, p6p7, p6p7_from_c5"):
        resnet_fpn(resnet("resnet18"), FpnOptions(extra_levels="p6"))


def test_level_comes_from_its_stage():
    network = resnet("resnet18")
    pyramid = resnet_fpn(network, FpnOptions(levels=[3, 4], out_channels=8))
    seen = {}
    for stage in (2, 3):
        getattr(network, f"layer{stage}").register_forward_hook(
            lambda module, inputs, output, stage=stage: seen.update({f"p{stage + 1}": output})
        )
    with torch.no_grad():
        maps = pyramid.body(torch.randn(1, 3, 64, 64))
    assert list(maps) == list(seen) == ["p3", "p4"]
    assert all(torch.equal(maps[key], seen[key]) for key in maps)


def test_stages_above_the_last_level_are_dropped():
    pyramid = resnet_fpn(resnet("resnet18", dcn_v2_stages=[2]), FpnOptions(levels=[2, 3]))
    names = {name for name, _ in pyramid.body.named_children()}
    assert {"conv1", "layer1", "layer2"} <= names
    assert not {"layer3", "layer4", "fc"} & names
    assert [row.layer for row in replaced_convs(pyramid)] == ["layer2"]


@pytest.mark.parametrize(("levels", "stage"), [([2, 3, 4], 4), ([2], 4), ([2, 3], 3)])
def test_levels_that_exclude_a_deformable_stage(levels, stage):
    network = resnet("resnet18", dcn_v2_stages=[stage])
    message = (
        rf"`levels` must include {stage + 1}, because `dcn_v2_stages` contains stage {stage} \(C{stage + 1}\), got"
    )
    with pytest.raises(ValueError, match=message):
        resnet_fpn(network, FpnOptions(levels=levels))


@pytest.mark.parametrize("levels", [[], [1, 2], [5, 6], [2, 4], [3, 2], [2, 2]])
def test_levels_that_are_not_consecutive(levels):
    with pytest.raises(ValueError, match=rf"consecutive, ascending and from 2 to 5, got \[{str(levels)[1:-1]}\]"):
        resnet_fpn(resnet("resnet18"), FpnOptions(levels=levels))


def test_channels_below_one():
    with pytest.raises(ValueError, match="`out_channels` must be at least 1, got 0"):
        resnet_fpn(resnet("resnet18"), FpnOptions(out_channels=0))
