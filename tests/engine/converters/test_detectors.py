"""Whole detectors: torchvision's find the same here, and the names of the others' fill every detector there is."""

import pytest
import torch
from torchvision.models import detection

from engine.converters.conversion import convert_detector
from engine.converters.inferred_settings import COCO
from engine.converters.recognition import SOURCES, detect_source
from models import resnet
from tests.detectors import assemble

CLASSES = 5
SIZES = {"min_size": 96, "max_size": 160, "score_threshold": 0.0, "detections_per_image": 25}


@pytest.mark.parametrize(
    ("key", "make", "pyramid", "outputs"),
    [
        ("mask_rcnn", detection.maskrcnn_resnet50_fpn, {}, ("box_predictor.cls_score", "box_predictor.bbox_pred")),
        ("retinanet", detection.retinanet_resnet50_fpn, {"levels": [3, 4, 5], "extra_levels": "p6p7"}, ("cls_logits",)),
        ("fcos", detection.fcos_resnet50_fpn, {"levels": [3, 4, 5], "extra_levels": "p6p7"}, ("cls_logits",)),
    ],
)
def test_torchvisions_detectors_find_the_same(key, make, pyramid, outputs):
    torch.manual_seed(0)
    prefix = "box_" if key == "mask_rcnn" else ""
    choice = {f"{prefix}score_thresh": 0.0, f"{prefix}detections_per_img": 25}
    theirs = make(weights=None, weights_backbone=None, num_classes=91, min_size=96, max_size=160, **choice)
    gaps = [index for index in range(91) if index not in COCO]  # which a trained network never names
    with torch.no_grad():
        for name, module in theirs.named_modules():
            if name.endswith(outputs):
                module.weight.mul_(20)
            if name.endswith(("cls_score", "cls_logits")) and not name.startswith("rpn"):
                rows = module.weight.unflatten(0, (-1, 91))
                rows[:, gaps[1:] if key == "mask_rcnn" else gaps] = 0
                module.bias.unflatten(0, (-1, 91))[:, gaps[1:] if key == "mask_rcnn" else gaps] = -1e4
    theirs = theirs.double().eval()
    anchors = {} if key == "fcos" else {"anchors": SOURCES["torchvision"].anchors}
    ours = assemble(key, resnet("resnet50"), 80, fpn=pyramid, **SIZES, **anchors).double().eval()
    state = theirs.state_dict()
    source = detect_source(state)
    assert source is SOURCES["torchvision"]
    kept = [index - 1 for index in COCO]
    options = {"input_format": "rgb_std", "eps": 1e-5, "mask_scale": 2.0, "ratios": 1 if key == "fcos" else 3}
    ours.load_state_dict(convert_detector(state, source, ours.state_dict(), kept=kept, **options).tensors)
    image = torch.rand(3, 90, 130, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        (our,), (their,) = ours([image]), theirs([image])
    assert len(their["boxes"]) > 10
    assert [[*COCO][label - 1] for label in our["labels"]] == their["labels"].tolist()
    for name in their:
        if name != "labels":
            torch.testing.assert_close(our[name], their[name], rtol=1e-4, atol=1e-3, check_dtype=False)


def conv(name, outputs, inputs, size):
    return {f"{name}.weight": (outputs, inputs, size, size), f"{name}.bias": (outputs,)}


def linear(name, outputs, inputs, transposed=False):
    return {f"{name}.weight": (inputs, outputs) if transposed else (outputs, inputs), f"{name}.bias": (outputs,)}


def towers(cls, reg, cls_out, reg_out):
    """Of RetinaNet: names of the convolutions of both towers by number, and of the outputs."""
    shapes = conv(cls_out, 9 * CLASSES, 32, 3) | conv(reg_out, 36, 32, 3)
    for index in range(4):
        shapes |= conv(cls(index), 32, 32, 3) | conv(reg(index), 32, 32, 3)
    return shapes


def masks(convs, up, out):
    """Of Mask R-CNN: names of its four convolutions by number, of the transposed one, and of the outputs."""
    shapes = {f"{up}.weight": (256, 256, 2, 2), f"{up}.bias": (256,)} | conv(out, CLASSES, 256, 1)
    for index in range(4):
        shapes |= conv(convs(index), 256, 256 if index else 32, 3)
    return shapes


def cascade(fc, cls, reg, transposed=False):
    """Of Cascade R-CNN: names by stage."""
    shapes = {}
    for stage in range(3):
        shapes |= linear(fc(stage, 0), 48, 32 * 49, transposed) | linear(fc(stage, 1), 48, 48, transposed)
        shapes |= linear(cls(stage), CLASSES + 1, 48, transposed) | linear(reg(stage), 4, 48, transposed)
    return shapes


RETINA = {
    "mmdetection": towers(
        lambda i: f"bbox_head.cls_convs.{i}.conv",
        lambda i: f"bbox_head.reg_convs.{i}.conv",
        "bbox_head.retina_cls",
        "bbox_head.retina_reg",
    )
    | conv("neck.fpn_convs.3.conv", 32, 2048, 3)
    | conv("neck.fpn_convs.4.conv", 32, 32, 3),
    "detectron2": towers(
        lambda i: f"head.cls_subnet.{2 * i}", lambda i: f"head.bbox_subnet.{2 * i}", "head.cls_score", "head.bbox_pred"
    )
    | conv("backbone.top_block.p6", 32, 2048, 3)
    | conv("backbone.top_block.p7", 32, 32, 3),
    "paddledetection": towers(
        lambda i: f"head.conv_feat.fcos_head_cls_tower_conv_{i}.conv",
        lambda i: f"head.conv_feat.fcos_head_reg_tower_conv_{i}.conv",
        "head.retina_cls",
        "head.retina_reg",
    )
    | conv("neck.fpn_6", 32, 2048, 3)
    | conv("neck.fpn_7", 32, 32, 3),
}
MASKS = {
    "mmdetection": masks(
        lambda i: f"roi_head.mask_head.convs.{i}.conv", "roi_head.mask_head.upsample", "roi_head.mask_head.conv_logits"
    ),
    "detectron2": masks(
        lambda i: f"roi_heads.mask_head.mask_fcn{i + 1}", "roi_heads.mask_head.deconv", "roi_heads.mask_head.predictor"
    ),
    "paddledetection": masks(
        lambda i: f"mask_head.head.upsample.mask_inter_feat_{i + 1}",
        "mask_head.head.upsample.conv5_mask",
        "mask_head.mask_fcn_logits",
    ),
}
CASCADES = {
    "mmdetection": cascade(
        lambda stage, i: f"roi_head.bbox_head.{stage}.shared_fcs.{i}",
        lambda stage: f"roi_head.bbox_head.{stage}.fc_cls",
        lambda stage: f"roi_head.bbox_head.{stage}.fc_reg",
    ),
    "detectron2": cascade(
        lambda stage, i: f"roi_heads.box_head.{stage}.fc{i + 1}",
        lambda stage: f"roi_heads.box_predictor.{stage}.cls_score",
        lambda stage: f"roi_heads.box_predictor.{stage}.bbox_pred",
    ),
    "paddledetection": cascade(
        lambda stage, i: f"bbox_head.head.{stage}.fc{i + 6}",
        lambda stage: f"bbox_head.bbox_score_stage{stage}",
        lambda stage: f"bbox_head.bbox_delta_stage{stage}",
        transposed=True,
    ),
}


def shapes_of(peer, framework, detector):
    """All tensors of a detector of a framework."""
    name = peer.names[framework]
    state = peer.backbone(name, dcn=(4,))
    heads = peer.heads(name, classes=CLASSES, transposed=framework == "paddledetection")
    boxes = {name(role, n=n, part=part) for role in ("fc", "cls", "box") for n in (1, 2) for part in ("weight", "bias")}
    rpn = {name(role, part=part) for role in ("rpn_conv", "rpn_cls", "rpn_box") for part in ("weight", "bias")}
    if detector == "retinanet":  # whose pyramid begins a level higher; mmdetection counts its convolutions from there
        offset = 1 if framework == "mmdetection" else 0
        for role in ("lateral", "output"):
            for part in ("weight", "bias"):
                levels = [heads.pop(name(role, n=n, part=part)) for n in (2, 3, 4, 5)]
                heads |= {name(role, n=n - offset, part=part): levels[n - 2] for n in (3, 4, 5)}
        heads = {key: value for key, value in heads.items() if key not in boxes | rpn}
        extra = RETINA[framework]
    else:
        if "cascade" in detector:
            heads = {key: value for key, value in heads.items() if key not in boxes}
        extra = (CASCADES[framework] if "cascade" in detector else {}) | (
            MASKS[framework] if "mask" in detector else {}
        )
    return state | heads | {key: torch.zeros(shape, dtype=torch.float64) for key, shape in extra.items()}


@pytest.mark.parametrize("framework", ["mmdetection", "detectron2", "paddledetection"])
def test_another_pyramid_is_reported(framework, peer):
    state = shapes_of(peer, framework, "retinanet")
    with torch.device("meta"):
        body = resnet("resnet50", dcn_v2_stages=(4,))
        fpn = {"out_channels": 64, "levels": [3, 4, 5], "extra_levels": "p6p7"}
        wanted = assemble("retinanet", body, CLASSES, fpn=fpn).state_dict()
    options = {"input_format": "rgb_std", "eps": 1e-5, "mask_scale": 2.0, "kept": range(CLASSES)}
    asked = {"fpn.out_channels": 64, "fpn.extra_levels": "p6p7", "fpn.levels": [3, 4, 5]}
    with pytest.raises(ValueError, match="differs from the config") as error:
        convert_detector(state, SOURCES[framework], wanted, asked=asked, **options)
    assert str(error.value).splitlines()[1:3] == [
        "  - model.fpn.out_channels: 64 in the config, 32 in the checkpoint",
        "  - model.fpn.extra_levels: 'p6p7' in the config, 'p6p7_from_c5' in the checkpoint",
    ]


@pytest.mark.parametrize(
    ("framework", "detector"),
    [
        (framework, detector)
        for framework in ("mmdetection", "detectron2", "paddledetection")
        for detector in ("mask_rcnn", "cascade_rcnn", "cascade_mask_rcnn", "retinanet")
        # whose cascade has three mask heads, see test_mmdetection_keys.py
        if (framework, detector) != ("mmdetection", "cascade_mask_rcnn")
    ],
)
def test_every_tensor_of_the_others_has_its_place(framework, detector, peer):
    state = shapes_of(peer, framework, detector)
    assert detect_source(state) is SOURCES[framework]
    pyramid = {"levels": [3, 4, 5], "extra_levels": "p6p7_from_c5"} if detector == "retinanet" else {}
    heads = {} if detector == "retinanet" else {"box_head_channels": 48}
    with torch.device("meta"):
        body, fpn = resnet("resnet50", dcn_v2_stages=(4,)), {"out_channels": 32, **pyramid}
        wanted = assemble(detector, body, CLASSES, fpn=fpn, **heads).double().state_dict()
    options = {"input_format": "rgb_std", "eps": 1e-5, "mask_scale": 2.0, "kept": range(CLASSES)}
    converted = convert_detector(state, SOURCES[framework], wanted, **options)
    assert {key: value.shape for key, value in converted.tensors.items()} == {
        key: value.shape for key, value in wanted.items()
    }
    assert sorted(entry.source for entry in converted.entries) == sorted(state)
    assert {entry.status for entry in converted.entries} == {"mapped"}
