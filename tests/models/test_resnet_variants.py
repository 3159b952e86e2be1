"""Variants of the ResNets: ResNet-D (vd), strides in the 1x1, every n-th block, all names and combinations."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from dcn import DeformConv2d
from models import RESNETS, FpnOptions, load_backbone_weights, replaced_convs, resnet, resnet_fpn
from models.resnet import stage_channels

BLOCKS = {"18": [2, 2, 2, 2], "34": [3, 4, 6, 3], "50": [3, 4, 6, 3], "101": [3, 4, 23, 3], "152": [3, 8, 36, 3]}


def depth(name: str) -> str:
    return re.match(r"(?:wide_)?resnex?t(\d+)", name)[1]


def deformable(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, DeformConv2d)]


def settled(network: nn.Module) -> nn.Module:
    """Return the network in float64 with statistics, scales and biases that are not the initial ones."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in network.state_dict().items():
        if tensor.ndim == 1 and "conv_offset" not in name:
            tensor.uniform_(0.5, 1.5, generator=generator)
    return network.double()


def by_hand(state: dict[str, Tensor], x: Tensor, *, groups: int, vd: bool, stride_in_1x1: bool) -> list[Tensor]:
    """Return the outputs of the four stages by the papers' description, from a state dict alone."""

    def conv(name: str, x: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, groups=groups)

    def norm(name: str, x: Tensor) -> Tensor:
        mean, var, scale, shift = (
            state[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * scale + shift

    def mean_of_2x2(x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        rows = []
        for i in range(0, height, 2):
            row = [x[..., i : i + 2, j : j + 2].mean(dim=(-2, -1)) for j in range(0, width, 2)]
            rows.append(torch.stack(row, dim=-1))
        return torch.stack(rows, dim=-2)

    if vd:
        x = norm("conv1.1", conv("conv1.0", x, 2)).relu()
        x = norm("conv1.4", conv("conv1.3", x)).relu()
        x = norm("bn1", conv("conv1.6", x)).relu()
    else:
        x = norm("bn1", conv("conv1", x, 2)).relu()
    x = F.max_pool2d(x, 3, 2, 1)
    stages = []
    for stage in (1, 2, 3, 4):
        block = 0
        while f"layer{stage}.{block}.conv1.weight" in state:
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            if f"{name}.conv3.weight" in state:
                first, second = (stride, 1) if stride_in_1x1 else (1, stride)
                out = norm(f"{name}.bn1", conv(f"{name}.conv1", x, first)).relu()
                out = norm(f"{name}.bn2", conv(f"{name}.conv2", out, second, groups)).relu()
                out = norm(f"{name}.bn3", conv(f"{name}.conv3", out))
            else:
                out = norm(f"{name}.bn1", conv(f"{name}.conv1", x, stride)).relu()
                out = norm(f"{name}.bn2", conv(f"{name}.conv2", out))
            if vd and block == 0:
                pooled = mean_of_2x2(x) if stage > 1 else x
                x = norm(f"{name}.downsample.2", conv(f"{name}.downsample.1", pooled))
            elif f"{name}.downsample.0.weight" in state:
                x = norm(f"{name}.downsample.1", conv(f"{name}.downsample.0", x, stride))
            x = (x + out).relu()
            block += 1
        stages.append(x)
    return stages


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18_vd", {}),
        ("resnet18_vd", {"dcn_v2_stages": [1, 2, 3, 4]}),
        ("resnet50_vd", {"dcn_v2_stages": [2, 3, 4], "dcn_every": 2}),
        ("resnext50_32x4d_vd", {"dcn_v2_stages": [3, 4]}),
        ("resnet50", {"stride_in_1x1": True}),
        ("resnet50_vd", {"stride_in_1x1": True, "dcn_v2_stages": [2, 4]}),
    ],
)
def test_forward_matches_the_papers(name, options):
    """Uneven maps, 18 x 10 to 3 x 2, so that averaging at the border matters."""
    x = torch.randn(1, 3, 70, 38, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    network = settled(resnet(name, **options))
    found = []
    hooks = [
        getattr(network, f"layer{stage}").register_forward_hook(lambda *args: found.append(args[2]))
        for stage in (1, 2, 3, 4)
    ]
    with torch.no_grad():
        network(x)
        expected = by_hand(
            network.state_dict(),
            x,
            groups=32 if "32x4d" in name else 1,
            vd=name.endswith("_vd"),
            stride_in_1x1=options.get("stride_in_1x1", False),
        )
    assert len(hooks) == len(found)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9 * theirs.abs().max().item())


@pytest.mark.parametrize("name", RESNETS)
def test_every_network_has_the_tensors_of_the_plain_one(name):
    """The tensors are equal, and the added offset convolutions are zero; weights need no memory here."""
    with torch.device("meta"):
        plain, network = (resnet(name, dcn_v2_stages=stages, norm="bn") for stages in ([], [2, 3, 4]))
    before, after = ({key: tensor.shape for key, tensor in n.state_dict().items()} for n in (plain, network))
    assert {key: shape for key, shape in after.items() if ".conv_offset." not in key} == before
    blocks = BLOCKS[depth(name)]
    assert deformable(network) == [f"layer{s}.{block}.conv2" for s in (2, 3, 4) for block in range(blocks[s - 1])]
    rows = replaced_convs(network)
    assert [(row.layer, row.count) for row in rows] == [(f"layer{s}", blocks[s - 1]) for s in (2, 3, 4)]
    for row in rows:
        width = network.get_submodule(f"{row.layer}.0.conv2").in_channels
        assert row.parameters_added == row.count * 27 * (9 * width + 1)
    for stage, channels in stage_channels(network).items():
        last = "bn3" if int(depth(name)) >= 50 else "bn2"
        assert network.get_submodule(f"layer{stage}.0.{last}").num_features == channels


# In millions, as published: https://github.com/huggingface/pytorch-image-models/blob/main/results/results-imagenet.csv
PUBLISHED = {"resnet50_vd": 25.58, "resnext50_32x4d_vd": 25.05, "resnet101_vd": 44.57, "resnet152_vd": 60.21}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_size(name):
    with torch.device("meta"):
        network = resnet(name, norm="bn")
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6, 2) == PUBLISHED[name]


