"""Statistics of deformable layers against a plain loop over their points, and the warnings."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dcn import DeformConv2d
from engine.insight.capture import SamplingRecord
from engine.insight.health import Health, measure_gradients, measure_sampling, tag_statistics


def statistics(layer: DeformConv2d, sampling: SamplingRecord) -> dict[str, float]:
    return {name: value.item() for name, value in measure_sampling(layer, sampling).items()}


def out_size(layer: DeformConv2d, size: tuple[int, int]) -> tuple[int, int]:
    return tuple(layer.conv_offset(torch.zeros(1, layer.in_channels, *size)).shape[-2:])


def make_sampling(layer, size, *, batch=1, dy=0.0, dx=0.0, mask=None) -> SamplingRecord:
    """All points of a layer moved by the same offset."""
    out = out_size(layer, size)
    offset = torch.zeros(batch, layer.offset_channels, *out)
    offset[:, 0::2], offset[:, 1::2] = dy, dx
    return SamplingRecord(offset, None if mask is None else torch.full((batch, layer.mask_channels, *out), mask), size)


def counted(layer: DeformConv2d, sampling: SamplingRecord) -> dict[str, float]:
    """The statistics, point by point."""
    height, width = sampling.input_size
    lengths, outside, regular_outside = [], 0, 0
    batch, _, out_h, out_w = sampling.offset.shape
    kernel_h, kernel_w = layer.kernel_size
    for image, group, row, column in itertools.product(
        range(batch), range(layer.offset_groups), range(out_h), range(out_w)
    ):
        for point, (i, j) in enumerate(itertools.product(range(kernel_h), range(kernel_w))):
            channel = 2 * (group * kernel_h * kernel_w + point)
            dy, dx = sampling.offset[image, channel : channel + 2, row, column].tolist()
            lengths.append(math.sqrt(dy * dy + dx * dx))
            y = row * layer.stride[0] - layer.padding[0] + i * layer.dilation[0]
            x = column * layer.stride[1] - layer.padding[1] + j * layer.dilation[1]
            regular_outside += not (0 <= y < height and 0 <= x < width)
            outside += not (-0.5 <= y + dy <= height - 0.5 and -0.5 <= x + dx <= width - 0.5)
    found = {
        "offset_mean_px": sum(lengths) / len(lengths),
        "offset_p95_px": np.quantile(lengths, 0.95, method="lower"),
        "offset_max_px": max(lengths),
        "outside_frac": outside / len(lengths),
        "outside_frac_vs_regular": (outside - regular_outside) / len(lengths),
    }
    if sampling.mask is not None:
        mask = sampling.mask.double().numpy()
        low = np.count_nonzero(mask < 0.1) / mask.size
        found |= {"mask_mean": mask.mean(), "mask_std": mask.std(), "mask_frac_lt_0.1": low}
    return found


pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@given(
    kernel=pairs,
    stride=pairs,
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=pairs,
    groups=st.integers(1, 2),
    batch=st.integers(1, 2),
    modulation=st.booleans(),
    size=st.sampled_from([(7, 11), (12, 8)]),
    spread=st.sampled_from([0.0, 0.3, 3.0, 30.0]),
    seed=st.integers(0, 1000),
)
def test_statistics_are_those_of_a_loop(
    kernel, stride, padding, dilation, groups, batch, modulation, size, spread, seed
):  # the largest kernel just fits into the smallest image
    layer = DeformConv2d(
        2, 2, kernel, stride, padding, dilation, offset_groups=groups, modulation=modulation, mask_scale=2.0
    )
    out = out_size(layer, size)
    draw = torch.Generator().manual_seed(seed)
    offset = spread * torch.randn(batch, layer.offset_channels, *out, generator=draw)
    mask = 2 * torch.randn(batch, layer.mask_channels, *out, generator=draw).mul(3).sigmoid() if modulation else None
    if seed % 2:
        offset = offset.contiguous(memory_format=torch.channels_last)
    sampling = SamplingRecord(offset, mask, size)
    assert statistics(layer, sampling) == pytest.approx(counted(layer, sampling), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("modulation", [True, False])
def test_statistics_of_a_head_are_over_all_maps(modulation):
    """All points have the same weight, so a map of twice the size has twice the weight."""
    torch.manual_seed(0)
    layer = DeformConv2d(2, 2, (3, 2), padding=1, modulation=modulation)
    samplings = []
    for size, spread in (((9, 14), 0.5), ((4, 7), 3.0), ((2, 3), 9.0)):
        out = out_size(layer, size)
        mask = 2 * torch.rand(2, layer.mask_channels, *out) if modulation else None
        samplings.append(SamplingRecord(spread * torch.randn(2, layer.offset_channels, *out), mask, size))
    found = statistics(layer, samplings[0]._replace(more=(*samplings[1:],)))
    single = [counted(layer, sampling) for sampling in samplings]
    counts = np.array([sampling.offset.numel() for sampling in samplings])
    weights = counts / counts.sum()
    for name in ("offset_mean_px", "outside_frac", "outside_frac_vs_regular", "mask_mean", "mask_frac_lt_0.1"):
        if name in found:
            assert found[name] == pytest.approx(weights @ [one[name] for one in single], rel=1e-5), name
    lengths = np.concatenate([s.offset.unflatten(1, (-1, 2)).norm(dim=2).flatten().numpy() for s in samplings])
    assert found["offset_p95_px"] == pytest.approx(np.quantile(lengths, 0.95, method="lower"), rel=1e-6)
    assert found["offset_max_px"] == pytest.approx(max(one["offset_max_px"] for one in single), rel=1e-6)
    assert ("mask_std" in found) == modulation
    if modulation:
        masks = np.concatenate([sampling.mask.flatten().numpy() for sampling in samplings])
        assert found["mask_std"] == pytest.approx(masks.std(), rel=1e-5)


def test_known_numbers():
    layer = DeformConv2d(1, 1, (1, 2), modulation=False)
    # 5 x 20 outputs of 2 points; 9 of 200 offsets are longer than (3, 4), and are outside
    sampling = make_sampling(layer, (5, 21))
    offset = sampling.offset.flatten()
    assert offset.numel() == 400
    places = sampling.offset[0].unflatten(0, (2, 2))
    places[0, 0, 0, :8], places[0, 1, 0, :8] = 3, 4  # still inside: rows 0 -> 3, columns up to 7 -> 11
    places[1, :, 4, :9] = torch.tensor([60.0, -80.0])[:, None]
    found = statistics(layer, sampling)
    expected = {"offset_mean_px": (8 * 5 + 9 * 100) / 200, "offset_p95_px": 5, "offset_max_px": 100}
    assert found == pytest.approx(expected | {"outside_frac": 9 / 200, "outside_frac_vs_regular": 9 / 200})


@pytest.mark.parametrize(
    ("dy", "dx", "rows", "columns"),
    [
        (0, 0, 4 + 5 + 4, 6 + 7 + 6),
        (0.5, -0.5, 5 + 5 + 4, 6 + 7 + 7),  # the outer edges of the outermost pixels are inside
        (0.51, -0.51, 5 + 4 + 3, 5 + 6 + 7),
        (1, 1, 5 + 4 + 3, 7 + 6 + 5),
        (0, -7.6, 4 + 5 + 4, 0),
    ],
)
def test_what_is_outside(dy, dx, rows, columns):
    """A 3x3 kernel with padding 1 on 5 x 7 pixels: the fraction inside, by rows and columns of the kernel."""
    layer = DeformConv2d(1, 1, 3, padding=1, modulation=False)
    found = statistics(layer, make_sampling(layer, (5, 7), dy=dy, dx=dx))
    inside, regular_inside = (rows / 15) * (columns / 21), (13 / 15) * (19 / 21)
    assert found["outside_frac"] == pytest.approx(1 - inside, abs=1e-6)
    assert found["outside_frac_vs_regular"] == pytest.approx(regular_inside - inside, abs=1e-6)
    if (dy, dx) == (0, 0):
        assert found["outside_frac_vs_regular"] == 0


def test_many_numbers_are_no_trouble():
    layer = DeformConv2d(1, 1, 3, padding=1, modulation=False)
    offset = torch.zeros(1, 18, 1024, 2048)  # 19 million points, more than `torch.quantile` may take
    offset[0, 0, :64] = torch.arange(64 * 2048).view(64, 2048)
    found = statistics(layer, SamplingRecord(offset, None, (1024, 2048)))
    assert (found["offset_p95_px"], found["offset_max_px"]) == (0, 64 * 2048 - 1)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_outside(number):
    layer = DeformConv2d(1, 1, 3)
    sampling = make_sampling(layer, (5, 7), mask=0.5)
    sampling.offset[0, 5, 1, 2] = number
    sampling.mask[0, 1, 1, 1] = math.nan
    found = statistics(layer, sampling)
    assert found["outside_frac"] == pytest.approx(1 / (9 * 15))
    assert not math.isfinite(found["offset_max_px"])
    assert found["offset_p95_px"] == pytest.approx(number if math.isnan(number) else 0, nan_ok=True)
    assert math.isnan(found["mask_mean"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_norms_are_those_of_autograd(dtype):
    torch.manual_seed(0)
    layer = DeformConv2d(3, 4, (3, 2), padding=1, bias=True).to(dtype)
    nn.init.normal_(layer.conv_offset.weight, std=0.1)
    nn.init.normal_(layer.conv_offset.bias)
    x, direction = torch.rand(2, 3, 7, 9, dtype=dtype), torch.randn(2, 4, 7, 10, dtype=dtype)
    assert measure_gradients(layer) == {}
    parts = [layer.conv_offset.weight, layer.conv_offset.bias, layer.weight]
    weight, bias, own = torch.autograd.grad((layer(x) * direction).sum(), parts)
    (layer(x) * direction).sum().backward()
    offset = math.sqrt(weight.square().sum() + bias.square().sum())
    expected = {
        "grad_norm_conv_offset": offset,
        "grad_norm_weight": math.sqrt(own.square().sum()),
        "grad_ratio": offset / math.sqrt(own.square().sum()),
    }
    found = {name: value.item() for name, value in measure_gradients(layer).items()}
    assert found == pytest.approx(expected, rel=1e-5)
    layer.weight.grad = None
    assert [*measure_gradients(layer)] == ["grad_norm_conv_offset"]
    layer.conv_offset.weight.grad = layer.conv_offset.bias.grad = None
    layer.weight.grad = own
    assert [*measure_gradients(layer)] == ["grad_norm_weight"]


def test_tags():
    layers = {
        "layer3.0.conv2": {"offset_mean_px": 1.0, "offset_max_px": 2.0, "mask_mean": 0.5},
        "layer4.1.conv2": {"offset_mean_px": 2.0, "offset_max_px": 9.0},
    }
    assert tag_statistics(layers) == {
        "dcn_offset_mean_px/mean": 1.5,
        "dcn_offset_max_px/max": 9,
        "dcn_mask_mean/mean": 0.5,
        "dcn_offset_mean_px/layer3.0.conv2": 1,
        "dcn_offset_mean_px/layer4.1.conv2": 2,
        "dcn_offset_max_px/layer3.0.conv2": 2,
        "dcn_offset_max_px/layer4.1.conv2": 9,
        "dcn_mask_mean/layer3.0.conv2": 0.5,
    }
    assert tag_statistics({}) == {}


@pytest.fixture
def make_network():
    """`make_network(px, ...)`: deformable layers on a map of 6 x 9 that all move their points `px` to the right."""

    def make(*moves: float, modulation: bool = True) -> nn.Sequential:
        layers = [DeformConv2d(2, 2, 3, padding=1, modulation=modulation) for _ in moves]
        for layer, px in zip(layers, moves, strict=True):
            nn.init.constant_(layer.conv_offset.bias[1 : layer.offset_channels : 2], px)
        return nn.Sequential(*layers)

    return make


def run(health: Health, network: nn.Module, due: bool = True):
    network.zero_grad()
    with health.capture(due) as seen:
        network(torch.rand(1, 2, 6, 9)).square().sum().backward()
    return seen


def test_a_step_is_reported(make_network):
    network = make_network(0.25, 3)
    health = Health(network, total_steps=1000, warmup_steps=0)
    seen = run(health, network)
    report = health.report(1, seen)
    assert report.warnings == []
    for number, (name, layer) in enumerate(network.named_children()):
        for statistic, value in (measure_sampling(layer, seen[name]) | measure_gradients(layer)).items():
            assert report.scalars[f"dcn_{statistic}/{name}"] == pytest.approx(value.item()), number
    assert report.scalars["dcn_offset_mean_px/mean"] == pytest.approx(1.625)
    assert report.scalars["dcn_offset_max_px/max"] == pytest.approx(3)
    assert len(report.scalars) == 3 * 11
    shown = health.histograms(seen)
    assert [*shown] == ["dcn_offset_px/0", "dcn_offset_px/1", "dcn_mask/0", "dcn_mask/1"]
    assert torch.equal(shown["dcn_offset_px/1"], seen["1"].offset)
    assert torch.equal(shown["dcn_mask/1"], seen["1"].mask)


def test_what_a_head_predicts_on_all_maps_is_reported_and_shown():
    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = DeformConv2d(2, 2, 3, padding=1)
            nn.init.constant_(layer.conv_offset.bias[: layer.offset_channels : 2], -7.0)
            self.head = nn.Sequential(layer)

        def forward(self, images):
            return torch.cat([self.head(images).flatten(), self.head(images[:, :, ::2, ::3]).flatten()])

    network = Pyramid()
    health = Health(network, total_steps=1000, warmup_steps=0)
    seen = run(health, network)
    shown = health.histograms(seen)
    assert {tag: values.numel() for tag, values in shown.items()} == {
        "dcn_offset_px/head.0": 18 * (6 * 9 + 3 * 3),
        "dcn_mask/head.0": 9 * (6 * 9 + 3 * 3),
    }
    assert shown["dcn_offset_px/head.0"].mean().item() == -3.5
    report = health.report(1, seen)
    assert report.scalars["dcn_offset_mean_px/head.0"] == 7
    assert "95th percentile of |offset|: 7 pixels on maps of up to 6x9)" in report.warnings[0]


def test_without_modulation_there_is_no_mask(make_network):
    network = make_network(1, modulation=False)
    health = Health(network, total_steps=1000, warmup_steps=0)
    seen = run(health, network)
    assert not [tag for tag in health.report(1, seen).scalars if "mask" in tag]
    assert [*health.histograms(seen)] == ["dcn_offset_px/0"]


def test_nothing_is_reported_without_deformable_layers(make_network):
    network = make_network(0)
    plain = nn.Sequential(nn.Conv2d(2, 2, 3))
    for model, ran, due in ((network, network, False), (None, network, True), (plain, plain, True)):
        health = Health(model, total_steps=1, warmup_steps=0)
        seen = run(health, ran, due)
        assert not seen
        assert health.report(1000, seen) == ({}, [])
        assert health.histograms(seen) == {}


@pytest.mark.parametrize(
    ("total", "warmup", "moved_by"), [(1000, 0, 200), (1000, 500, 500), (1001, 0, 201), (300, 20, 100), (50, 0, 100)]
)
def test_offsets_have_a_while_to_move(make_network, total, warmup, moved_by):
    network = make_network(0, 0.0099, 0.02)
    health = Health(network, total_steps=total, warmup_steps=warmup)
    assert health.moved_by == moved_by
    assert health.report(moved_by - 1, run(health, network)).warnings == []
    (warning,) = health.report(moved_by, run(health, network)).warnings
    assert warning == (
        f"offsets are still close to 0 after {moved_by} steps: mean |offset| in pixels is 0 in 0, 0.0099 in 1. Below "
        "0.01 px a layer samples like a plain convolution. Try a higher train.offset_lr_factor or train.lr, pretrained "
        "model.backbone.weights, or a longer run"
    )
    assert health.report(moved_by + 1, run(health, network)).warnings == []  # once


def test_offsets_that_are_frozen_need_not_move(make_network):
    network = make_network(0)
    network[0].conv_offset.requires_grad_(False)
    health = Health(network, total_steps=1, warmup_steps=0)
    assert health.report(500, run(health, network)).warnings == []


@pytest.mark.parametrize(("px", "warned"), [(1, False), (3, False), (4, True), (-4, True), (9, True), (1e6, True)])
def test_offsets_that_leave_the_map_cause_a_warning(make_network, px, warned):
    """Each pixel adds 16/18 of a ninth to the fraction; the first moves most points of the padding inside."""
    network = make_network(px, 0.5)
    health = Health(network, total_steps=1000, warmup_steps=0)
    report = health.report(7, run(health, network))
    assert bool(report.warnings) is warned
    if warned:
        (warning,) = report.warnings
        share, added = (
            report.scalars[f"dcn_{statistic}/0"] for statistic in ("outside_frac", "outside_frac_vs_regular")
        )
        assert warning == (
            "offsets leave the feature map, where the layer reads zeros. Sampling points outside at step 7: "
            f"{100 * share:.0f} % in 0 (regular grid: {100 * (share - added):.0f} %; 95th percentile of |offset|: "
            f"{abs(px):.3g} pixels on a map of 6x9). Try a lower train.offset_lr_factor, train.lr or "
            "train.clip_grad_norm, or more train.warmup_steps"
        )
        assert health.report(8, run(health, network)).warnings == []  # once


def test_offsets_as_large_as_the_map_cause_a_warning(make_network):
    """The fraction does not show it for points that are outside already, in the padding."""
    layer = DeformConv2d(1, 1, 1, padding=20)
    network = nn.Sequential(layer)
    nn.init.constant_(layer.conv_offset.bias[:1], 10)
    health = Health(network, total_steps=1000, warmup_steps=0)
    with health.capture(True) as seen:
        network(torch.rand(1, 1, 6, 9))
    assert abs(health.report(1, seen).scalars["dcn_outside_frac_vs_regular/0"]) < 0.25
    health = Health(network, total_steps=1000, warmup_steps=0)
    assert len(health.report(1, seen).warnings) == 1
    with torch.no_grad():
        layer.conv_offset.bias[:1] = 8.9
    health = Health(network, total_steps=1000, warmup_steps=0)
    with health.capture(True) as seen:
        network(torch.rand(1, 1, 6, 9))
    assert health.report(1, seen).warnings == []


def test_of_many_layers_some_are_named(make_network):
    network = make_network(*[0] * 8)
    health = Health(network, total_steps=1, warmup_steps=0)
    (warning,) = health.report(500, run(health, network)).warnings
    assert "is 0 in 0, 0 in 1, 0 in 2, 0 in 3, 0 in 4 and 3 more layers. Below" in warning


def test_a_broken_offset_ends_nothing(make_network):
    network = make_network(math.nan, math.inf)
    health = Health(network, total_steps=1, warmup_steps=0)
    report = health.report(500, run(health, network))
    assert math.isnan(report.scalars["dcn_offset_mean_px/0"])
    assert report.scalars["dcn_outside_frac/0"] == 1
    assert len(report.warnings) == 1
