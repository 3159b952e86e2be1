"""`replace_convs` replaces the right convolutions, keeps the outputs, and replaces nothing after an error."""

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torchvision.models import resnet18, resnet50
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.ops import FrozenBatchNorm2d

import dcn
from dcn import DeformConv2d, replace_convs


class Block(nn.Module):
    """A residual block of another project, without batch norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=2, dilation=2, groups=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(self.conv1(x).relu())


class Own(nn.Module):
    """A ResNet of another project, whose blocks have names and whose convolutions have biases."""

    def __init__(self, stages: int = 4) -> None:
        super().__init__()
        for stage in range(1, stages + 1):
            blocks = OrderedDict((f"block{index}", Block(4)) for index in range(stage))
            setattr(self, f"layer{stage}", nn.Sequential(blocks))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for stage in self.children():
            x = stage(x)
        return x


def deformable(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, DeformConv2d)]


def settled(network: nn.Module) -> nn.Module:
    """Return the network in float64 with statistics and biases that are not the initial ones, as after pretraining."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in network.state_dict().items():
        if name.endswith(("bias", "running_mean", "running_var")):
            tensor.uniform_(0.5, 1.5, generator=generator)
    return network.double().eval()


@pytest.mark.parametrize("options", [{}, {"stages": [4, 2], "every": 2, "modulation": False, "offset_groups": 2}])
@pytest.mark.parametrize("make", [resnet18, Own])
def test_same_network_same_weights_same_outputs(make, options):
    network = settled(make())
    x = torch.randn(2, 4 if make is Own else 3, 70, 38, dtype=torch.float64)
    before, expected = network.state_dict(), network(x)
    assert replace_convs(network, **options) is network
    torch.testing.assert_close(network(x), expected, rtol=1e-9, atol=1e-9)
    after = network.state_dict()
    assert all(after[key].data_ptr() == tensor.data_ptr() for key, tensor in before.items())
    assert all(".conv2.conv_offset." in key for key in set(after) - set(before))
    assert all(module.training is False for module in network.modules())
    nn.init.constant_(network.layer4[-1].conv2.conv_offset.bias, 0.7)
    assert not torch.allclose(network(x), expected), "it is deformable now"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {2: [0, 1, 2, 3], 3: [0, 1, 2, 3, 4, 5], 4: [0, 1, 2]}),
        ({"stages": (1,)}, {1: [0, 1, 2]}),
        ({"every": 2}, {2: [1, 3], 3: [1, 3, 5], 4: [0, 2]}),
        ({"every": 3, "stages": [3, 2]}, {2: [0, 3], 3: [2, 5]}),
        ({"every": 100}, {2: [3], 3: [5], 4: [2]}),
        ({"stages": []}, {}),
    ],
)
def test_which_convolutions(options, expected):
    with torch.device("meta"):
        network = replace_convs(resnet50(), **options)
    wanted = [f"layer{stage}.{block}.conv2" for stage, blocks in expected.items() for block in blocks]
    assert deformable(network) == wanted


def test_options_reach_the_layers():
    given = {"modulation": False, "offset_groups": 2, "mask_scale": 1.0, "backend": "reference"}
    layer = replace_convs(Own(), [1], **given).layer1.block0.conv2
    assert {name: getattr(layer, name) for name in given} == given
    assert (layer.padding, layer.dilation, layer.groups) == ((2, 2), (2, 2), 2)


def test_what_is_built_next_draws_the_same_numbers():
    drawn = []
    for stages in ([], [2, 3, 4]):
        torch.manual_seed(0)
        replace_convs(Own(), stages)
        drawn.append(torch.rand(()))
    assert drawn[0] == drawn[1]


def test_frozen_weights_stay_frozen_and_training_continues():
    network = Own()
    network.layer3.requires_grad_(False)
    replace_convs(network.train(), [3])
    assert all(module.training for module in network.modules())
    network(torch.randn(1, 4, 9, 7)).square().mean().backward()
    trained = {name for name, parameter in network.layer3.named_parameters() if parameter.grad is not None}
    assert trained == {f"block{i}.conv2.conv_offset.{part}" for i in range(3) for part in ("weight", "bias")}


