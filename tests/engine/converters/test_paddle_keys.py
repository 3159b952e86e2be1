"""PaddleDetection's vd variants, deep networks and copies in PyTorch; its plain one is in test_conversion.py."""

import pytest
import torch
import torch.nn.functional as F

from engine.converters.conversion import convert_backbone
from engine.converters.mapping import map_tensors
from engine.converters.paddle_keys import PADDLE
from engine.converters.recognition import detect_source
from models import resnet

NORM = {"weight": "weight", "bias": "bias", "running_mean": "_mean", "running_var": "_variance"}


def vd18(*, copied: bool) -> dict[str, torch.Tensor]:
    """A random ResNet-18-vd, under PaddleDetection's names or those of its copy in PyTorch."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    state = {}

    def add(place, outputs, inputs, size):
        state[f"{place}.conv.weight"] = draw(outputs, inputs, size, size) * (2 / (inputs * size * size)) ** 0.5
        values = (1 + 0.2 * draw(outputs), 0.2 * draw(outputs), 0.2 * draw(outputs), 0.5 + draw(outputs).abs())
        for part, value in zip(NORM, values, strict=True):
            state[f"{place}.norm.{part if copied else NORM[part]}"] = value

    for index, (inputs, outputs) in enumerate([(3, 32), (32, 32), (32, 64)], start=1):
        add(f"conv1.conv1_{index}", outputs, inputs, 3)
    inputs = 64
    for stage in range(4):
        outputs = 64 * 2**stage
        for block in range(2):
            place = f"res_layers.{stage}.blocks.{block}" if copied else f"res{stage + 2}.res{stage + 2}{'ab'[block]}"
            add(f"{place}.branch2a", outputs, inputs, 3)
            add(f"{place}.branch2b", outputs, outputs, 3)
            if block == 0:  # in the first stage too; where it pools, the convolution is one of two modules
                add(f"{place}.short{'.conv' if stage else ''}", outputs, inputs, 1)
            inputs = outputs
    return state


def forward(state, x, *, copied):
    """C2..C5 of the ResNet-18-vd."""

    def conv_norm(place, x, stride=1, padding=0):
        parts = [state[f"{place}.norm.{part if copied else NORM[part]}"] for part in NORM]
        x = F.conv2d(x, state[f"{place}.conv.weight"], stride=stride, padding=padding)
        return F.batch_norm(x, parts[2], parts[3], parts[0], parts[1], eps=1e-5)

    for index, stride in ((1, 2), (2, 1), (3, 1)):
        x = conv_norm(f"conv1.conv1_{index}", x, stride, 1).relu()
    x = F.max_pool2d(x, 3, 2, 1)
    maps = []
    for stage in range(4):
        for block in range(2):
            place = f"res_layers.{stage}.blocks.{block}" if copied else f"res{stage + 2}.res{stage + 2}{'ab'[block]}"
            stride = 2 if stage and not block else 1
            y = conv_norm(f"{place}.branch2a", x, stride, 1).relu()
            y = conv_norm(f"{place}.branch2b", y, 1, 1)
            if block == 0 and stage:
                # the last row and column of an odd map are averaged over the pixels that are there
                x = conv_norm(f"{place}.short.conv", F.avg_pool2d(x, 2, 2, ceil_mode=True, count_include_pad=False))
            elif block == 0:
                x = conv_norm(f"{place}.short", x)
            x = (x + y).relu()
        maps.append(x)
    return maps


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("prefix", ["backbone.", ""])
def test_the_vd_variant_gives_the_same_maps(copied, prefix):
    state = vd18(copied=copied)
    named = {prefix + key: value for key, value in state.items()}
    assert detect_source(named) is PADDLE
    converted = convert_backbone(named, PADDLE, input_format="rgb_std", eps=1e-5, mask_scale=2.0)
    assert converted.found == {"name": "resnet18_vd", "dcn_v2_stages": []}
    network = resnet("resnet18_vd").double()
    wanted = {key for key in network.state_dict() if not key.startswith("fc.")}
    assert {*converted.tensors} == wanted
    network.load_state_dict(converted.tensors, strict=False)
    x = torch.randn(1, 3, 76, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    theirs = forward(state, x, copied=copied)
    x = network.maxpool(network.relu(network.bn1(network.conv1(x))))
    for stage in (1, 2, 3, 4):
        x = getattr(network, f"layer{stage}")(x)
        torch.testing.assert_close(x, theirs[stage - 1], rtol=1e-9, atol=1e-9)


def test_the_plain_resnet_18_has_no_place_for_its_first_shortcut():
    state = {
        key.replace("conv1.conv1_1", "conv1.conv1").replace("short.conv.", "short."): value
        for key, value in vd18(copied=False).items()
    }
    with pytest.raises(
        ValueError, match=r"ResNet-18 and -34 .* convolution \(res2\.res2a\.short\..* vd variants are supported"
    ):
        convert_backbone(state, PADDLE, input_format="rgb_std", eps=1e-5, mask_scale=2.0)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        # deep stages count blocks after the first, others have letters
        ("res4.res4a.branch2a.conv.weight", "layer3.0.conv1.weight"),
        ("res4.res4b1.branch2b.conv.weight", "layer3.1.conv2.weight"),
        ("res4.res4b22.branch2c.norm._variance", "layer3.22.bn3.running_var"),
        ("res4.res4f.branch2b.conv_offset.bias", "layer3.5.conv2.conv_offset.bias"),
        ("conv1.res_conv1.conv.weight", "conv1.weight"),
        ("conv1.conv1.norm._mean", "bn1.running_mean"),
    ],
)
def test_names_of_blocks(theirs, ours):
    mapped = map_tensors({f"backbone.{theirs}": torch.zeros(1)}, PADDLE)
    assert [*mapped.tensors] == [f"backbone.body.{ours}"]


def test_names_of_other_heads():
    """Of Mask and Cascade R-CNN and RetinaNet."""
    names = {
        "mask_head.head.upsample.mask_inter_feat_1.weight": "roi_heads.mask_head.0.0.weight",
        "mask_head.head.upsample.mask_inter_feat_4.bias": "roi_heads.mask_head.3.0.bias",
        "mask_head.head.upsample.conv5_mask.weight": "roi_heads.mask_predictor.conv5_mask.weight",
        "mask_head.mask_fcn_logits.bias": "roi_heads.mask_predictor.mask_fcn_logits.bias",
        "bbox_head.head.2.fc7.bias": "roi_heads.box_head.2.fc7.bias",
        "bbox_head.bbox_score_stage1.weight": "roi_heads.box_predictor.1.cls_score.weight",
        "bbox_head.bbox_delta_stage0.bias": "roi_heads.box_predictor.0.bbox_pred.bias",
        "head.conv_feat.fcos_head_cls_tower_conv_3.conv.weight": "head.classification_head.conv.3.0.weight",
        "head.conv_feat.fcos_head_reg_tower_conv_0.conv.bias": "head.regression_head.conv.0.0.bias",
        "head.retina_cls.weight": "head.classification_head.cls_logits.weight",
        "head.retina_reg.bias": "head.regression_head.bbox_reg.bias",
        "neck.fpn_inner_res3_sum_lateral.weight": "backbone.fpn.inner_blocks.0.0.weight",
        "neck.fpn_inner_res5_sum.bias": "backbone.fpn.inner_blocks.2.0.bias",
        "neck.fpn_res4_sum.bias": "backbone.fpn.layer_blocks.1.0.bias",
        "neck.fpn_6.weight": "backbone.fpn.extra_blocks.p6.weight",
    }
    mapped = map_tensors({name: torch.zeros(1) for name in names}, PADDLE)
    assert {entry.source: entry.ours for entry in mapped.entries} == names
