"""mmdetection 2 and 3 (and the backbones of 1): Faster, Mask and Cascade R-CNN, RetinaNet."""

import re

from .source import BODY, CLASSIFIER, COUNTER, Layout, Rule, Source

_TENSOR = r"(weight|bias)"
# stem of ResNetV1d; its last norm has the key of the norm of a plain stem
_STEM = {"0": "conv1.0", "1": "conv1.1", "3": "conv1.3", "4": "conv1.4", "6": "conv1.6", "7": "bn1"}


def _fpn(match: re.Match, layout: Layout) -> str:
    """Map convolutions after those of the levels to P6 and P7."""
    number = int(match[1])
    if number < layout.laterals:
        return f"backbone.fpn.layer_blocks.{number}.0.{match[2]}"
    return f"backbone.fpn.extra_blocks.p{6 + number - layout.laterals}.{match[2]}"


_RULES: list[Rule] = [
    (r".*\.num_batches_tracked", COUNTER),
    (r"(?:backbone\.)?(?:fc|head\.fc)\..*", CLASSIFIER),
    (r"(?:backbone\.)?stem\.(\d)\.(.*)", lambda match, _: f"{BODY}{_STEM.get(match[1], match[0])}.{match[2]}"),
    (r"(?:backbone\.)?(layer\d\.\d+)\.conv2_offset\.(.*)", BODY + r"\1.conv2.conv_offset.\2"),
    (
        r"(?:backbone\.)?(layer\d\.\d+\.)?gn(\d)\.(.*)",
        lambda match, _: f"{BODY}{match[1] or ''}bn{match[2]}.{match[3]}",
    ),
    (r"(?:backbone\.)?((?:conv1|bn1|layer[1-4])\..*)", BODY + r"\1"),
    (rf"neck\.lateral_convs\.(\d)\.conv\.{_TENSOR}", r"backbone.fpn.inner_blocks.\1.0.\2"),
    (rf"neck\.fpn_convs\.(\d)\.conv\.{_TENSOR}", _fpn),
    (rf"rpn_head\.rpn_conv\.{_TENSOR}", r"rpn.head.conv.0.0.\1"),
    (rf"rpn_head\.rpn_cls\.{_TENSOR}", r"rpn.head.cls_logits.\1"),
    (rf"rpn_head\.rpn_reg\.{_TENSOR}", r"rpn.head.bbox_pred.\1"),
    (
        rf"roi_head\.bbox_head\.(\d\.)?shared_fcs\.([01])\.{_TENSOR}",
        lambda match, _: f"roi_heads.box_head.{match[1] or ''}fc{6 + int(match[2])}.{match[3]}",
    ),
    (rf"roi_head\.bbox_head\.(\d\.)?fc_cls\.{_TENSOR}", r"roi_heads.box_predictor.\1cls_score.\2"),
    (rf"roi_head\.bbox_head\.(\d\.)?fc_reg\.{_TENSOR}", r"roi_heads.box_predictor.\1bbox_pred.\2"),
    (rf"roi_head\.mask_head\.convs\.(\d)\.conv\.{_TENSOR}", r"roi_heads.mask_head.\1.0.\2"),
    (rf"roi_head\.mask_head\.upsample\.{_TENSOR}", r"roi_heads.mask_predictor.conv5_mask.\1"),
    (rf"roi_head\.mask_head\.conv_logits\.{_TENSOR}", r"roi_heads.mask_predictor.mask_fcn_logits.\1"),
    (rf"bbox_head\.cls_convs\.(\d)\.conv\.{_TENSOR}", r"head.classification_head.conv.\1.0.\2"),
    (rf"bbox_head\.reg_convs\.(\d)\.conv\.{_TENSOR}", r"head.regression_head.conv.\1.0.\2"),
    (rf"bbox_head\.retina_cls\.{_TENSOR}", r"head.classification_head.cls_logits.\1"),
    (rf"bbox_head\.retina_reg\.{_TENSOR}", r"head.regression_head.bbox_reg.\1"),
]

MMDETECTION = Source(
    title="mmdetection",
    signature=r"backbone\.layer1\.0\.conv1\.weight",
    example="backbone.layer1.0.conv1.weight",
    rules=_RULES,
    lateral=r"neck\.lateral_convs\.(\d)\.conv\.weight",
    # the last cascade stage has standard deviations 0.033 and 0.067 instead of 1/30 and 1/15
    cascade_factors={2: (0.99, 0.99, 1.005, 1.005)},
    unsupported=[
        (
            r"bbox_head\.(scales\..*|(fcos_|conv_)centerness\..*)",
            "FCOS of mmdetection is not supported: it places points at cell centres and learns a scale per level, "
            "torchvision and this project use cell corners without scales",
            False,
        ),
        (
            r"bbox_head\.fc_cls\..*",
            "checkpoints of mmdetection 1 have another box format and class order: convert the file to version 2 with "
            "mmdetection's tools/model_converters/upgrade_model_version.py",
            False,
        ),
        (
            r"roi_head\.mask_head\.\d\..*",
            "Cascade Mask R-CNN of mmdetection averages the mask heads of all stages; this project has one mask head",
            False,
        ),
    ],
    remaining_differences=[
        ("retinanet", "P7: mmdetection computes it from P6, torchvision from ReLU(P6)"),
        ("cascade.*", "scores: mmdetection averages the logits of the stages, this project their probabilities"),
        (".*", "resizing: mmdetection uses OpenCV, this project PyTorch, both bilinear"),
    ],
)
