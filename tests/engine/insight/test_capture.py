"""Captured offsets and masks against those of the layers called alone."""

import pytest
import torch
from torch import nn

from dcn import DeformConv2d
from engine.insight.capture import capture_sampling, deformable_layers
from models import FpnOptions, resnet, resnet_fpn

NAMES = ["layer2.0.conv2", "layer2.1.conv2"]


class Detector(nn.Module):
    """The parts of a detector that have deformable layers."""

    def __init__(self, **options) -> None:
        super().__init__()
        body = resnet("resnet18", dcn_v2_stages=[2], norm="gn", **options)
        self.backbone = resnet_fpn(body, FpnOptions(levels=[2, 3], out_channels=8))

    def forward(self, images):
        return sum(level.sum() for level in self.backbone(images).values())


@pytest.fixture
def make_detector():
    """`make_detector(**options of the ResNet)`: a detector with random offsets and masks."""

    def make(**options) -> Detector:
        torch.manual_seed(0)
        detector = Detector(**options)
        for layer in deformable_layers(detector).values():
            nn.init.normal_(layer.conv_offset.weight, std=0.1)
            nn.init.normal_(layer.conv_offset.bias)
        return detector

    return make


def inputs_of(model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """The input of each deformable layer, recorded by hooks of the test."""
    inputs = {}
    layers = deformable_layers(model)
    hooks = [
        layer.register_forward_pre_hook(lambda _, arguments, name=name: inputs.update({name: arguments[0].detach()}))
        for name, layer in layers.items()
    ]
    model(images)
    for hook in hooks:
        hook.remove()
    return inputs


def count_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_layers_have_short_names_in_their_order(make_detector):
    detector = make_detector()
    layers = deformable_layers(detector)
    assert [*layers] == [*deformable_layers(detector.backbone.body)] == NAMES
    assert layers[NAMES[1]] is detector.backbone.body.layer2[1].conv2
    assert deformable_layers(nn.Conv2d(1, 1, 1)) == {}
    assert [*deformable_layers(nn.Sequential(nn.ReLU(), DeformConv2d(2, 2)))] == ["1"]


@pytest.mark.parametrize("options", [{}, {"modulation": False}, {"offset_groups": 2, "mask_scale": 1.0}])
def test_what_is_seen_is_what_the_layers_predict(make_detector, options):
    detector = make_detector(**options)
    images = torch.rand(2, 3, 48, 80)
    inputs = inputs_of(detector, images)
    with capture_sampling(detector) as seen:
        detector(images).backward()
    assert [*seen] == NAMES
    for name, layer in deformable_layers(detector).items():
        offset, mask = layer.predict(inputs[name])
        assert torch.equal(seen[name].offset, offset)
        assert seen[name].offset.grad_fn is None
        if options.get("modulation", True):
            assert torch.equal(seen[name].mask, mask)
            assert seen[name].mask.grad_fn is None
        else:
            assert seen[name].mask is None
        assert seen[name].input_size == tuple(inputs[name].shape[-2:])


def test_the_last_pass_counts_and_what_did_not_run_is_missing(make_detector):
    detector = make_detector()
    with capture_sampling(detector) as seen:
        assert seen == {}
        detector(torch.rand(1, 3, 64, 64))
        detector(torch.rand(1, 3, 48, 80))
    assert [sampling.input_size for sampling in seen.values()] == [(6, 10)] * 2
    detector(torch.rand(1, 3, 64, 64))  # seen no more
    assert [sampling.input_size for sampling in seen.values()] == [(6, 10)] * 2
    with capture_sampling(detector) as seen:
        detector.backbone.body.layer2[1](torch.rand(1, 128, 6, 10))
    assert [*seen] == NAMES[1:]


class WithHead(Detector):
    """A detector with a deformable layer that runs on both maps of its pyramid and on "pool"."""

    def __init__(self) -> None:
        super().__init__(activation_checkpointing=True)
        self.head = nn.Sequential(nn.ReLU(), DeformConv2d(8, 4, 3, padding=1))

    def forward(self, images):
        return sum(self.head(level).sum() for level in self.backbone(images).values())


def test_a_layer_of_a_head_is_seen_on_every_map_of_the_last_pass():
    torch.manual_seed(0)
    detector = WithHead()
    layer = detector.head[1]
    nn.init.normal_(layer.conv_offset.weight, std=0.1)
    images = torch.rand(1, 3, 48, 80)
    with capture_sampling(detector) as seen:
        detector(torch.rand(2, 3, 64, 64)).backward()
        detector(images).backward()  # the stages are computed again
    assert [*seen] == [*NAMES, "head.1"]
    assert all(sampling.maps == (sampling,) for name, sampling in seen.items() if name in NAMES)
    maps = seen["head.1"].maps
    assert [one.input_size for one in maps] == [(12, 20), (6, 10), (3, 5)]
    for one, level in zip(maps, detector.backbone(images).values(), strict=True):
        offset, mask = layer.predict(level.relu())
        assert torch.equal(one.offset, offset)
        assert torch.equal(one.mask, mask)


def test_the_map_is_that_of_the_input():
    layer = DeformConv2d(2, 2, (3, 1), stride=(2, 3))
    with capture_sampling(nn.Sequential(layer)) as seen:
        layer(torch.rand(1, 2, 7, 11))
    assert (seen["0"].input_size, tuple(seen["0"].offset.shape)) == ((7, 11), (1, 6, 3, 4))


def test_nothing_stays_behind(make_detector):
    detector = make_detector()
    images = torch.rand(1, 3, 48, 80)
    before = detector(images)
    with pytest.raises(ValueError, match="stop"), capture_sampling(detector):
        raise ValueError(f"stop with {count_hooks(detector)} hooks")
    assert count_hooks(detector) == 0
    with capture_sampling(detector):
        assert torch.equal(detector(images), before)
    assert count_hooks(detector) == 0


def test_half_precision_is_seen_in_full(make_detector):
    detector = make_detector()
    with capture_sampling(detector) as seen, torch.autocast("cpu", dtype=torch.bfloat16):
        detector(torch.rand(1, 3, 48, 80))
    for sampling in seen.values():
        assert sampling.offset.dtype == sampling.mask.dtype == torch.float32


def test_stages_that_are_computed_again_are_seen_as_the_others(make_detector):
    images = torch.rand(1, 3, 48, 80)
    results = []
    for recompute in (False, True):
        detector = make_detector(activation_checkpointing=recompute)
        with capture_sampling(detector) as seen:
            detector(images).backward()
        results.append([sampling.offset for sampling in seen.values()])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_a_compiled_network_is_seen_and_not_compiled_again(make_detector):
    compiled = []

    def count(graph, _):
        compiled.append(graph)
        return graph.forward

    detector = make_detector()
    images = torch.rand(2, 3, 48, 80)
    expected = detector(images)
    detector.backbone.compile(dynamic=True, backend=count)
    detector(images).backward()
    before = len(compiled)
    assert before >= 1
    for _ in range(2):
        with capture_sampling(detector) as seen:
            detector(images).backward()
        assert [*seen] == NAMES
        assert torch.allclose(detector(images), expected)
    assert len(compiled) == before
    seen.clear()
    detector(images)
    assert not seen
