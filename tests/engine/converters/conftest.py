"""Networks as other frameworks have them: random weights under their names, and forward passes in their arithmetic.

Nothing here knows the converter. Names are those that the frameworks document, arithmetic is torch.nn.functional's.
"""

from functools import cache, partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import deform_conv2d

BLOCKS = {1: 3, 2: 4, 3: 6, 4: 3}  # of ResNet-50
PARTS = ("weight", "bias", "running_mean", "running_var")
MEAN = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64).view(1, 3, 1, 1)
CHANNELS, FC = 32, 48  # of pyramid and box head


def detectron2(role: str, stage=0, block=0, n=0, part="weight") -> str:
    res = f"backbone.bottom_up.res{stage + 1}.{block}"
    return {
        "stem": "backbone.bottom_up.stem.conv1.weight",
        "stem_norm": f"backbone.bottom_up.stem.conv1.norm.{part}",
        "conv": f"{res}.conv{n}.weight",
        "norm": f"{res}.conv{n}.norm.{part}",
        "short": f"{res}.shortcut.weight",
        "short_norm": f"{res}.shortcut.norm.{part}",
        "offset": f"{res}.conv2_offset.{part}",
        "lateral": f"backbone.fpn_lateral{n}.{part}",
        "output": f"backbone.fpn_output{n}.{part}",
        "rpn_conv": f"proposal_generator.rpn_head.conv.{part}",
        "rpn_cls": f"proposal_generator.rpn_head.objectness_logits.{part}",
        "rpn_box": f"proposal_generator.rpn_head.anchor_deltas.{part}",
        "fc": f"roi_heads.box_head.fc{n}.{part}",
        "cls": f"roi_heads.box_predictor.cls_score.{part}",
        "box": f"roi_heads.box_predictor.bbox_pred.{part}",
    }[role]


def mmdetection(role: str, stage=0, block=0, n=0, part="weight") -> str:
    layer = f"backbone.layer{stage}.{block}"
    return {
        "stem": "backbone.conv1.weight",
        "stem_norm": f"backbone.bn1.{part}",
        "conv": f"{layer}.conv{n}.weight",
        "norm": f"{layer}.bn{n}.{part}",
        "short": f"{layer}.downsample.0.weight",
        "short_norm": f"{layer}.downsample.1.{part}",
        "offset": f"{layer}.conv2.conv_offset.{part}",
        "lateral": f"neck.lateral_convs.{n - 2}.conv.{part}",
        "output": f"neck.fpn_convs.{n - 2}.conv.{part}",
        "rpn_conv": f"rpn_head.rpn_conv.{part}",
        "rpn_cls": f"rpn_head.rpn_cls.{part}",
        "rpn_box": f"rpn_head.rpn_reg.{part}",
        "fc": f"roi_head.bbox_head.shared_fcs.{n - 1}.{part}",
        "cls": f"roi_head.bbox_head.fc_cls.{part}",
        "box": f"roi_head.bbox_head.fc_reg.{part}",
    }[role]


def paddle(role: str, stage=0, block=0, n=0, part="weight") -> str:
    res = f"backbone.res{stage + 1}.res{stage + 1}{'abcdef'[block]}"
    stat = {"running_mean": "_mean", "running_var": "_variance"}.get(part, part)
    return {
        "stem": "backbone.conv1.conv1.conv.weight",
        "stem_norm": f"backbone.conv1.conv1.norm.{stat}",
        "conv": f"{res}.branch2{chr(96 + n)}.conv.weight",
        "norm": f"{res}.branch2{chr(96 + n)}.norm.{stat}",
        "short": f"{res}.short.conv.weight",
        "short_norm": f"{res}.short.norm.{stat}",
        "offset": f"{res}.branch2b.conv_offset.{part}",
        "lateral": f"neck.fpn_inner_res{n}_sum{'_lateral' if n < 5 else ''}.{part}",
        "output": f"neck.fpn_res{n}_sum.{part}",
        "rpn_conv": f"rpn_head.rpn_feat.rpn_conv.{part}",
        "rpn_cls": f"rpn_head.rpn_rois_score.{part}",
        "rpn_box": f"rpn_head.rpn_rois_delta.{part}",
        "fc": f"bbox_head.head.fc{n + 5}.{part}",
        "cls": f"bbox_head.bbox_score.{part}",
        "box": f"bbox_head.bbox_delta.{part}",
    }[role]