@pytest.mark.parametrize("name", ["resnet34_vd", "resnet50_vd", "resnext50_32x4d_vd", "wide_resnet50_2"])
def test_starts_as_the_plain_network(name):
    x = torch.randn(1, 3, 48, 32, generator=torch.Generator().manual_seed(0))
    outputs = []
    for stages in ([], [2, 3, 4]):
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            outputs.append(resnet(name, dcn_v2_stages=stages)(x))
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-4 * outputs[0].abs().max().item())


def test_vd_is_initialised_as_in_torchvision():
    """A convolution's weights have the variance 2 / (outputs x kernel height x width)."""
    torch.manual_seed(0)
    network = resnet("resnet18_vd", norm="bn")
    for name in ("conv1.0", "conv1.3", "conv1.6", "layer1.0.downsample.1", "layer4.0.downsample.1"):
        conv = network.get_submodule(name)
        expected = (2 / (conv.out_channels * conv.kernel_size[0] ** 2)) ** 0.5
        assert conv.weight.std().item() == pytest.approx(expected, rel=0.1), name
        assert conv.bias is None


@pytest.mark.parametrize(
    ("name", "every", "expected"),
    [
        ("resnet50", 1, {2: [0, 1, 2, 3], 3: [0, 1, 2, 3, 4, 5], 4: [0, 1, 2]}),
        ("resnet50", 2, {2: [1, 3], 3: [1, 3, 5], 4: [0, 2]}),
        ("resnet50", 3, {2: [0, 3], 3: [2, 5], 4: [2]}),
        ("resnet101", 3, {2: [0, 3], 3: [1, 4, 7, 10, 13, 16, 19, 22], 4: [2]}),
        ("resnet101", 23, {2: [3], 3: [22], 4: [2]}),
    ],
)
def test_every_nth_block(name, every, expected):
    with torch.device("meta"):
        network = resnet(name, dcn_v2_stages=[2, 3, 4], dcn_every=every)
    assert deformable(network) == [f"layer{s}.{block}.conv2" for s, blocks in expected.items() for block in blocks]
    assert [row.count for row in replaced_convs(network)] == [len(blocks) for blocks in expected.values()]


