"""Converted networks compute what the other framework's computed from the same image."""

import re

import pytest
import torch

from engine.converters.conversion import check_supported, classes_of, convert_backbone, convert_detector
from engine.converters.recognition import SOURCES, detect_source
from models import resnet
from tests.detectors import assemble

CLASSES = 5


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8 * theirs.abs().max().item())


def stage_maps(network, x):
    x = network.maxpool(network.relu(network.bn1(network.conv1(x))))
    maps = []
    for stage in (1, 2, 3, 4):
        x = getattr(network, f"layer{stage}")(x)
        maps.append(x)
    return maps


@pytest.mark.parametrize(
    ("key", "kind", "stride_in_1x1", "dcn", "modulated"),
    [
        ("detectron2", "bgr", True, (2, 3, 4), False),
        ("detectron2", "bgr_std", False, (4,), True),
        ("mmdetection", "rgb_std", False, (2, 3, 4), True),
        ("mmdetection", "bgr", True, (), True),
        ("paddledetection", "rgb_std", False, (3, 4), True),
    ],
)
def test_a_backbone_gives_the_same_maps(key, kind, stride_in_1x1, dcn, modulated, peer, input_images):
    name = peer.names[key]
    state = peer.backbone(name, dcn=dcn, modulated=modulated)
    theirs = peer.features(state, name, input_images[kind], stride_in_1x1=stride_in_1x1, dcn=dcn)
    converted = convert_backbone(state, SOURCES[key], input_format=kind, eps=1e-5, mask_scale=2.0)
    assert converted.found["name"] == "resnet50"
    assert converted.found["dcn_v2_stages"] == [*dcn]
    assert converted.found.get("modulation", modulated) == modulated
    network = resnet(
        "resnet50", dcn_v2_stages=dcn, modulation=modulated, mask_scale=2.0, stride_in_1x1=stride_in_1x1
    ).double()
    fc = {key: value for key, value in network.state_dict().items() if key.startswith("fc.")}
    network.load_state_dict(converted.tensors | fc)
    with torch.no_grad():
        ours = stage_maps(network, input_images["rgb_std"])
    for our, their in zip(ours, theirs, strict=True):
        close(our, their)


def small_detector(peer, *, classes=CLASSES, **options):
    fpn, body = {"out_channels": peer.channels}, resnet("resnet50", **options)
    return assemble("faster_rcnn", body, classes, fpn=fpn, box_head_channels=peer.fc).double().eval()


def shapes_of_detector(peer, **options):
    """Its state dict without numbers."""
    with torch.device("meta"):
        return small_detector(peer, **options).state_dict()


