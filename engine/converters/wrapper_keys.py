"""Deformable convolutions of other projects: 4uiiurz1's, developer0hye's and YOLACT's.

The first two replace `conv2` of a block in a ResNet with torchvision's names.
"""

import re

import torch
from torch import Tensor

from .source import BODY, Layout, Rule, Source, TensorRule
from .torchvision_keys import BACKBONE

_CONV2 = r"(?:backbone\.(?:body\.)?)?(layer[1-4]\.\d+)\.conv2\."


def interleaved(rows: Tensor) -> Tensor:
    """Reorder output rows from all dy before all dx to interleaved (dy, dx)."""
    return torch.stack(rows.chunk(2), dim=1).flatten(0, 1)


def _bias(match: re.Match, _: Layout) -> TensorRule:
    """Fold a bias before a batch norm into the running mean."""
    return TensorRule(f"{BODY}{match[1]}.bn2.running_mean", 1, torch.neg, added=True)


def _offset(match: re.Match, _: Layout) -> TensorRule:
    return TensorRule(f"{BODY}{match[1]}.conv2.conv_offset.{match[2]}")


def _blocked_offset(match: re.Match, _: Layout) -> TensorRule:
    return TensorRule(f"{BODY}{match[1]}.conv2.conv_offset.{match[2]}", 0, interleaved)


def _mask(match: re.Match, _: Layout) -> TensorRule:
    return TensorRule(f"{BODY}{match[1]}.conv2.conv_offset.{match[2]}", 1)


PYTORCH_DEFORM_CONV_V2 = Source(
    title="4uiiurz1/pytorch-deform-conv-v2",
    signature=_CONV2 + r"p_conv\.weight",
    example="layer2.0.conv2.p_conv.weight",
    rules=[
        (_CONV2 + r"p_conv\.(weight|bias)", _blocked_offset),
        (_CONV2 + r"m_conv\.(weight|bias)", _mask),
        (_CONV2 + r"conv\.weight", BODY + r"\1.conv2.weight"),
        (_CONV2 + r"conv\.bias", _bias),
        *BACKBONE,
    ],
    remaining_differences=[
        (".*", "sampling: versions of its layer before April 2019 sample whole pixels near the border")
    ],
)

DEVELOPER0HYE = Source(
    title="developer0hye/PyTorch-Deformable-Convolution-v2",
    signature=_CONV2 + r"regular_conv\.weight",
    example="layer2.0.conv2.regular_conv.weight",
    rules=[
        (_CONV2 + r"offset_conv\.(weight|bias)", _offset),
        (_CONV2 + r"modulator_conv\.(weight|bias)", _mask),
        (_CONV2 + r"regular_conv\.weight", BODY + r"\1.conv2.weight"),
        (_CONV2 + r"regular_conv\.bias", _bias),
        *BACKBONE,
    ],
    mask_scale=2.0,
)

_YOLACT = r"backbone\.layers\.([0-3])\.(\d+)\."
_YOLACT_RULES: list[Rule] = [
    (
        _YOLACT + r"conv2\.conv_offset_mask\.(weight|bias)",
        lambda match, _: f"{BODY}layer{int(match[1]) + 1}.{match[2]}.conv2.conv_offset.{match[3]}",
    ),
    (
        _YOLACT + r"conv2\.bias",
        lambda match, _: TensorRule(
            f"{BODY}layer{int(match[1]) + 1}.{match[2]}.bn2.running_mean", 1, torch.neg, added=True
        ),
    ),
    (
        _YOLACT + r"((?!.*num_batches_tracked).*)",
        lambda match, _: f"{BODY}layer{int(match[1]) + 1}.{match[2]}.{match[3]}",
    ),
    *BACKBONE,
]

YOLACT = Source(
    title="YOLACT",
    signature=r"backbone\.layers\.0\.0\.conv1\.weight",
    example="backbone.layers.0.0.conv1.weight",
    rules=_YOLACT_RULES,
)
