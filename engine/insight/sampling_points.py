"""Figures of the sampling points of deformable layers for locations of an image."""

import math
from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from torch import Tensor

from .canvas import colour_bar, in_points, mark_centre, panels, render, show_image, title
from .sampling_locations import Frame, SampledLayer, nested_points

COLOURS = "plasma"
NESTED = 3  # layers
MARGIN = 0.1  # as a fraction of the longer side
# Width of a dot in points, and its maximum as a fraction of the distance between neighbours on the regular grid.
DOT, NESTED_DOT, DOT_FRACTION = 6.8, 3.6, 0.6


def draw_sampling_points(
    image: Tensor,
    pixels: Sequence[tuple[float, float]],
    layers: Sequence[SampledLayer],
    regular: Sequence[SampledLayer],
    frame: Frame,
    *,
    has_masks: bool,
) -> Tensor:
    """Draw the sampling points of the last deformable layer, and of the last three combined, with the regular grids.

    Args:
        image: `(channels, H, W)`, see `as_rgb`.
        pixels: (x, y) of the image; one row of panels each.
        layers: layers of `sampled_layers`.
        regular: the same layers with the regular grid.
        frame: frame of the image.
        has_masks: whether the mask colours the points; DCNv1 has no mask.

    Returns:
        `(3, h, w)` uint8.
    """
    depths = [1] if len(layers) == 1 else [1, min(NESTED, len(layers))]
    sides = [(depth, side) for depth in depths for side in (regular, layers)]
    locations = [frame.to_network(torch.tensor([y, x], dtype=torch.float64)) for x, y in pixels]
    found = [[nested_points(side[-depth:], location) for depth, side in sides] for location in locations]
    largest = [weights.max().item() for row in found for _, weights in row if len(weights)]  # all may be outside
    norm = Normalize(0, max(largest, default=1.0))
    # the margin shows sampling points outside the image, which read zeros
    bars = [len(sides) - 1] if has_masks else []
    figure, axes = panels(image, len(pixels), len(sides), bars=bars, margin=MARGIN * max(image.shape[1:]))
    for row, pixel, location, points_of in zip(axes, pixels, locations, found, strict=True):
        for panel, (depth, side), (points, weights) in zip(row, sides, points_of, strict=True):
            show_image(panel, image, colour=0.5)
            spacing = _spacing(frame.to_image(nested_points(regular[-depth:], location)[0]))
            width = min(DOT if depth == 1 else NESTED_DOT, DOT_FRACTION * in_points(panel, spacing))
            _scatter(panel, frame.to_image(points), weights, norm, width=width)
            top = side[-1]
            mark_centre(panel, frame.to_image(top.centre(top.at(location))), below=True)
            kind = "regular grid" if side is regular else "learned offsets"
            used = side[-depth:]
            whole = math.prod(len(layer.locations) for layer in used)
            count = f"{whole} points" if whole == len(points) else f"{len(points)} of {whole} points"
            about = " for ({:.0f}, {:.0f})".format(*pixel) if panel is row[0] else ""
            title(panel, f"{kind}, {count}{about}", _described(used) if panel in axes[0] else "")
    if has_masks:
        colour_bar(figure, axes[:, -1], "mask (several layers: geometric mean)", COLOURS, norm)
    return render(figure)


def _described(layers: Sequence[SampledLayer]) -> str:
    if len(layers) == 1:
        return f"{layers[0].name}, stride {layers[0].stride[0]:g}"
    return " → ".join(layer.name.removesuffix(".conv2") for layer in reversed(layers))


def _spacing(locations: Tensor) -> float:
    """Return the smallest distance between different points of a grid `(n, 2)`."""
    distances = torch.pdist(locations.unique(dim=0))
    return distances.min().item() if len(distances) else math.inf


def _scatter(axes: Axes, locations: Tensor, weights: Tensor, norm: Normalize, *, width: float) -> None:
    order = weights.argsort()  # large weights on top
    axes.scatter(
        *locations[order].flip(1).T.numpy(),
        s=width**2,
        c=weights[order].numpy(),
        cmap=COLOURS,
        norm=norm,
        edgecolors="black",
        linewidths=min(0.5, 0.07 * width),
        zorder=4,
    )
