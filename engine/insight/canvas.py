"""Matplotlib figures with images as panels, rendered to tensors without matplotlib's global state."""

import textwrap
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from data.shown import escaped

from ..display import as_rgb

DPI, POINTS_IN_INCH = 100, 72
# Maximum width of a figure, longer side of a panel, and minimum width of a column, which needs room for its title.
WIDEST, PANEL, NARROWEST = 1600, 480, 320
# Pixels for a title of two lines, for a title of one line, between columns, for a colour bar, and around the figure.
TITLE_PX, LINE_PX, GAP_PX, BAR_PX, BORDER_PX = 44, 26, 10, 100, 10
SMALL = 9  # points
LETTER_PX = 7.5  # mean width of a letter of size SMALL


def panels(
    image: Tensor, rows: int, columns: int, *, bars: Sequence[int] = (), margin: float = 0.0
) -> tuple[Figure, np.ndarray]:
    """Make a figure of panels for an image; titles of the first row may have two lines.

    Args:
        image: `(3, H, W)`; the panels have its shape.
        rows: number of rows.
        columns: number of columns.
        bars: columns with a colour bar on their right.
        margin: white space around the image, in pixels of the image.

    Returns:
        The figure and its axes `(rows, columns)`.
    """
    height, width = (side + 2 * margin for side in image.shape[1:])
    room = WIDEST - 2 * BORDER_PX - columns * GAP_PX - len(bars) * BAR_PX
    scale = min(PANEL, room / columns) / max(height, width)
    panel = round(width * scale) or 1, round(height * scale) or 1
    column = max(panel[0], min(NARROWEST, int(room / columns)))
    lefts = [BORDER_PX + n * (column + GAP_PX) + sum(bar < n for bar in bars) * BAR_PX for n in range(columns)]
    tops = [BORDER_PX + TITLE_PX + n * (panel[1] + LINE_PX) for n in range(rows)]
    whole = lefts[-1] + column + GAP_PX + (columns - 1 in bars) * BAR_PX, tops[-1] + panel[1] + BORDER_PX
    figure = Figure((whole[0] / DPI, whole[1] / DPI), dpi=DPI)
    axes = np.empty((rows, columns), dtype=object)
    for row, column_index in np.ndindex(rows, columns):
        left, bottom = lefts[column_index] + (column - panel[0]) // 2, whole[1] - tops[row] - panel[1]
        rectangle = (left / whole[0], bottom / whole[1], panel[0] / whole[0], panel[1] / whole[1])
        axes[row, column_index] = made = figure.add_axes(rectangle, xticks=[], yticks=[])
        made.set(xlim=(-0.5 - margin, width - margin - 0.5), ylim=(height - margin - 0.5, -0.5 - margin))
        made.set_autoscale_on(False)
        made.spines[:].set_linewidth(0.5)
    return figure, axes


def show_image(axes: Axes, image: Tensor, *, colour: float | None = None) -> None:
    """Show an image `(channels, H, W)`, see `as_rgb`, in a panel.

    Args:
        axes: the panel.
        image: the image.
        colour: fraction of the saturation to keep, in [0, 1]; the image is also brightened, as a background for other
            drawings. None: no change.
    """
    pixels = as_rgb(image).permute(1, 2, 0).numpy().astype(np.float32) / 255
    if colour is not None:
        grey = (pixels @ np.float32([0.299, 0.587, 0.114]))[..., None]
        pixels = 0.3 + 0.7 * (colour * pixels + (1 - colour) * grey)
    axes.imshow(pixels, extent=extent_of(image), interpolation="nearest")


def extent_of(image: Tensor) -> tuple[float, float, float, float]:
    """Return left, right, bottom and top edge of an image `(3, H, W)` in its pixel coordinates."""
    height, width = image.shape[1:]
    return -0.5, width - 0.5, height - 0.5, -0.5


def title(axes: Axes, *lines: str) -> None:
    """Set the title of a panel; empty lines are omitted."""
    names = [escaped(line) for line in lines if line]
    axes.set_title("\n".join(names), fontsize=SMALL, linespacing=1.4, parse_math=False)  # a name may contain a $


def colour_bar(figure: Figure, column: Sequence[Axes], label: str, colours: str, norm: Normalize) -> None:
    """Draw a colour bar to the right of a column of panels."""
    width_px, height_px = figure.get_size_inches() * DPI
    top, bottom = column[0].get_position(), column[-1].get_position()
    long = min(top.y1 - bottom.y0, PANEL / height_px)
    rectangle = (top.x1 + GAP_PX / width_px, (top.y1 + bottom.y0 - long) / 2, 12 / width_px, long)
    bar = figure.colorbar(ScalarMappable(norm, colours), cax=figure.add_axes(rectangle))
    middle = (top.y1 + bottom.y0) / 2
    room_px = 2 * min(middle, 1 - middle) * height_px - BORDER_PX
    bar.set_label(textwrap.fill(label, max(10, int(room_px / LETTER_PX))), fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL - 1)
    bar.ax.yaxis.set_major_locator(MaxNLocator(5))
    bar.outline.set_linewidth(0.5)


def mark_centre(axes: Axes, location: Tensor, *, below: bool = False) -> None:
    """Mark a location (y, x) with a cross, above or below the other drawings."""
    for colour, width, size in (("white", 4, 13), ("black", 1.8, 11)):
        options = {"markersize": size, "markeredgewidth": width, "zorder": 3 if below else 5}
        axes.plot(location[1].item(), location[0].item(), "+", color=colour, **options)


def in_points(axes: Axes, pixels: float) -> float:
    """Convert a length in pixels of the image to points, the unit of line widths and marker sizes."""
    (left, _), (right, _) = axes.transData.transform([(0, 0), (pixels, 0)])
    return (right - left) * POINTS_IN_INCH / axes.figure.dpi


def render(figure: Figure) -> Tensor:
    """Render a figure to `(3, H, W)` uint8 and free its memory."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    image = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
    figure.clear()
    return image
