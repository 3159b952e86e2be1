"""How images get the size at which a detector sees them: the same in training, in evaluation and in exported files."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from .transform import DetectorTransform, LetterboxTransform, letterbox_geometry

# of `Resize`
KINDS = ("shortest", "stretch", "letterbox")


@dataclass(frozen=True)
class Resize:
    """How images are resized.

    Attributes:
        kind: "shortest" scales an image until its shorter side has a size, "stretch" makes it a square without regard
            to its shape, "letterbox" scales it to fit a square and fills what is left of that on both sides.
        sizes: pixels of the shorter side, or of the sides of the square. In training one of several is drawn, for each
            image ("shortest") or for all images of a step (the others).
        max_size: "shortest" alone: most pixels of the longer side.
        eval_size: the size in evaluation; None: the last of `sizes`.

    Raises:
        ValueError: if the kind is unknown.
    """

    kind: str
    sizes: tuple[int, ...]
    max_size: int
    eval_size: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind of resizing {self.kind!r}, known: {', '.join(KINDS)}")

    @property
    def eval_side(self) -> int:
        """The size in evaluation, in pixels."""
        return self.sizes[-1] if self.eval_size is None else self.eval_size

    @property
    def step_sizes(self) -> tuple[int, ...]:
        """The sizes of which one is drawn for all images of a training step; empty if each image draws its own."""
        return () if self.kind == "shortest" else self.sizes

    def train_steps(self, size: int | None, fill: tuple[int, int, int]) -> list[v2.Transform]:
        """Return the transforms of a training image.

        Args:
            size: one of `step_sizes`; None draws one for the image ("shortest") or takes the one of evaluation.
            fill: colour of what a letterbox leaves of the square.
        """
        size = self.eval_side if size is None else size
        # bilinear and without antialias, as in evaluation
        scaling = {
            "shortest": lambda: v2.RandomShortestSize(list(self.sizes), self.max_size, antialias=False),
            "stretch": lambda: v2.Resize((size, size), antialias=False),
            "letterbox": lambda: Letterbox(size, fill),
        }
        return [scaling[self.kind](), v2.ClampBoundingBoxes()]

    def transform(self, mean: Sequence[float], std: Sequence[float]) -> DetectorTransform:
        """Return what a detector does to images: it normalises and pads them, and resizes those to evaluate on.

        Args:
            mean: of the pixels in [0, 1], by channel.
            std: their standard deviation.
        """
        kind = LetterboxTransform if self.kind == "letterbox" else DetectorTransform
        side = self.eval_side
        return kind(side, self.max_size, mean, std, fixed_size=(side, side) if self.kind == "stretch" else None)


class Letterbox(v2.Transform):
    """Scales an image to fit a square and fills what is left of that, half of it on each side."""

    def __init__(self, side: int, fill: tuple[int, int, int]) -> None:
        super().__init__()
        self.side, self.fill = side, fill

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Find where an image lies in the square."""
        size, margins = letterbox_geometry(v2.query_size(flat_inputs), self.side)
        top, left, bottom, right = margins
        return {"size": [*size], "padding": [left, top, right, bottom]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Scale and pad an image, its boxes or its masks."""
        scaled = functional.resize(inpt, params["size"], antialias=False)
        return functional.pad(scaled, params["padding"], fill=0 if isinstance(inpt, tv_tensors.Mask) else self.fill)
