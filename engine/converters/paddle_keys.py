"""PaddleDetection 2: Faster, Mask and Cascade R-CNN, RetinaNet, backbones; and their copies in PyTorch (PResNet)."""

import re

from .source import BODY, CLASSIFIER, COUNTER, Layout, Rule, Source

_TENSOR = r"(weight|bias)"
_BODY = r"(?:backbone\.)?"
# res4b, or in the deep networks res4b7; PResNet counts blocks
_BLOCK = _BODY + r"(?:res[2-5]\.res([2-5])([a-z]\d*)|res_layers\.([0-3])\.blocks\.(\d+))\."
_NORM = r"norm\.(weight|bias|_mean|_variance|running_mean|running_var)"
_STATISTICS = {"_mean": "running_mean", "_variance": "running_var"}
# keys of the three convolutions of the stem of variant d, and of their norms
_STEM = {"1": ("conv1.0", "conv1.1"), "2": ("conv1.3", "conv1.4"), "3": ("conv1.6", "bn1")}


def _place(match: re.Match) -> str:
    """Return the key of stage and block."""
    if match[3]:
        return f"{BODY}layer{int(match[3]) + 1}.{match[4]}"
    letter, number = match[2][0], match[2][1:]
    block = int(number) if number else ord(letter) - ord("a")
    return f"{BODY}layer{int(match[1]) - 1}.{block}"


def _norm(name: str) -> str:
    return _STATISTICS.get(name, name)


def _index(letter: str) -> int:
    return ord(letter) - ord("a") + 1


def _shortcut(match: re.Match, layout: Layout) -> str:
    """Map a shortcut; variant d pools first, so the index of its convolution is 1 higher."""
    place = _place(match)
    pooled = any(re.fullmatch(_BODY + r"conv1\.conv1_1\.conv\.weight", name) for name in layout.names)
    is_basic = not any("branch2c" in name for name in layout.names)
    if is_basic and not pooled and place.endswith("layer1.0"):
        raise ValueError(
            f"plain ResNet-18 and -34 of PaddleDetection are not supported: their first shortcut has a convolution "
            f"({match[0]}), which torchvision and this project do not have. Their vd variants are supported"
        )
    if match[5] == "conv.weight":
        return f"{place}.downsample.{int(pooled)}.weight"
    return f"{place}.downsample.{1 + pooled}.{_norm(match[6])}"


def _stem_norm(match: re.Match, _: Layout) -> str:
    return f"{BODY}{_STEM[match[1]][1]}.{_norm(match[2])}"


def _lateral(match: re.Match, layout: Layout) -> str:
    return f"backbone.fpn.inner_blocks.{int(match[1]) - layout.lowest}.0.{match[2]}"


def _output(match: re.Match, layout: Layout) -> str:
    return f"backbone.fpn.layer_blocks.{int(match[1]) - layout.lowest}.0.{match[2]}"


