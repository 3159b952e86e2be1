"""What is known of a framework whose checkpoints are converted."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor

BODY = "backbone.body."


class TensorRule(NamedTuple):
    """Where a tensor goes: a key of this project's detectors, and its place among those that make it up together.

    Attributes:
        key: ours.
        part: pieces of one key are joined in this order, along the first dimension.
        change: of the tensor, before.
        added: whether the pieces are summed up instead.
    """

    key: str
    part: int = 0
    change: Callable[[Tensor], Tensor] | None = None
    added: bool = False


class Dropped(NamedTuple):
    """A tensor that has no place here, and why."""

    why: str


COUNTER = Dropped("a counter of batch norm")
CLASSIFIER = Dropped("the classifier of ImageNet")


class Layout(NamedTuple):
    """What the names of a checkpoint tell together.

    Attributes:
        names: all of them.
        lowest: number of the lowest lateral convolution of the pyramid.
        laterals: how many there are.
    """

    names: frozenset[str]
    lowest: int
    laterals: int


# a pattern of names, and what becomes of them: a key of ours with the pattern's groups in it, or what gives one
Rule = tuple[str, str | Dropped | Callable[[re.Match, Layout], str | TensorRule | Dropped]]


class Source(NamedTuple):
    """A framework.

    Attributes:
        title: its name.
        signature: pattern of a name that tells its checkpoints.
        example: such a name.
        rules: patterns of names, the first that fits counts, with what becomes of the tensor.
        lateral: pattern of a lateral convolution's weight, with its number as group 1.
        mask_scale: of its DCNv2, mask = mask_scale * sigmoid; None where its networks have none.
        background_first: whether the background is class 0 of the classifier, and classes have rows for it elsewhere
            too, as in torchvision; else it is the last, in the classifier alone.
        size_major: whether the anchors of a place are ordered by size first, then by ratio; torchvision has ratios
            first.
        linear_transposed: whether fully connected layers have weights of (inputs, outputs).
        roi_aligned: whether RoIAlign shifts by half a pixel.
        input: what its networks are fed by default, a key of `arithmetic.INPUT_FORMATS`.
        cascade_factors: by stage of a cascade, its standard deviations of (dx, dy, dw, dh) times our weights.
        unsupported: (pattern, reason, whether the backbone is affected too) of names that cannot be converted.
        remaining_differences: how a converted detector still differs: patterns of our names of detectors, and the text.
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
    input: str = "rgb_std"
    cascade_factors: Mapping[int, tuple[float, ...]] = MappingProxyType({})
    unsupported: Sequence[tuple[str, str, bool]] = ()
    remaining_differences: Sequence[tuple[str, str]] = ()

    def layout(self, names: Iterable[str]) -> Layout:
        """Take what names tell together."""
        names = frozenset(names)
        numbers = {int(match[1]) for name in names if (match := re.fullmatch(self.lateral, name))}
        return Layout(names, min(numbers, default=0), len(numbers))

    def remaining(self, detector: str) -> list[str]:
        """Say how a converted detector still differs from what it was."""
        return [text for pattern, text in self.remaining_differences if re.fullmatch(pattern, detector)]

    def target(self, name: str, layout: Layout) -> TensorRule | Dropped | None:
        """Say what becomes of a tensor; None if no rule fits."""
        for pattern, rule in self.rules:
            if match := re.fullmatch(pattern, name):
                target = rule(match, layout) if callable(rule) else rule
                if isinstance(rule, str):
                    target = match.expand(rule)
                return TensorRule(target) if isinstance(target, str) else target
        return None