@pytest.mark.parametrize("key", ["detectron2", "mmdetection", "paddledetection"])
def test_a_detector_gives_the_same_numbers(key, peer, input_images):
    name, kind, stages = peer.names[key], "bgr_std" if key == "detectron2" else "rgb_std", (4,)
    transposed = key == "paddledetection"
    state = peer.backbone(name, dcn=stages) | peer.heads(name, classes=CLASSES, transposed=transposed)
    source = SOURCES[key]
    assert classes_of(state, source) == CLASSES
    kept = [3, 0, 4]  # classes may be fewer and in another order, as those of COCO among torchvision's labels
    detector = small_detector(peer, classes=len(kept), dcn_v2_stages=stages, mask_scale=2.0)
    converted = convert_detector(
        state, source, detector.state_dict(), input_format=kind, eps=1e-5, mask_scale=2.0, kept=kept, ratios=3
    )
    detector.load_state_dict(converted.tensors)
    maps = peer.pyramid(state, name, peer.features(state, name, input_images[kind], dcn=stages))
    with torch.no_grad():
        ours = [*detector.backbone(input_images["rgb_std"]).values()]
        for our, their in zip(ours, maps, strict=True):
            close(our, their)
        for theirs, *outputs in zip(peer.rpn(state, name, maps), *detector.rpn.head(maps), strict=True):
            for our, their in zip(outputs, theirs, strict=True):
                close(our, their)
        pooled = torch.randn(6, peer.channels, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
        logits, codes = detector.roi_heads.box_predictor(detector.roi_heads.box_head(pooled))
    probabilities, their_codes = peer.box_head(state, name, pooled, transposed=transposed)
    # of fewer classes, the ratios of probabilities stay
    close(logits.softmax(-1)[:, 1:] / logits.softmax(-1)[:, :1], ratio_to_background(probabilities)[:, kept])
    close(codes.unflatten(1, (-1, 4))[:, 1:], their_codes[:, kept])
    assert not codes[:, :4].any()


def ratio_to_background(probabilities):
    """Of each class, where all but the background's probability is given."""
    return probabilities / (1 - probabilities.sum(1, keepdim=True))


def test_every_tensor_stands_in_the_account_once(peer):
    name = peer.names["mmdetection"]
    state = peer.backbone(name, dcn=(4,)) | peer.heads(name, classes=CLASSES)
    norms = [key.removesuffix("running_var") for key in state if key.endswith("running_var")]
    state |= {f"{norm}num_batches_tracked": torch.tensor(7) for norm in norms}
    wanted = shapes_of_detector(peer, dcn_v2_stages=(4,), norm="bn")
    options = {"input_format": "rgb_std", "eps": 1e-5, "mask_scale": 1.0}
    converted = convert_detector(state, SOURCES["mmdetection"], wanted, kept=range(CLASSES), **options)
    assert sorted(entry.source for entry in converted.entries if entry.source) == sorted(state)
    assert sorted(entry.ours for entry in converted.entries if entry.ours) == sorted(wanted)
    by_status = {
        status: [e for e in converted.entries if e.status == status] for status in ("mapped", "new", "dropped")
    }
    assert {entry.source for entry in by_status["dropped"]} == {f"{norm}num_batches_tracked" for norm in norms}
    assert {entry.ours for entry in by_status["new"]} == {key for key in wanted if key.endswith("num_batches_tracked")}
    assert all(entry.source and entry.ours and not entry.why for entry in by_status["mapped"])

    converted = convert_backbone(state, SOURCES["mmdetection"], **options)
    assert sorted(entry.source for entry in converted.entries) == sorted(state)
    assert sorted(entry.ours for entry in converted.entries if entry.ours) == sorted(converted.tensors)
    assert {entry.why for entry in converted.entries if not entry.ours} == {
        "batch norm counter",
        "not part of the backbone",
    }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dcn_v2_stages": (3, 4)}, r"model\.backbone\.dcn_v2_stages: \[3, 4\] in the config, \[4\] in the checkpoint"),
        ({"modulation": False}, r"model\.backbone\.modulation: False in the config, True in the checkpoint"),
        ({"offset_groups": 2}, r"model\.backbone\.offset_groups: 2 in the config, 1 in the checkpoint"),
    ],
)
def test_another_network_is_rejected_with_the_differences(change, said, peer):
    name = peer.names["mmdetection"]
    state = peer.backbone(name, dcn=(4,)) | peer.heads(name, classes=CLASSES)
    backbone = {"name": "resnet50", "dcn_v2_stages": [4], "modulation": True, "offset_groups": 1} | {
        key: [*value] if isinstance(value, tuple) else value for key, value in change.items()
    }
    wanted = shapes_of_detector(peer, **{key: backbone[key] for key in backbone if key != "name"})
    with pytest.raises(ValueError, match=said) as error:
        convert_detector(
            state,
            SOURCES["mmdetection"],
            wanted,
            input_format="rgb_std",
            eps=1e-5,
            mask_scale=2.0,
            kept=range(CLASSES),
            asked={f"backbone.{key}": value for key, value in backbone.items()},
        )
    lines = str(error.value).splitlines()
    assert lines[0] == "the architecture of the mmdetection checkpoint differs from the config:"
    assert len([line for line in lines if line.startswith("  - ")]) == 2  # the option and its tensors


