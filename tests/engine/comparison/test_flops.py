"""Counts by a loop over the layers of a network, by hand, and by what is published."""

import pytest
import torch
import torchvision
from torch import nn

import dcn
from dcn.triton_backend import unavailable_reason as triton_unavailable_reason
from engine.building.model import build_model
from engine.comparison.flops import count_flops, deform_conv2d_flops
from engine.config.loading import load_config
from models import FpnOptions, resnet, resnet_fpn

BACKENDS = ["torch", "torchvision", "reference", "auto"]


def by_hand(network, batch):
    """Operations of convolutions, deformable ones and linear layers, from the sizes that pass through them."""
    counted = {"plain": 0, "deformable": 0}

    def note(layer, inputs, output):
        positions = output[0, 0].numel() * len(output) if output.dim() == 4 else len(output)
        if isinstance(layer, nn.Linear):
            counted["plain"] += 2 * positions * layer.in_features * layer.out_features
            return
        points = layer.kernel_size[0] * layer.kernel_size[1]
        multiplications = positions * layer.out_channels * (layer.in_channels // layer.groups) * points
        kind = "deformable" if layer in within else "plain"
        counted[kind] += 2 * multiplications
        if isinstance(layer, dcn.DeformConv2d):
            counted[kind] += positions * layer.in_channels * points * (8 if layer.modulation else 7)

    deformable = [m for m in network.modules() if isinstance(m, dcn.DeformConv2d)]
    within = {m for layer in deformable for m in layer.modules()}
    hooks = [
        m.register_forward_hook(note)
        for m in network.modules()
        if isinstance(m, nn.Conv2d | nn.Linear | dcn.DeformConv2d)
    ]
    with torch.no_grad():
        network.eval()(batch)
    for hook in hooks:
        hook.remove()
    return counted["plain"] + counted["deformable"], counted["deformable"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("modulation", [True, False])
def test_one_layer_by_hand(backend, modulation):
    layer = dcn.DeformConv2d(
        12, 8, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2, offset_groups=3, bias=True,
        modulation=modulation, backend=backend,
    )  # fmt: skip
    counted = count_flops(layer, torch.rand(2, 12, 9, 11))
    height, width = 5, 9
    places = 2 * height * width
    predictor = 2 * places * (3 * 3 * 6 if modulation else 3 * 2 * 6) * 12 * 6
    product = 2 * places * 8 * (12 // 2) * 6
    sampling = places * 12 * 6 * (8 if modulation else 7)
    assert counted == (predictor + product + sampling, {"conv_offset": predictor}, predictor + product + sampling)
    assert layer.backend == backend


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["torchvision", "triton"])
def test_a_gpu_counts_the_same(backend):
    layer = dcn.DeformConv2d(12, 8, (3, 2), groups=2, offset_groups=3, backend=backend).cuda()
    images = torch.rand(2, 12, 9, 11)
    if backend == "triton" and (reason := triton_unavailable_reason(images.cuda())):
        pytest.skip(reason)
    counted = count_flops(layer, images.cuda())
    layer.backend = "torch"
    assert counted == count_flops(layer.cpu(), images)


def test_triton_counts_the_same():
    layer = dcn.DeformConv2d(16, 8, (3, 2), groups=2, backend="triton")
    images = torch.rand(1, 16, 5, 7)
    if reason := triton_unavailable_reason(images):
        pytest.skip(reason)
    counted = count_flops(layer, images)
    layer.backend = "torch"
    assert counted == count_flops(layer, images)


@pytest.mark.parametrize("masked", [True, False])
def test_layers_of_torchvision_are_counted(masked):
    class Theirs(nn.Module):
        def __init__(self):
            super().__init__()
            self.predict = nn.Conv2d(4, 2 * 6, (3, 2))
            self.layer = torchvision.ops.DeformConv2d(4, 6, (3, 2), bias=False)

        def forward(self, x):
            return self.layer(x, self.predict(x), torch.ones(len(x), 6, 6, 8) if masked else None)

    counted = count_flops(Theirs(), torch.rand(2, 4, 8, 9))
    places = 2 * 6 * 8
    deformable = places * (2 * 6 * 4 * 6 + 4 * 6 * (8 if masked else 7))
    predictor = 2 * places * 12 * 4 * 6
    assert counted == (predictor + deformable, {"predict": predictor, "layer": deformable}, deformable)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet50", {"dcn_v2_stages": [2, 3, 4]}),
        ("resnet18", {"dcn_v2_stages": [3, 4], "modulation": False, "offset_groups": 4}),
        ("resnext50_32x4d", {"dcn_v2_stages": [4]}),
        ("resnet18", {}),
    ],
)
def test_a_backbone_by_a_loop_over_its_layers(name, options):
    network, batch = resnet(name, **options), torch.rand(2, 3, 70, 90)
    total, deformable = by_hand(network, batch)
    counted = count_flops(network, batch)
    assert (counted.total, counted.deformable) == (total, deformable)
    assert sum(counted.parts.values()) == total
    assert (deformable > 0) == bool(options)