_RULES: list[Rule] = [
    (r".*\.num_batches_tracked", COUNTER),
    (_BODY + r"(?:fc|out)\..*", CLASSIFIER),
    (_BODY + r"conv1\.(?:res_)?conv1\.conv\.weight", BODY + "conv1.weight"),
    (_BODY + r"conv1\.(?:res_)?conv1\." + _NORM, lambda match, _: f"{BODY}bn1.{_norm(match[1])}"),
    (_BODY + r"conv1\.conv1_([123])\.conv\.weight", lambda match, _: f"{BODY}{_STEM[match[1]][0]}.weight"),
    (_BODY + r"conv1\.conv1_([123])\." + _NORM, _stem_norm),
    (_BLOCK + r"branch2([abc])\.conv\.weight", lambda match, _: f"{_place(match)}.conv{_index(match[5])}.weight"),
    (
        _BLOCK + r"branch2b\.conv_offset\.(weight|bias)",
        lambda match, _: f"{_place(match)}.conv2.conv_offset.{match[5]}",
    ),
    (_BLOCK + r"branch2([abc])\." + _NORM, lambda match, _: f"{_place(match)}.bn{_index(match[5])}.{_norm(match[6])}"),
    (_BLOCK + rf"short\.(?:conv\.)?(conv\.weight|{_NORM})", _shortcut),
    (rf"neck\.fpn_inner_res([2-5])_sum(?:_lateral)?\.{_TENSOR}", _lateral),
    (rf"neck\.fpn_res([2-5])_sum\.{_TENSOR}", _output),
    (rf"neck\.fpn_([67])\.{_TENSOR}", r"backbone.fpn.extra_blocks.p\1.\2"),
    (rf"rpn_head\.rpn_feat\.rpn_conv\.{_TENSOR}", r"rpn.head.conv.0.0.\1"),
    (rf"rpn_head\.rpn_rois_score\.{_TENSOR}", r"rpn.head.cls_logits.\1"),
    (rf"rpn_head\.rpn_rois_delta\.{_TENSOR}", r"rpn.head.bbox_pred.\1"),
    (rf"bbox_head\.head\.(\d\.)?(fc[67])\.{_TENSOR}", r"roi_heads.box_head.\1\2.\3"),
    (rf"bbox_head\.bbox_score\.{_TENSOR}", r"roi_heads.box_predictor.cls_score.\1"),
    (rf"bbox_head\.bbox_delta\.{_TENSOR}", r"roi_heads.box_predictor.bbox_pred.\1"),
    (rf"bbox_head\.bbox_score_stage(\d)\.{_TENSOR}", r"roi_heads.box_predictor.\1.cls_score.\2"),
    (rf"bbox_head\.bbox_delta_stage(\d)\.{_TENSOR}", r"roi_heads.box_predictor.\1.bbox_pred.\2"),
    (
        rf"mask_head\.head\.upsample\.mask_inter_feat_(\d)\.{_TENSOR}",
        lambda match, _: f"roi_heads.mask_head.{int(match[1]) - 1}.0.{match[2]}",
    ),
    (rf"mask_head\.head\.upsample\.conv5_mask\.{_TENSOR}", r"roi_heads.mask_predictor.conv5_mask.\1"),
    (rf"mask_head\.mask_fcn_logits\.{_TENSOR}", r"roi_heads.mask_predictor.mask_fcn_logits.\1"),
    (
        rf"head\.conv_feat\.fcos_head_cls_tower_conv_(\d)\.conv\.{_TENSOR}",
        r"head.classification_head.conv.\1.0.\2",
    ),
    (rf"head\.conv_feat\.fcos_head_reg_tower_conv_(\d)\.conv\.{_TENSOR}", r"head.regression_head.conv.\1.0.\2"),
    (rf"head\.retina_cls\.{_TENSOR}", r"head.classification_head.cls_logits.\1"),
    (rf"head\.retina_reg\.{_TENSOR}", r"head.regression_head.bbox_reg.\1"),
]

PADDLE = Source(
    title="PaddleDetection",
    signature=_BODY + r"(?:res2\.res2a|res_layers\.0\.blocks\.0)\.branch2a\.conv\.weight",
    example="backbone.res2.res2a.branch2a.conv.weight",
    rules=_RULES,
    lateral=r"neck\.fpn_inner_res([2-5])_sum(?:_lateral)?\.weight",
    size_major=True,
    clip_boxes="never",
    linear_transposed=True,
    unsupported=[
        (
            r"fcos_head\..*",
            "FCOS of PaddleDetection is not supported: it places points at cell centres and learns a scale per level, "
            "torchvision and this project use cell corners without scales",
            False,
        ),
    ],
    remaining_differences=[
        (
            ".*rcnn",
            "RoIAlign: with half-pixel shift, as PaddleDetection's configs state. Its develop branch ignores them and "
            "pools without the shift; for weights trained so, add roi_aligned=false and roi_sampling_ratio=0",
        ),
        (".*", "resizing: PaddleDetection uses OpenCV, this project PyTorch, both bilinear"),
    ],
)