def test_missing_unused_and_misshapen_tensors_are_named(peer):
    name = peer.names["mmdetection"]
    state = peer.backbone(name, dcn=()) | peer.heads(name, classes=CLASSES)
    wanted = shapes_of_detector(peer)
    del state["rpn_head.rpn_cls.bias"]
    state["neck.fpn_convs.0.gn.weight"] = torch.zeros(3)
    state["rpn_head.rpn_reg.weight"] = torch.zeros(24, peer.channels, 1, 1)
    with pytest.raises(ValueError, match="differs from the config") as error:
        convert_detector(
            state, SOURCES["mmdetection"], wanted, input_format="rgb_std", eps=1e-5, mask_scale=2.0, kept=range(CLASSES)
        )
    assert str(error.value).splitlines()[1:] == [
        "  - tensors of the config that are missing in the checkpoint (1):",
        "      rpn.head.cls_logits.bias",
        "  - tensors of the checkpoint that are not in the network (1):",
        "      neck.fpn_convs.0.gn.weight",
        "  - tensors with another shape (1):",
        f"      rpn_head.rpn_reg.weight [24, {peer.channels}, 1, 1] would be rpn.head.bbox_pred.weight "
        f"[12, {peer.channels}, 1, 1]",
    ]


def test_half_a_backbone_raises(peer):
    state = peer.backbone(peer.names["detectron2"])
    for gone in ("backbone.bottom_up.res4.2.conv3.norm.running_mean", "backbone.bottom_up.res3.1.conv2.weight"):
        rest = {key: value for key, value in state.items() if key != gone}
        with pytest.raises(ValueError, match=r"a complete ResNet; missing tensors \(1\)") as error:
            convert_backbone(rest, SOURCES["detectron2"], input_format="bgr", eps=1e-5, mask_scale=2.0)
        assert str(error.value).splitlines()[1] in ("  - layer3.2.bn3.running_mean", "  - layer2.1.conv2.weight")
    rest = {key: value for key, value in state.items() if ".res5." not in key}
    with pytest.raises(ValueError, match=r"layer4\.0\.conv1\.weight"):
        convert_backbone(rest, SOURCES["detectron2"], input_format="bgr", eps=1e-5, mask_scale=2.0)


def test_masks_of_an_unknown_scale_raise():
    state = resnet("resnet18", dcn_v2_stages=(4,)).state_dict()
    with pytest.raises(ValueError, match="set --source to the framework"):
        convert_backbone(state, SOURCES["torchvision"], input_format="rgb_std", eps=1e-5, mask_scale=2.0)
    halved = convert_backbone(state, SOURCES["mmdetection"], input_format="rgb_std", eps=1e-5, mask_scale=2.0).tensors
    assert torch.equal(halved["layer4.1.conv2.weight"], state["layer4.1.conv2.weight"] / 2)
    assert torch.equal(halved["layer3.1.conv2.weight"], state["layer3.1.conv2.weight"])


def test_no_more_is_written_than_the_tensors():
    """A file writes the whole memory that a tensor is a part of."""
    state = {key: torch.cat([value[None]] * 3)[1] for key, value in resnet("resnet18").state_dict().items()}
    converted = convert_backbone(state, SOURCES["torchvision"], input_format="rgb_std", eps=1e-5, mask_scale=2.0)
    for key, value in converted.tensors.items():
        assert value.untyped_storage().nbytes() == value.numel() * value.element_size(), key
        assert state[key].untyped_storage().nbytes() == 3 * value.numel() * value.element_size()


GROUP_NORM = {
    "torchvision": lambda key: key,
    "mmdetection": lambda key: "backbone." + re.sub(r"bn(\d)", r"gn\1", key),
    "detectron2": lambda key: (
        re.sub(
            r"bn(\d)",
            r"conv\1.norm",
            key.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm"),
        )
        .replace("layer1", "res2")
        .replace("layer2", "res3")
        .replace("layer3", "res4")
        .replace("layer4", "res5")
    ),
}