def test_stride_in_the_1x1():
    """The first blocks of stages 2..4: the deformable convolution has stride 1, and all shapes remain."""
    with torch.device("meta"):
        plain, moved = (resnet("resnet50", dcn_v2_stages=[2], stride_in_1x1=moved) for moved in (False, True))
    shapes = [{key: tensor.shape for key, tensor in network.state_dict().items()} for network in (plain, moved)]
    assert shapes[0] == shapes[1]
    for stage in (1, 2, 3, 4):
        for block, (one, other) in enumerate(
            zip(getattr(plain, f"layer{stage}"), getattr(moved, f"layer{stage}"), strict=True)
        ):
            stride = (2, 2) if stage > 1 and block == 0 else (1, 1)
            assert (one.conv1.stride, one.conv2.stride) == ((1, 1), stride)
            assert (other.conv1.stride, other.conv2.stride) == (stride, (1, 1))
    assert moved.layer2[0].conv2.conv_offset.stride == (1, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"name": "resnet34_vd", "stride_in_1x1": True},
            "`stride_in_1x1` needs bottleneck blocks, got resnet34_vd",
        ),
        ({"dcn_v2_stages": [2], "dcn_every": 0}, r"`dcn_every` must be at least 1 .*, got 0"),
        ({"name": "resnet50vd"}, "unknown backbone 'resnet50vd', known: .*resnet50_vd"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        resnet(**{"name": "resnet18"} | options)


@pytest.mark.parametrize("norm", ["frozen_bn", "bn", "gn"])
def test_the_deep_stem_freezes_as_a_whole(norm):
    network = resnet(
        "resnet18_vd", norm=norm, frozen_stages=1, dcn_v2_stages=[2], activation_checkpointing=True
    ).train()
    frozen = ("conv1.", "bn1.", "layer1.")
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in network.named_parameters() if not name.startswith(frozen)}
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    network(torch.randn(2, 3, 38, 70)).mean().backward()
    assert network.layer2[0].downsample[1].weight.grad.any()
    changed = {name for name, buffer in network.named_buffers() if not torch.equal(buffer, before[name])}
    assert changed == ({name for name in before if not name.startswith(frozen)} if norm == "bn" else set())
    stem = [type(module) for module in network.conv1]
    kind = nn.GroupNorm if norm == "gn" else FrozenBatchNorm2d
    assert stem == [nn.Conv2d, kind, nn.ReLU, nn.Conv2d, kind, nn.ReLU, nn.Conv2d]


def test_pyramid_over_vd():
    pyramid = resnet_fpn(resnet("resnet18_vd", dcn_v2_stages=[3]), FpnOptions(levels=[2, 3, 4], out_channels=8))
    shapes = {name: tuple(level.shape) for name, level in pyramid(torch.zeros(1, 3, 70, 38)).items()}
    assert shapes == {"p2": (1, 8, 18, 10), "p3": (1, 8, 9, 5), "p4": (1, 8, 5, 3), "pool": (1, 8, 3, 2)}


def test_weights_of_vd_need_a_file(tmp_path):
    trained, network = (resnet("resnet18_vd", norm="bn", dcn_v2_stages=stages) for stages in ([], [4]))
    torch.save(trained.state_dict(), tmp_path / "vd.pth")
    report = load_backbone_weights(network, "resnet18_vd", str(tmp_path / "vd.pth"))
    assert (len(report.new), report.dropped) == (4, [])
    assert torch.equal(network.conv1[6].weight, trained.conv1[6].weight)
    with pytest.raises(
        ValueError, match=r"torchvision has no weights for resnet50_vd, got 'DEFAULT'; use a file .* null"
    ):
        load_backbone_weights(network, "resnet50_vd", "DEFAULT")
    with pytest.raises(
        ValueError, match=r"do not match resnet18: \d+ tensors with another shape, first 'layer2\.0\.downsample"
    ):
        load_backbone_weights(resnet("resnet18"), "resnet18", str(tmp_path / "vd.pth"))
