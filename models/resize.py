"""Resizing of a detector's images, the same in training, evaluation and exported files."""

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
    """Settings of the resizing.

    Attributes:
        kind: "shortest" scales an image so that its shorter side has a given size. "stretch" resizes it to a square
            without keeping its aspect ratio. "letterbox" scales it to fit a square and pads the square on both sides.
        sizes: Pixels of the shorter side or of the square's sides. If there are several, training draws one, for each
            image ("shortest") or for all images of a step (the other kinds).
        max_size: Maximum pixels of the longer side; used only by "shortest".
        eval_size: Size in evaluation; None means the last of `sizes`.

    Raises:
        ValueError: If the kind is unknown.
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
        """Return the size in evaluation, in pixels."""
        return self.sizes[-1] if self.eval_size is None else self.eval_size

    @property
    def step_sizes(self) -> tuple[int, ...]:
        """Return the sizes of which one is drawn for all images of a training step; empty if each image draws one."""
        return () if self.kind == "shortest" else self.sizes

    @property
    def max_aspect_ratio(self) -> float | None:
        """Return the largest ratio of sides with which the shorter side keeps a pixel; None for any ratio."""
        return self.max_size if self.kind == "shortest" else None

    def train_steps(self, size: int | None, fill: tuple[float, ...]) -> list[v2.Transform]:
        """Return the transforms of a training image.

        Args:
            size: One of `step_sizes`; None draws a size for the image ("shortest") or uses the evaluation size.
            fill: Colour of a letterbox's padding.
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
        """Return the transform of a detector, which normalises and pads images, and resizes them in evaluation.

        Args:
            mean: Mean of each channel, for pixels in [0, 1].
            std: Standard deviation of each channel.
        """
        kind = LetterboxTransform if self.kind == "letterbox" else DetectorTransform
        side = self.eval_side
        return kind(side, self.max_size, mean, std, fixed_size=(side, side) if self.kind == "stretch" else None)


class Letterbox(v2.Transform):
    """Transform that scales an image to fit a square and pads it equally on both sides."""

    def __init__(self, side: int, fill: tuple[float, ...]) -> None:
        super().__init__()
        self.side, self.fill = side, fill

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Return the size and padding of an image in the square."""
        size, margins = letterbox_geometry(v2.query_size(flat_inputs), self.side)
        top, left, bottom, right = margins
        return {"size": [*size], "padding": [left, top, right, bottom]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Scale and pad an image, its boxes or its masks."""
        scaled = functional.resize(inpt, params["size"], antialias=False)
        return functional.pad(scaled, params["padding"], fill=0 if isinstance(inpt, tv_tensors.Mask) else self.fill)