def test_resnet_18_and_50_as_published():
    """Multiply-accumulates of torchvision's table of models, 1.814 and 4.089 billion at 224 x 224."""
    for name, published in (("resnet18", 1.814e9), ("resnet50", 4.089e9)):
        counted = count_flops(torchvision.models.get_model(name), torch.rand(1, 3, 224, 224))
        assert counted.total == pytest.approx(2 * published, rel=1e-3)
        assert counted.parts["fc"] == 2 * 1000 * (512 if name == "resnet18" else 2048)
        assert "bn1" not in counted.parts
        assert counted.deformable == 0


def test_a_deformable_layer_costs_the_convolution_and_its_sampling():
    shapes = (2, 64, 20, 30), (128, 64, 3, 3), (2, 128, 20, 30)
    plain = count_flops(nn.Conv2d(64, 128, 3, padding=1, bias=False), torch.rand(shapes[0])).total
    assert deform_conv2d_flops(*shapes, modulation=False) - plain == 7 * 2 * 64 * 9 * 600
    assert deform_conv2d_flops(*shapes, modulation=True) - plain == 8 * 2 * 64 * 9 * 600


def test_a_detector_by_its_parts(tiny_config):
    config = load_config(tiny_config, ["model.backbone.dcn_v2_stages=[2]", "model.dcn_backend=reference"])
    model, _ = build_model(config.model, config.data, 5)
    images = [torch.rand(3, 60, 80), torch.rand(3, 64, 90)]
    model.train()
    counted = count_flops(model, images)
    assert model.training
    assert list(counted.parts) == ["backbone.body", "backbone.fpn", "rpn", "roi_heads"]
    assert sum(counted.parts.values()) == counted.total
    assert 0 < counted.deformable < counted.parts["backbone.body"]
    batch, _ = model.eval().transform(images)
    total, deformable = by_hand(model.backbone, batch.tensors)
    assert counted.parts["backbone.body"] + counted.parts["backbone.fpn"] == total
    assert counted.deformable == deformable
    # every convolution of the region proposals sees every map of the pyramid
    rpn = sum(by_hand(model.rpn.head.conv, m)[0] for m in model.backbone(batch.tensors).values())
    assert counted.parts["rpn"] > rpn > counted.parts["rpn"] / 2
    plain, _ = build_model(load_config(tiny_config, []).model, config.data, 5)
    assert count_flops(plain, images).deformable == 0
    assert plain.training


def test_compiled_code_is_counted():
    pyramid = resnet_fpn(resnet("resnet18", dcn_v2_stages=[4]), FpnOptions())
    batch = torch.rand(1, 3, 64, 96)
    expected = count_flops(pyramid, batch)
    pyramid.compile(backend="eager")
    pyramid.eval()(batch)
    assert count_flops(pyramid, batch) == expected


def test_no_gradient_is_prepared():
    class Noting(nn.Module):
        def forward(self, x):
            self.inference = torch.is_inference_mode_enabled()
            return x

    model = Noting()
    assert count_flops(model, torch.rand(1)) == (0, {}, 0)
    assert model.inference


def test_modes_and_backends_are_put_back_after_an_error():
    layer = dcn.DeformConv2d(4, 4, backend="reference")
    with pytest.raises(RuntimeError):
        count_flops(layer, torch.rand(1, 3, 8, 8))
    assert (layer.backend, layer.training) == ("reference", True)