@pytest.mark.parametrize("key", GROUP_NORM)
def test_a_backbone_with_group_norm(key):
    network = resnet("resnet50", norm="gn")
    theirs = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("fc.")}
    renamed = {GROUP_NORM[key](name): tensor for name, tensor in theirs.items()}
    if key == "detectron2":
        stem = ("conv1.weight", "conv1.norm.weight", "conv1.norm.bias")
        renamed = {f"stem.{name}" if name in stem else name: tensor for name, tensor in renamed.items()}
    source = detect_source(renamed)
    assert source is SOURCES[key]
    converted = convert_backbone(renamed, source, input_format="rgb_std", eps=1e-5, mask_scale=2.0)
    assert converted.found["norm"] == "gn"
    assert converted.tensors.keys() == theirs.keys()
    assert all(torch.equal(converted.tensors[name], tensor) for name, tensor in theirs.items())


HEADS_OF_FCOS = {
    "mmdetection": ["bbox_head.conv_centerness.weight", "bbox_head.scales.0.scale", "bbox_head.cls_convs.0.gn.weight"],
    "detectron2": [
        "head.ctrness.weight",
        "head.cls_subnet.0.weight",
        "head.cls_subnet.1.weight",
        "head.cls_score.bias",
    ],
    "paddledetection": ["fcos_head.fcos_head_centerness.weight", "fcos_head.scales_on_reg"],
}


@pytest.mark.parametrize("key", HEADS_OF_FCOS)
def test_fcos_of_others_has_its_reason_and_its_backbone_can_be_converted(key, peer):
    state = peer.backbone(peer.names[key], dcn=())
    state |= {name: torch.ones(4) for name in HEADS_OF_FCOS[key]}
    with pytest.raises(
        ValueError, match=r"FCOS of .* is not supported.*\. The backbone alone can be converted, without"
    ):
        check_supported(state, SOURCES[key], whole=True)
    check_supported(state, SOURCES[key], whole=False)
    classes_of(state, SOURCES[key])
    converted = convert_backbone(state, SOURCES[key], input_format="rgb_std", eps=1e-5, mask_scale=2.0)
    assert converted.found["name"] == "resnet50"
    dropped = {entry.source for entry in converted.entries if entry.status == "dropped"}
    assert dropped >= {*HEADS_OF_FCOS[key]}


def changed(**tensors):
    state = resnet("resnet18", norm="bn").state_dict()
    return state | {key: change(state.get(key)) for key, change in tensors.items()}


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        (
            "layer2.0.conv1.weight",
            lambda old: old[:-1],
            r"has the shape \[127, 64, 3, 3\] instead of \[128, 64, 3, 3\]",
        ),
        ("bn1.weight", lambda old: torch.tensor(1.0), r"has the shape \[\] instead of \[64\]"),
        ("bn1.weight", lambda old: old.to("meta"), "has no values"),
        ("layer1.0.conv1.weight", lambda old: old.to(torch.complex64), "must contain floating-point numbers"),
        ("layer1.0.conv1.weight", lambda old: old.to(torch.int32), "must contain floating-point numbers"),
        ("layer1.0.conv1.weight", lambda old: old.to_sparse(), "must be a dense tensor"),
        ("layer1.0.conv1.weight", lambda old: old * float("nan"), "contains 36864 NaN or infinite values of 36864"),
        ("layer1.0.conv1.weight", lambda old: old.double() * 1e300, "NaN or infinite values of 36864"),
        ("bn1.running_var", lambda old: old - 3, "contains 64 negative variances"),
        ("layer1.0.se.weight", lambda old: torch.ones(3), "layer1.0.se.weight is not part of the network"),
        ("layer1.7.conv1.weight", lambda old: torch.ones(3), "not a ResNet of this project"),
    ],
)
def test_tensors_that_do_not_form_a_network_are_named(key, change, message):
    with pytest.raises(ValueError, match=message) as error:
        convert_backbone(
            changed(**{key: change}), SOURCES["torchvision"], input_format="rgb_std", eps=1e-5, mask_scale=2.0
        )
    assert key in str(error.value) or "ResNet of this" in str(error.value)