NAMES = {"detectron2": detectron2, "mmdetection": mmdetection, "paddledetection": paddle}


def backbone(name, *, dcn=(2, 3, 4), modulated=True) -> dict[str, torch.Tensor]:
    """A random ResNet-50 whose 3x3 convolutions of some stages are deformable."""
    return dict(_backbone(name, dcn, modulated))


@cache
def _backbone(name, dcn, modulated) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    state = {}

    def add(conv, norm, outputs, inputs, size, scale=1.0):
        state[conv] = scale * (2 / (inputs * size * size)) ** 0.5 * draw(outputs, inputs, size, size)
        values = (1 + 0.2 * draw(outputs), 0.2 * draw(outputs), 0.2 * draw(outputs), 0.5 + draw(outputs).abs())
        state.update({norm(part=part): value for part, value in zip(PARTS, values, strict=True)})

    add(name("stem"), partial(name, "stem_norm"), 64, 3, 7)
    inputs = 64
    for stage, blocks in BLOCKS.items():
        width = 32 * 2**stage
        for block in range(blocks):
            shapes = {1: (width, inputs, 1), 2: (width, width, 3), 3: (4 * width, width, 1)}
            for n, shape in shapes.items():
                scale = 0.5 if n == 3 else 1.0
                add(name("conv", stage, block, n), partial(name, "norm", stage, block, n), *shape, scale=scale)
            if block == 0:
                add(name("short", stage), partial(name, "short_norm", stage), 4 * width, inputs, 1)
            if stage in dcn:
                rows = 27 if modulated else 18
                state[name("offset", stage, block, part="weight")] = 0.02 * draw(rows, width, 3, 3)
                state[name("offset", stage, block, part="bias")] = 0.7 * draw(rows)
            inputs = 4 * width
    return state


def features(state, name, x, *, stride_in_1x1=False, dcn=(2, 3, 4)) -> list[torch.Tensor]:
    """C2..C5 of what a network is fed; masks are sigmoids."""

    def norm(x, *role):
        weight, bias, mean, var = (state[name(*role, part=part)] for part in PARTS)
        return F.batch_norm(x, mean, var, weight, bias, eps=1e-5)

    x = F.conv2d(x, state[name("stem")], stride=2, padding=3)
    x = F.max_pool2d(norm(x, "stem_norm").relu(), 3, 2, 1)
    maps = []
    for stage, blocks in BLOCKS.items():
        for block in range(blocks):
            stride = 2 if block == 0 and stage > 1 else 1
            first, second = (stride, 1) if stride_in_1x1 else (1, stride)
            y = F.conv2d(x, state[name("conv", stage, block, 1)], stride=first)
            y = norm(y, "norm", stage, block, 1).relu()
            weight = state[name("conv", stage, block, 2)]
            if stage in dcn:
                kernel, bias = (state[name("offset", stage, block, part=part)] for part in ("weight", "bias"))
                predicted = F.conv2d(y, kernel, bias, stride=second, padding=1)
                mask = predicted[:, 18:].sigmoid() if len(bias) == 27 else None
                y = deform_conv2d(y, predicted[:, :18], weight, stride=second, padding=1, mask=mask)
            else:
                y = F.conv2d(y, weight, stride=second, padding=1)
            y = norm(y, "norm", stage, block, 2).relu()
            y = norm(F.conv2d(y, state[name("conv", stage, block, 3)]), "norm", stage, block, 3)
            if block == 0:
                x = norm(F.conv2d(x, state[name("short", stage)], stride=stride), "short_norm", stage)
            x = (x + y).relu()
        maps.append(x)
    return maps


