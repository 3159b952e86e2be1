"""Figures of masks, offsets and effective receptive fields, as maps over an image."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, PowerNorm, hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from torch import Tensor

from .canvas import DPI, GAP_PX, SMALL, colour_bar, extent_of, mark_centre, panels, render, show_image, title
from .receptive import FRACTIONS, ReceptiveField
from .sampling_locations import Frame, SampledLayer

MASK_COLOURS, FIELD_COLOURS = "viridis", "inferno"
CIRCLE_COLOUR = "#0072B2"
WHEEL_PX = 64
ARROWS = 18  # along the longer side of an image


def last_of_stages(layers: Sequence[SampledLayer]) -> dict[str, SampledLayer]:
    """Return the last deformable layer of each stage by the name of the stage, for example "layer3"."""
    return {layer.name.partition(".")[0]: layer for layer in layers}


def draw_masks(image: Tensor, layers: Sequence[SampledLayer], frame: Frame, *, start: float) -> Tensor:
    """Draw the mask of the last deformable layer of each stage over an image, averaged over the kernel points.

    Args:
        image: `(channels, H, W)`, see `as_rgb`.
        layers: layers of `sampled_layers`.
        frame: frame of the image.
        start: value of the masks at the start of training.

    Returns:
        `(3, h, w)` uint8.
    """
    stages = last_of_stages(layers)
    figure, axes = panels(image, 1, 1 + len(stages), bars=range(1, 1 + len(stages)))
    show_image(axes[0, 0], image)
    title(axes[0, 0], "image")
    for panel, (stage, layer) in zip(axes[0, 1:], stages.items(), strict=True):
        mean = layer.weights.mean(0)
        norm = Normalize(*_range(mean, start))
        show_image(panel, image, colour=0)
        _show_map(panel, mean, frame, cmap=MASK_COLOURS, norm=norm, interpolation="bilinear", alpha=0.7)
        colour_bar(figure, [panel], "", MASK_COLOURS, norm)
        title(panel, f"{stage}: mean mask ({start:g} at the start)", f"{layer.name}, stride {layer.stride[0]:g}")
    return render(figure)


def draw_offsets(
    image: Tensor, layers: Sequence[SampledLayer], regular: Sequence[SampledLayer], frame: Frame
) -> Tensor:
    """Draw the offsets of the last deformable layer of each stage over an image, averaged over the kernel points.

    Args:
        image: `(channels, H, W)`, see `as_rgb`.
        layers: layers of `sampled_layers`.
        regular: the same layers with the regular grid.
        frame: frame of the image.

    Returns:
        `(3, h, w)` uint8.
    """
    before = last_of_stages(regular)
    moves = {
        stage: ((layer.locations - before[stage].locations).mean(0) / frame.scale, layer)
        for stage, layer in last_of_stages(layers).items()
    }
    figure, axes = panels(image, 1, 1 + len(moves), bars=[len(moves)])
    show_image(axes[0, 0], image)
    title(axes[0, 0], "image")
    for panel, (stage, (move, layer)) in zip(axes[0, 1:], moves.items(), strict=True):
        longest = move.norm(dim=-1).quantile(0.99).item()
        show_image(panel, image, colour=0)
        _show_map(panel, _direction_colours(move, longest), frame, interpolation="nearest", alpha=0.75)
        factor = _arrows(panel, move, layer, frame, max(image.shape[1:]))
        shown = "to scale" if factor == 1 else f"enlarged {factor:g}x"
        title(
            panel,
            f"{stage}: mean offset, up to {longest:.2g} image px",
            f"{layer.name}, stride {layer.stride[0]:g}, arrows {shown}",
        )
    _wheel(figure, axes[0, -1])
    return render(figure)


def draw_receptive_fields(image: Tensor, columns: Mapping[str, Sequence[ReceptiveField]]) -> Tensor:
    """Draw effective receptive fields over an image: one row per unit, one column per network.

    A single network has all its units in one row.

    Args:
        image: `(channels, H, W)`, see `as_rgb`.
        columns: for each network by its name, the fields of the same units.

    Returns:
        `(3, h, w)` uint8.
    """
    count = len(next(iter(columns.values())))
    if len(columns) == 1:
        figure, axes = panels(image, 1, count, bars=[count - 1])
    else:
        figure, axes = panels(image, count, len(columns), bars=[len(columns) - 1])
    norm = PowerNorm(0.5, 0, 1)
    for column, (name, fields) in zip(axes if len(columns) == 1 else axes.T, columns.items(), strict=True):
        for panel, field in zip(column, fields, strict=True):
            show_image(panel, image, colour=0)
            strength = field.gradient / field.gradient.max().clamp(min=1e-30)
            shade = norm(strength.numpy())
            colours = colormaps[FIELD_COLOURS](shade)
            colours[..., 3] = np.minimum(2 * shade, 1)  # transparent where the gradient is small
            panel.imshow(colours, extent=extent_of(image), interpolation="nearest")
            for radius, style in zip(field.radii.values(), ("-", "--"), strict=True):
                location = field.centre.flip(0).tolist()
                panel.add_patch(Circle(location, radius, fill=False, color="white", lw=3))
                panel.add_patch(Circle(location, radius, fill=False, color=CIRCLE_COLOUR, lw=1.6, ls=style))
                mark_centre(panel, field.centre)
            radii = ", ".join(f"{fraction:.0%} in {radius:.0f} px" for fraction, radius in field.radii.items())
            unit = "unit at ({:.0f}, {:.0f})".format(*location)
            title(panel, name if panel is column[0] else "", f"{unit}: {radii}")
    fractions = " and ".join(f"{fraction:.0%}" for fraction in FRACTIONS)
    unit = f"unit of {field.stage} (stride {field.stride:g})"
    label = f"gradient of a {unit} relative to its maximum; circles: {fractions} of its energy; px of the image"
    colour_bar(figure, axes[:, -1], label, FIELD_COLOURS, norm)
    return render(figure)


def _range(values: Tensor, start: float) -> tuple[float, float]:
    low, high = values.quantile(0.01).item(), values.quantile(0.99).item()
    return (low, high) if high - low > 1e-3 else (start - 0.05, start + 0.05)


def _show_map(axes: Axes, values: Tensor, frame: Frame, **options: object) -> None:
    """Draw a map `(h, w, ...)` over an image, with its last row and column repeated once."""
    rows, columns = (torch.arange(size + 1).clamp(max=size - 1) for size in values.shape[:2])
    left, right, bottom, top = frame.extent(values.shape[:2])
    height, width = values.shape[:2]
    right, bottom = right + (right - left) / width, bottom + (bottom - top) / height
    axes.imshow(values[rows][:, columns].numpy(), extent=(left, right, bottom, top), **options)


def _direction_colours(move: Tensor, longest: float) -> Tensor:
    """Return colours `(h, w, 4)`: hue by direction, opacity by length."""
    hue = (torch.atan2(-move[..., 0], move[..., 1]) / (2 * torch.pi)) % 1
    strength = (move.norm(dim=-1) / max(longest, 1e-9)).clamp(max=1)
    hsv = torch.stack([hue, torch.full_like(hue, 0.9), torch.full_like(hue, 0.95)], dim=-1)
    return torch.cat([torch.from_numpy(hsv_to_rgb(hsv.numpy())), strength[..., None]], dim=-1)


def _arrows(axes: Axes, move: Tensor, layer: SampledLayer, frame: Frame, side: int) -> float:
    """Draw the mean offset of a grid of pixels as arrows; return the factor by which the arrows are enlarged."""
    rows, columns = move.shape[:2]
    stride = layer.stride / frame.scale
    step = max(1, round(side / ARROWS / stride.max().item()))
    picked = torch.cartesian_prod(torch.arange(step // 2, rows, step), torch.arange(step // 2, columns, step))
    starts = frame.to_image(layer.centre(picked))
    arrows = move[picked[:, 0], picked[:, 1]]
    room = step * stride.min().item()
    longest = arrows.norm(dim=-1).max().item()
    factor = 1.0 if longest < 1e-9 else max(1.0, float(2 ** np.floor(np.log2(room / longest))))
    axes.quiver(
        *starts.flip(1).T.numpy(),
        *(arrows.flip(1).T * factor).numpy(),
        angles="xy",
        scale_units="xy",
        scale=1,
        width=0.004,
        headwidth=4,
        zorder=4,
    )
    return factor


def _wheel(figure: Figure, axes: Axes) -> None:
    """Draw a colour wheel that explains the directions to the right of a panel."""
    side = torch.linspace(-1, 1, 121)
    y, x = torch.meshgrid(side, side, indexing="ij")
    colours = _direction_colours(torch.stack([y, x], dim=-1), 1.0)
    colours[..., 3] *= y.square() + x.square() <= 1
    width_px, height_px = figure.get_size_inches() * DPI
    panel = axes.get_position()
    middle = (panel.y0 + panel.y1) / 2
    wheel = figure.add_axes(
        (panel.x1 + GAP_PX / width_px, middle - WHEEL_PX / 2 / height_px, WHEEL_PX / width_px, WHEEL_PX / height_px)
    )
    wheel.imshow(colours.numpy(), extent=(-1, 1, 1, -1), interpolation="bilinear")
    wheel.set_axis_off()
    wheel.set_title("colour:\ndirection", fontsize=SMALL)
    wheel.text(0, 1.15, "strength:\nlength", fontsize=SMALL, ha="center", va="top")
