"""ResNets with deformable stages: replaced convolutions, initial outputs and frozen parts."""

import copy
from collections import Counter

import pytest
import torch
from torch import nn
from torchvision.models import get_model
from torchvision.ops import FrozenBatchNorm2d

from dcn import DeformConv2d
from models import DETECTORS, NORMS, FpnOptions, ReplacedConvs, replaced_convs, resnet, resnet_fpn
from models.resnet import _freeze, stage_channels
from tests.detectors import assemble

NAMES = ["resnet18", "resnet50", "resnext50_32x4d"]


def build(name: str, seed: int = 0, **options) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return resnet(name, **options)


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def deformable(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, DeformConv2d)]


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.randn(1, 3, 48, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("name", NAMES)
def test_starts_as_the_plain_network_of_torchvision(name, image):
    variants = [{"dcn_v2_stages": [2, 3, 4]}]
    if name == "resnet18":
        variants += [{}, *(variants[0] | other for other in ({"modulation": False}, {"offset_groups": 2}))]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = get_model(name, weights=None, norm_layer=FrozenBatchNorm2d)
    with torch.no_grad():
        expected = plain.double()(image)
        scale = expected.abs().max().item()
        for options in variants:
            torch.testing.assert_close(build(name, **options).double()(image), expected, rtol=0, atol=1e-9 * scale)


def test_mask_scale_1_halves_each_convolution_at_the_start():
    x = torch.randn(1, 512, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    convs = [build("resnet18", dcn_v2_stages=[4], mask_scale=scale).double().layer4[1].conv2 for scale in (1.0, 2.0)]
    torch.testing.assert_close(convs[0](x), convs[1](x) / 2)


@pytest.mark.parametrize(
    ("name", "options", "convs", "parameters"),
    [
        ("resnet50", {"dcn_v2_stages": [2, 3, 4]}, 13, 871_263),
        ("resnet50", {"dcn_v2_stages": [2, 3, 4], "modulation": False}, 13, 580_842),
        ("resnet50", {"dcn_v2_stages": [4]}, 3, 373_329),
        ("resnet50", {"dcn_v2_stages": [1, 2, 3, 4], "offset_groups": 4}, 16, 3_672_000),
        ("resnet18", {"dcn_v2_stages": [2, 3, 4]}, 6, 435_618),
        ("resnext50_32x4d", {"dcn_v2_stages": [2, 3, 4]}, 13, 1_742_175),
        ("resnet50", {}, 0, 0),
    ],
)
def test_replaced_convolutions_and_added_parameters(name, options, convs, parameters):
    network = build(name, **options)
    assert len(deformable(network)) == convs
    assert count(network) - count(build(name)) == parameters
    rows = replaced_convs(network)
    assert sum(row.count for row in rows) == convs
    assert sum(row.parameters_added for row in rows) == parameters


def test_table_of_replaced_convolutions():
    rows = [
        ReplacedConvs("layer2", "C3", 8, 4, 4 * (128 * 9 + 1) * 27),
        ReplacedConvs("layer4", "C5", 32, 3, 3 * (512 * 9 + 1) * 27),
    ]
    network = build("resnet50", dcn_v2_stages=[4, 2])
    assert replaced_convs(network) == rows
    assert replaced_convs(resnet_fpn(network, FpnOptions())) == rows, "also inside a pyramid"


@pytest.mark.parametrize(("name", "blocks"), [("resnet18", [2, 2, 2, 2]), ("resnet50", [3, 4, 6, 3])])
def test_only_conv2_of_the_chosen_stages(name, blocks):
    network = build(name, dcn_v2_stages=[1, 3])
    expected = [f"layer{stage}.{block}.conv2" for stage in (1, 3) for block in range(blocks[stage - 1])]
    assert deformable(network) == expected
    assert type(network.conv1) is nn.Conv2d
    shortcuts = [module for name, module in network.named_modules() if name.endswith("downsample.0")]
    assert shortcuts
    assert all(type(module) is nn.Conv2d for module in shortcuts)


def test_deformable_convolution_keeps_the_shape_of_the_replaced_one():
    fields = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
    plain = dict(build("resnext50_32x4d").named_modules())
    network = build("resnext50_32x4d", dcn_v2_stages=[2], offset_groups=4, mask_scale=1.5, dcn_backend="reference")
    for name in deformable(network):
        conv = network.get_submodule(name)
        assert [getattr(conv, field) for field in fields] == [getattr(plain[name], field) for field in fields]
        assert (conv.offset_groups, conv.modulation, conv.mask_scale, conv.backend) == (4, True, 1.5, "reference")
    assert network.layer2[0].conv2.stride == (2, 2)


def test_a_deformable_head_has_a_separate_row():
    network = build("resnet18", dcn_v2_stages=[3])
    model = assemble("fcos", network, fpn={"out_channels": 64}, num_dcn_convs=2, modulation=False)
    head = ReplacedConvs("head", "all", None, 4, 4 * (64 * 9 + 1) * 18)
    assert replaced_convs(model) == [*replaced_convs(network), head]
    assert head not in replaced_convs(model.backbone)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("detector", DETECTORS)
def test_conv_offset_is_zero_when_the_detector_is_built(name, detector):
    network = build(name, dcn_v2_stages=[1, 2, 3, 4])
    model = assemble(detector, network, fpn={"out_channels": 64})
    predictors = [module.conv_offset for module in model.modules() if isinstance(module, DeformConv2d)]
    assert len(predictors) == (8 if name == "resnet18" else 16)
    for predictor in predictors:
        assert not predictor.weight.any()
        assert not predictor.bias.any()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", NAMES)
def test_torchvision_state_dict_loads_unchanged(name, norm):
    theirs = get_model(name, weights=None).state_dict()
    network = build(name, seed=1, norm=norm, dcn_v2_stages=[2, 3, 4])
    own = network.state_dict()
    counters = {key for key in theirs if key.endswith("num_batches_tracked")}
    statistics = {key for key in theirs if "running_" in key} if norm == "gn" else set()
    assert set(own) >= set(theirs) - counters - statistics
    assert all(".conv2.conv_offset." in key for key in set(own) - set(theirs))
    report = network.load_state_dict(theirs, strict=False)
    assert all(".conv2.conv_offset." in key for key in report.missing_keys)
    assert set(report.unexpected_keys) == (statistics | counters if norm == "gn" else set())
    loaded = network.state_dict()
    assert all(torch.equal(loaded[key], theirs[key]) for key in theirs if key in loaded)


@pytest.mark.parametrize("stages", [[0], [2, 3, 4, 5], [-1], ["2"]])
def test_stage_that_does_not_exist(stages):
    with pytest.raises(ValueError, match="`dcn_v2_stages` must contain only 1, 2, 3 or 4, got") as error:
        resnet("resnet18", dcn_v2_stages=stages)
    message = str(error.value)
    assert f"got {stages}: {stages[-1]} is not a valid stage" in message
    assert "layer1..layer4 = C2..C5" in message
    assert "[3, 4, 5]" in message
    assert "write [2, 3, 4]" in message


def test_stage_named_twice():
    with pytest.raises(ValueError, match=r"must contain each stage once, got \[2, 3, 2\]"):
        resnet("resnet18", dcn_v2_stages=[2, 3, 2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "resnet51"}, "unknown backbone 'resnet51', known: resnet18, .*wide_resnet101_2"),
        ({"norm": "ln"}, "unknown norm 'ln', known: frozen_bn, bn, sync_bn, gn"),
        ({"frozen_stages": 5}, r"`frozen_stages` must be -1 .* 1..4 .*, got 5"),
        ({"frozen_stages": -2}, "got -2"),
        ({"dcn_v2_stages": [2], "dcn_backend": "cuda"}, "unknown DCN backend 'cuda', known: auto, "),
        ({"dcn_v2_stages": [2], "offset_groups": 3}, "`offset_groups` must divide in_channels = 128, got 3"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        resnet(**{"name": "resnet18"} | options)


STEM = ("conv1.", "bn1.")


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("frozen_stages", "frozen"),
    [
        (-1, ()),
        (0, STEM),
        (1, (*STEM, "layer1.")),
        (3, (*STEM, "layer1.", "layer2.", "layer3.")),
        (4, (*STEM, "layer1.", "layer2.", "layer3.", "layer4.")),
    ],
)
def test_exactly_the_frozen_parts_do_not_change(norm, frozen_stages, frozen):
    network = build("resnet18", norm=norm, frozen_stages=frozen_stages, dcn_v2_stages=[2, 4]).train()
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in network.named_parameters() if not name.startswith(frozen or ("none",))}
    assert "fc.weight" in trained

    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    network(torch.randn(2, 3, 32, 32))
    changed = {name for name, buffer in network.named_buffers() if not torch.equal(buffer, before[name])}
    if norm in ("bn", "sync_bn"):
        assert changed == {name for name in before if not name.startswith(frozen or ("none",))}
        assert any(name.startswith("layer4") for name in changed) == (frozen_stages < 4)
    else:
        assert not changed


@pytest.mark.parametrize("norm", ["bn", "sync_bn"])
def test_freezing_keeps_weights_statistics_and_keys(norm):
    torch.manual_seed(0)
    trained = build("resnet18", norm=norm)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        trained.train()(x)
        expected = trained.eval()(x)
        loaded = build("resnet18", seed=1, norm=norm, frozen_stages=2)
        loaded.load_state_dict(trained.state_dict())
        torch.testing.assert_close(loaded.eval()(x), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(_freeze(trained).train()(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("norm", "kind"),
    [
        ("frozen_bn", FrozenBatchNorm2d),
        ("bn", nn.BatchNorm2d),
        ("sync_bn", nn.SyncBatchNorm),
        ("gn", nn.GroupNorm),
    ],
)
def test_norm(norm, kind):
    network = build("resnet18", norm=norm)
    norms = [module for name, module in network.named_modules() if "bn" in name or name.endswith("downsample.1")]
    assert len(norms) == 20
    assert {type(module) for module in norms} == {kind}
    assert kind is not nn.GroupNorm or all(module.num_groups == 32 for module in norms)


@pytest.mark.parametrize("name", NAMES)
def test_stage_channels(name):
    network = build(name)
    x = network.maxpool(network.bn1(network.conv1(torch.zeros(1, 3, 32, 32))))
    for stage, channels in stage_channels(network).items():
        x = getattr(network, f"layer{stage}")(x)
        assert x.shape[1] == channels


def test_sync_bn_of_one_process_is_bn():
    one, other = (build("resnet18", norm=norm).train() for norm in ("bn", "sync_bn"))
    x = torch.randn(2, 3, 64, 48)
    assert torch.equal(one(x), other(x))
    one, other = one.state_dict(), other.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def with_offsets(network: nn.Module) -> nn.Module:
    """Return the network with offsets that are not zero."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, DeformConv2d):
            nn.init.normal_(module.conv_offset.weight, std=0.02, generator=generator)
    return network


def pair(norm: str = "bn", stages: tuple[int, ...] = (2, 3), **options) -> tuple[nn.Module, nn.Module]:
    """Return two bit-identical networks, without and with activation checkpointing of the deformable stages."""
    options |= {"norm": norm, "dcn_v2_stages": stages}
    return tuple(
        with_offsets(build("resnet18", activation_checkpointing=again, **options)).train() for again in (False, True)
    )


def assert_trained_alike(plain: nn.Module, other: nn.Module) -> None:
    """Check that keys, weights, statistics and gradients are bit-identical."""
    states = plain.state_dict(), other.state_dict()
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(tensor, states[1][key]) for key, tensor in states[0].items())
    gradients = dict(plain.named_parameters())
    for key, parameter in other.named_parameters():
        expected = gradients[key].grad
        assert (parameter.grad is None) == (expected is None), key
        assert expected is None or torch.equal(parameter.grad, expected), key


def saved_bytes(stage: nn.Module, x: torch.Tensor) -> int:
    """Return the bytes that autograd keeps, without weights, while a stage is trained on `x`."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in stage.parameters()}
    kept = {}

    @torch.compiler.disable
    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = stage(x)
    out.mean().backward()
    return sum(kept.values())


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_activation_checkpointing_is_bit_identical(norm, amp):
    """Two batches: gradients are summed, and each batch is counted once in the statistics."""
    plain, other = pair(norm, frozen_stages=1)
    for seed in (0, 1):
        x = torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(seed))
        losses = []
        for network in (plain, other):
            with torch.autocast("cpu", torch.bfloat16, enabled=amp):
                losses.append(network(x).float().square().mean())
            losses[-1].backward()
        assert losses[0] == losses[1]
    assert_trained_alike(plain, other)
    counts = {buffer.item() for key, buffer in other.named_buffers() if key.endswith("num_batches_tracked")}
    assert counts == ({2} if norm in ("bn", "sync_bn") else set())


@pytest.mark.parametrize("detector", DETECTORS)
def test_activation_checkpointing_in_a_detector(detector):
    target = {"boxes": torch.tensor([[8.0, 10, 40, 50]]), "labels": torch.tensor([1]), "seed": 3}
    target["masks"] = torch.ones(1, 64, 96, dtype=torch.uint8)  # for detectors that are trained on masks
    models = []
    for network in pair():
        torch.manual_seed(0)
        models.append(assemble(detector, network, fpn={"out_channels": 64}).train())
        losses = models[-1]([torch.ones(3, 64, 96)], [target])
        sum(losses.values()).backward()
    assert_trained_alike(*models)


@pytest.mark.parametrize("norm", NORMS)
def test_activation_checkpointing_keeps_only_the_inputs_of_the_blocks(norm):
    plain, other = (network.layer2 for network in pair(norm))
    x = torch.randn(2, 64, 16, 24)
    inputs_bytes = 4 * 2 * (64 * 16 * 24 + 128 * 8 * 12)  # of the first and the second block
    assert saved_bytes(other, x) == inputs_bytes
    assert saved_bytes(plain, x) > 2 * inputs_bytes


def test_which_blocks_are_computed_again():
    """The blocks of the deformable stages, in training."""
    network = pair(stages=(2, 4))[1]
    x = torch.randn(2, 3, 64, 48)
    calls = Counter()
    for name, module in network.named_modules():
        if name.endswith(("conv1", "conv2")):
            module.register_forward_hook(lambda *_, name=name: calls.update([name]))
    network(x).mean().backward()
    assert {name for name, count in calls.items() if count == 2} == {
        f"layer{stage}.{block}.conv{conv}" for stage in (2, 4) for block in (0, 1) for conv in (1, 2)
    }
    assert len(calls) == 17
    assert set(calls.values()) == {1, 2}

    calls.clear()
    network.eval()(x).mean().backward()
    with torch.no_grad():
        network.train()(x)
    assert set(calls.values()) == {2}


def test_activation_checkpointing_keeps_the_statistics_tensors():
    """Processes exchange these tensors, also after a backward pass that fails."""
    network = pair()[1]
    before = dict(network.named_buffers())
    out = network(torch.randn(2, 3, 64, 48))
    handle = network.layer2[0].bn2.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        out.mean().backward()
    handle.remove()
    assert all(buffer is before[name] for name, buffer in network.named_buffers())


def test_a_copy_computes_its_own_blocks_again():
    plain, other = pair()
    twin = copy.deepcopy(other)
    x = torch.randn(2, 3, 64, 48)
    for network in (plain, twin):
        network(x).mean().backward()
    assert_trained_alike(plain, twin)
    assert all(parameter.grad is None for parameter in other.parameters())
    assert {b.item() for key, b in other.named_buffers() if key.endswith("num_batches_tracked")} == {0}


class Unseen(nn.BatchNorm2d):
    """A norm that the compiler cannot trace."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return super().forward(x)


@pytest.mark.parametrize("norm", ["bn", "unseen"])
def test_activation_checkpointing_in_a_compiled_pyramid(norm, monkeypatch):
    """The results equal the plain network's, also if a block has graph breaks."""
    monkeypatch.setitem(NORMS, "unseen", Unseen)
    torch._dynamo.reset()
    plain, other = (resnet_fpn(network, FpnOptions(levels=[2, 3], out_channels=8)) for network in pair(norm, (2,)))
    with torch.no_grad():
        for mine, theirs in zip(other.parameters(), plain.parameters(), strict=True):
            mine.copy_(theirs)
    other.compile(backend="aot_eager")
    x = torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(0))
    for pyramid in (plain, other):
        sum(level.square().mean() for level in pyramid(x).values()).backward()
    for kind in ("named_parameters", "named_buffers"):
        expected = dict(getattr(plain, kind)())
        for key, tensor in getattr(other, kind)():
            pairs = (tensor, expected[key]) if kind == "named_buffers" else (tensor.grad, expected[key].grad)
            torch.testing.assert_close(*pairs, rtol=1e-4, atol=1e-6, msg=key)
    assert {b.item() for key, b in other.named_buffers() if key.endswith("num_batches_tracked")} == {1}


def test_activation_checkpointing_in_a_compiled_stage_keeps_less():
    torch._dynamo.reset()
    plain, other = (network.layer2 for network in pair())
    other.compile(backend="aot_eager")
    x = torch.randn(2, 64, 16, 24)
    assert saved_bytes(other, x) < saved_bytes(plain, x) / 2
