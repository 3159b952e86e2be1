"""Description of a source framework: tensor names, conventions and limits."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor

BODY = "backbone.body."


class TensorRule(NamedTuple):
    """Target of a tensor: a key of this project, and its position if several tensors form one.

    Attributes:
        key: key in this project.
        part: tensors with the same key are concatenated in this order, along the first dimension.
        change: function applied to the tensor first.
        added: whether the tensors are summed instead of concatenated.
    """

    key: str
    part: int = 0
    change: Callable[[Tensor], Tensor] | None = None
    added: bool = False


class Dropped(NamedTuple):
    """A tensor that is not converted, with the reason."""

    why: str


COUNTER = Dropped("batch norm counter")
CLASSIFIER = Dropped("ImageNet classifier")


class Layout(NamedTuple):
    """Properties that follow from all names of a checkpoint.

    Attributes:
        names: all tensor names.
        lowest: number of the lowest lateral convolution of the pyramid.
        laterals: number of lateral convolutions.
    """

    names: frozenset[str]
    lowest: int
    laterals: int


# name pattern, and its target: a key with the groups of the pattern, or a function that returns the target
Rule = tuple[str, str | Dropped | Callable[[re.Match, Layout], str | TensorRule | Dropped]]


class Source(NamedTuple):
    """A source framework.

    Attributes:
        title: name of the framework.
        signature: pattern of a tensor name that identifies its checkpoints.
        example: a name that matches the signature.
        rules: name patterns with targets; the first match counts.
        lateral: pattern of a lateral convolution's weight, with its number as group 1.
        mask_scale: mask scale of its DCNv2, mask = mask_scale * sigmoid; None without DCNv2.
        background_first: whether class 0 is the background in all outputs, as in torchvision. Otherwise the background
            is the last class of the classifier.
        size_major: whether anchors of a location are ordered by size, then by ratio; torchvision orders by ratio first.
        linear_transposed: whether linear layers have weights of shape (inputs, outputs).
        roi_aligned: whether RoIAlign shifts by half a pixel.
        anchors: kind of its anchors, a key of `models.anchors.ANCHORS`.
        clip_boxes: when its RetinaNet clips boxes, a name in `models.retinanet.CLIPPING`.
        input: default input format, a key of `arithmetic.INPUT_FORMATS`.
        input_with_groups: default input format of networks with grouped convolutions (ResNeXt); "" for the same.
        cascade_factors: standard deviations of (dx, dy, dw, dh) by cascade stage, times the weights of this project.
        unsupported: (pattern, reason, whether the backbone is affected too) of names that cannot be converted.
        remaining_differences: differences after conversion: pattern of detector names, and text.
    """

    title: str
    signature: str
    example: str
    rules: Sequence[Rule]
    lateral: str = r"(?!)"
    mask_scale: float | None = 1.0
    background_first: bool = False
    size_major: bool = False
    linear_transposed: bool = False
    roi_aligned: bool = True
    anchors: str = "exact"
    clip_boxes: str = "before_nms"
    input: str = "rgb_std"
    input_with_groups: str = ""
    cascade_factors: Mapping[int, tuple[float, ...]] = MappingProxyType({})
    unsupported: Sequence[tuple[str, str, bool]] = ()
    remaining_differences: Sequence[tuple[str, str]] = ()

    def layout(self, names: Iterable[str]) -> Layout:
        """Return the layout of a checkpoint with these names."""
        names = frozenset(names)
        numbers = {int(match[1]) for name in names if (match := re.fullmatch(self.lateral, name))}
        return Layout(names, min(numbers, default=0), len(numbers))

    def options(self) -> dict[str, Any]:
        """Return the options of a detector that give its tensors the meaning that they have in the source."""
        return {"roi_aligned": self.roi_aligned, "anchors": self.anchors, "clip_boxes": self.clip_boxes}

    def remaining(self, detector: str) -> list[str]:
        """Return the remaining differences of a converted detector to the source."""
        return [text for pattern, text in self.remaining_differences if re.fullmatch(pattern, detector)]

    def target(self, name: str, layout: Layout) -> TensorRule | Dropped | None:
        """Return the target of a tensor; None if no rule matches."""
        for pattern, rule in self.rules:
            if match := re.fullmatch(pattern, name):
                target = rule(match, layout) if callable(rule) else rule
                if isinstance(rule, str):
                    target = match.expand(rule)
                return TensorRule(target) if isinstance(target, str) else target
        return None