def test_inside_torchvisions_detector():
    detector = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3, min_size=64, max_size=96)
    detector.eval()
    image = torch.rand(3, 64, 90)
    expected = copy.deepcopy(detector).double()([image.double()])[0]
    assert len(expected["boxes"])
    dcn.replace_convs(detector.backbone.body, [3, 4], every=3)
    assert deformable(detector) == [f"backbone.body.layer{name}.conv2" for name in ("3.2", "3.5", "4.2")]
    for key, value in detector.double()([image.double()])[0].items():
        torch.testing.assert_close(value, expected[key])
    assert isinstance(detector.backbone.body.layer4[2].bn2, nn.BatchNorm2d | FrozenBatchNorm2d)


def broken(name: str, conv: nn.Module | None) -> nn.Module:
    network = Own()
    setattr(network.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], conv)
    return network


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (
            Own(3),
            {},
            "`network` must be a ResNet with layer1..layer4, got Own without layer4; .*detector.backbone.body",
        ),
        (nn.Sequential(), {}, "got Sequential without layer2"),
        (
            Own(),
            {"stages": [2, 5]},
            r"`stages` must contain only 1, 2, 3 or 4, got \[2, 5\]: 5 is not a valid stage.*write \[2, 3",
        ),
        (Own(), {"stages": (2, 3, 2)}, r"`stages` must contain each stage once, got \[2, 3, 2\]"),
        (Own(), {"stages": 3}, r"`stages` must be a list of stages, as in \[2, 3, 4\], got 3"),
        (
            Own(),
            {"stages": [True]},
            r"`stages` must contain only 1, 2, 3 or 4, got \[True\]: True is not a valid stage",
        ),
        (Own(), {"every": 0}, r"`every` must be at least 1 .*, got 0"),
        (broken("layer3", nn.Sequential()), {}, "layer3 must be a sequence of blocks, got Sequential without any"),
        (broken("layer3.block1.conv2", None), {}, r"layer3\.block1\.conv2 must be a 3x3 nn.Conv2d.*, got nothing"),
        (
            broken("layer3.block1.conv2", nn.Conv2d(4, 4, (3, 5))),
            {},
            r"block1\.conv2 must .* got Conv2d\(4, 4, .*\(3, 5",
        ),
        (broken("layer3.block1.conv2", nn.ReLU()), {}, r"block1\.conv2 must be a 3x3 nn.Conv2d .*, got ReLU\(\)"),
        (broken("layer4.block3.conv2", DeformConv2d(4, 4)), {}, r"layer4\.block3\.conv2 is deformable already"),
        (
            broken("layer4.block3.conv2", nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")),
            {},
            "must be a number of zeros, got reflect",
        ),
        (Own(), {"offset_groups": 3}, "`offset_groups` must divide in_channels = 4, got 3"),
        (Own(), {"backend": "cuda"}, "unknown DCN backend 'cuda'"),
    ],
)
def test_an_error_names_the_layer_and_replaces_nothing(network, options, message):
    before = {name: id(module) for name, module in network.named_modules()}
    with pytest.raises(ValueError, match=message):
        replace_convs(network, **options)
    assert {name: id(module) for name, module in network.named_modules()} == before


def test_replacing_twice_is_an_error():
    network = replace_convs(Own(), [4], every=2)
    with pytest.raises(ValueError, match=r"layer4\.block1\.conv2 is deformable already: replace .* once"):
        replace_convs(network, [3, 4])
    assert deformable(network) == ["layer4.block1.conv2", "layer4.block3.conv2"]


def test_a_parametrized_convolution_is_an_error():
    """Its weight is computed again in every step, unlike a shared tensor."""
    network = Own()
    nn.utils.parametrizations.weight_norm(network.layer2.block0.conv2)
    with pytest.raises(ValueError, match=r"layer2\.block0\.conv2 must be a 3x3 nn.Conv2d .*, got ParametrizedConv2d"):
        replace_convs(network)