def heads(name, *, classes, transposed=False, seed=1) -> dict[str, torch.Tensor]:
    """A random pyramid, RPN and box head of Faster R-CNN, background last."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    state = {}

    def add(naming, outputs, inputs, *size):
        weight = draw(outputs, inputs, *size) / (inputs * (size[0] ** 2 if size else 1)) ** 0.5
        state[naming(part="weight")] = weight.T.contiguous() if transposed and not size else weight
        state[naming(part="bias")] = 0.3 * draw(outputs)

    for level, width in zip((2, 3, 4, 5), (256, 512, 1024, 2048), strict=True):
        add(partial(name, "lateral", n=level), CHANNELS, width, 1, 1)
        add(partial(name, "output", n=level), CHANNELS, CHANNELS, 3, 3)
    add(partial(name, "rpn_conv"), CHANNELS, CHANNELS, 3, 3)
    add(partial(name, "rpn_cls"), 3, CHANNELS, 1, 1)
    add(partial(name, "rpn_box"), 12, CHANNELS, 1, 1)
    add(partial(name, "fc", n=1), FC, CHANNELS * 49)
    add(partial(name, "fc", n=2), FC, FC)
    add(partial(name, "cls"), classes + 1, FC)
    add(partial(name, "box"), 4 * classes, FC)
    return state


def pyramid(state, name, maps) -> list[torch.Tensor]:
    """P2..P5 and the pooled level on top."""
    conv = lambda role, n, x, pad: F.conv2d(  # noqa: E731
        x, state[name(role, n=n, part="weight")], state[name(role, n=n, part="bias")], padding=pad
    )
    top, levels = None, []
    for n in (5, 4, 3, 2):
        lateral = conv("lateral", n, maps[n - 2], 0)
        top = lateral if top is None else lateral + F.interpolate(top, size=lateral.shape[-2:], mode="nearest")
        levels.insert(0, conv("output", n, top, 1))
    return [*levels, F.max_pool2d(levels[-1], 1, 2)]


def rpn(state, name, maps) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Objectness and box codes of each level."""
    both = lambda role: (state[name(role, part="weight")], state[name(role, part="bias")])  # noqa: E731
    hidden = [F.conv2d(x, *both("rpn_conv"), padding=1).relu() for x in maps]
    return [(F.conv2d(x, *both("rpn_cls")), F.conv2d(x, *both("rpn_box"))) for x in hidden]


def box_head(state, name, pooled, *, transposed=False) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities of the classes alone, and their box codes."""

    def linear(x, role, n=0):
        weight = state[name(role, n=n, part="weight")]
        return x @ (weight if transposed else weight.T) + state[name(role, n=n, part="bias")]

    x = linear(linear(pooled.flatten(1), "fc", 1).relu(), "fc", 2).relu()
    return linear(x, "cls").softmax(-1)[:, :-1], linear(x, "box").unflatten(1, (-1, 4))


@pytest.fixture(scope="session")
def peer() -> SimpleNamespace:
    """Names, random weights and forward passes of other frameworks."""
    return SimpleNamespace(
        names=NAMES,
        channels=CHANNELS,
        fc=FC,
        backbone=backbone,
        features=features,
        heads=heads,
        pyramid=pyramid,
        rpn=rpn,
        box_head=box_head,
    )


@pytest.fixture(scope="session")
def image() -> torch.Tensor:
    """RGB in [0, 1], `(1, 3, 64, 96)`, float64."""
    return torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.fixture(scope="session")
def input_images(image) -> dict[str, torch.Tensor]:
    """The image as networks are fed it here ("rgb_std") and elsewhere."""
    normalised = (image - MEAN) / STD
    bgr = image.flip(1)
    return {
        "rgb_std": normalised,
        "bgr_std": normalised.flip(1),
        "bgr": 255 * bgr - torch.tensor([103.53, 116.28, 123.675], dtype=torch.float64).view(1, 3, 1, 1),
    }
