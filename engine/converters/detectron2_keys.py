"""detectron2: Faster, Mask and Cascade R-CNN with FPN, RetinaNet, and the backbones of its model zoo."""

import re

from .source import BODY, CLASSIFIER, COUNTER, Dropped, Layout, Rule, Source

_TENSOR = r"(weight|bias)"
_BODY = r"(?:backbone\.bottom_up\.|backbone\.|bottom_up\.)?"


def _block(key: str):
    """A rule for tensors of res2..res5, which are layer1..layer4."""
    return lambda match, _: f"{BODY}layer{int(match[1]) - 1}.{match.expand(key)}"


def _level(key: str):
    """A rule for the convolutions of the pyramid, which detectron2 counts by level."""
    return lambda match, layout: f"backbone.fpn.{key}.{int(match[1]) - layout.lowest}.0.{match[2]}"


def _tower(match: re.Match, _: Layout) -> str:
    kind = "classification_head" if match[1] == "cls" else "regression_head"
    return f"head.{kind}.conv.{int(match[2]) // 2}.0.{match[3]}"


_RULES: list[Rule] = [
    (r".*\.num_batches_tracked", COUNTER),
    (_BODY + r"(?:stem\.fc|linear)\..*", CLASSIFIER),
    (r"pixel_(?:mean|std)", Dropped("input normalisation, folded into conv1")),
    (r".*anchor_generator\.cell_anchors\..*", Dropped("anchors, which this project computes")),
    (_BODY + r"stem\.conv1\.weight", BODY + "conv1.weight"),
    (_BODY + r"stem\.conv1\.norm\.(.*)", BODY + r"bn1.\1"),
    (_BODY + r"res([2-5])\.(\d+)\.conv([123])\.weight", _block(r"\2.conv\3.weight")),
    (_BODY + r"res([2-5])\.(\d+)\.conv([123])\.norm\.(.*)", _block(r"\2.bn\3.\4")),
    (_BODY + r"res([2-5])\.(\d+)\.shortcut\.weight", _block(r"\2.downsample.0.weight")),
    (_BODY + r"res([2-5])\.(\d+)\.shortcut\.norm\.(.*)", _block(r"\2.downsample.1.\3")),
    (_BODY + rf"res([2-5])\.(\d+)\.conv2_offset\.{_TENSOR}", _block(r"\2.conv2.conv_offset.\3")),
    (rf"backbone\.fpn_lateral([2-5])\.{_TENSOR}", _level("inner_blocks")),
    (rf"backbone\.fpn_output([2-5])\.{_TENSOR}", _level("layer_blocks")),
    (rf"backbone\.top_block\.(p[67])\.{_TENSOR}", r"backbone.fpn.extra_blocks.\1.\2"),
    (rf"proposal_generator\.rpn_head\.conv\.{_TENSOR}", r"rpn.head.conv.0.0.\1"),
    (rf"proposal_generator\.rpn_head\.objectness_logits\.{_TENSOR}", r"rpn.head.cls_logits.\1"),
    (rf"proposal_generator\.rpn_head\.anchor_deltas\.{_TENSOR}", r"rpn.head.bbox_pred.\1"),
    (
        rf"roi_heads\.box_head\.(\d\.)?fc([12])\.{_TENSOR}",
        lambda match, _: f"roi_heads.box_head.{match[1] or ''}fc{5 + int(match[2])}.{match[3]}",
    ),
    (rf"roi_heads\.box_predictor\.(\d\.)?(cls_score|bbox_pred)\.{_TENSOR}", r"roi_heads.box_predictor.\1\2.\3"),
    (
        rf"roi_heads\.mask_head\.mask_fcn(\d)\.{_TENSOR}",
        lambda match, _: f"roi_heads.mask_head.{int(match[1]) - 1}.0.{match[2]}",
    ),
    (rf"roi_heads\.mask_head\.deconv\.{_TENSOR}", r"roi_heads.mask_predictor.conv5_mask.\1"),
    (rf"roi_heads\.mask_head\.predictor\.{_TENSOR}", r"roi_heads.mask_predictor.mask_fcn_logits.\1"),
    (rf"head\.(cls|bbox)_subnet\.(\d+)\.{_TENSOR}", _tower),
    (rf"head\.cls_score\.{_TENSOR}", r"head.classification_head.cls_logits.\1"),
    (rf"head\.bbox_pred\.{_TENSOR}", r"head.regression_head.bbox_reg.\1"),
]

DETECTRON2 = Source(
    title="detectron2",
    signature=_BODY + r"res2\.0\.conv1\.weight",
    example="backbone.bottom_up.res2.0.conv1.weight",
    rules=_RULES,
    lateral=r"backbone\.fpn_lateral([2-5])\.weight",
    size_major=True,
    clip_boxes="after_nms",
    input="bgr",
    input_with_groups="bgr_std",
    unsupported=[
        (
            r"(head\.ctrness|proposal_generator\.fcos_head)\..*",
            "FCOS of detectron2 is not supported: it places points at cell centres, torchvision and this project at "
            "cell corners",
            False,
        ),
        (
            r"roi_heads\.res5\..*",
            "C4 models without a feature pyramid, with the last ResNet stage in the head, are not supported",
            True,
        ),
    ],
    remaining_differences=[
        (".*", "resizing: detectron2 uses Pillow with antialiasing, this project PyTorch without antialiasing"),
    ],
)
