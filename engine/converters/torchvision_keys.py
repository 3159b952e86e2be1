"""torchvision: ResNets and detectors, with current names or names of 2019 to 2021."""

import re

from .source import BODY, CLASSIFIER, COUNTER, Layout, Rule, Source


def _tower(match: re.Match, layout: Layout) -> str:
    """Map a head tower: RetinaNet had alternating convolutions and ReLUs, now blocks; FCOS has no blocks."""
    if "head.regression_head.bbox_ctrness.weight" in layout.names:
        return match[0]
    return f"head.{match[1]}.conv.{int(match[2]) // 2}.0.{match[3]}"


BACKBONE: list[Rule] = [
    (r".*\.num_batches_tracked", COUNTER),
    (r"(?:backbone\.(?:body\.)?)?fc\..*", CLASSIFIER),
    (r"(?:backbone\.(?:body\.)?)?((?:conv1|bn1|layer[1-4])\..*)", BODY + r"\1"),
]

TORCHVISION = Source(
    title="torchvision",
    signature=r"(?:backbone\.body\.)?layer1\.0\.conv1\.weight",
    example="layer1.0.conv1.weight or backbone.body.layer1.0.conv1.weight",
    rules=[
        *BACKBONE,
        # detectors of 2019 to 2021 had plain convolutions instead of blocks
        (r"backbone\.fpn\.(inner|layer)_blocks\.(\d)\.(weight|bias)", r"backbone.fpn.\1_blocks.\2.0.\3"),
        (r"rpn\.head\.conv\.(weight|bias)", r"rpn.head.conv.0.0.\1"),
        (r"head\.(classification_head|regression_head)\.conv\.(\d+)\.(weight|bias)", _tower),
        (
            r"roi_heads\.mask_head\.mask_fcn(\d)\.(weight|bias)",
            lambda match, _: f"roi_heads.mask_head.{int(match[1]) - 1}.0.{match[2]}",
        ),
        (r"((?:backbone\.fpn|rpn|roi_heads|head)\..*)", r"\1"),
    ],
    lateral=r"backbone\.fpn\.inner_blocks\.(\d)(?:\.0)?\.weight",
    mask_scale=None,
    background_first=True,
    roi_aligned=False,
    anchors="torchvision",
    remaining_differences=[
        (".*", "classes: the ids that COCO does not use are removed; a trained network gives them no probability")
    ],
)
