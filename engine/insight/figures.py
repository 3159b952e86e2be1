"""Figures of a detector's deformable layers on one image."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..devices import to_device
from .capture import capture_sampling, deformable_layers
from .maps import draw_masks, draw_offsets, draw_receptive_fields
from .receptive import eval_mode, receptive_fields, zero_offsets
from .sampling_locations import Frame, sampled_layers
from .sampling_points import draw_sampling_points

Pixel = tuple[float, float]


def dcn_figures(
    model: nn.Module,
    image: Tensor,
    pixels: Sequence[Pixel],
    *,
    device: torch.device,
    name: str = "this network",
    baseline: nn.Module | None = None,
    baseline_name: str = "the baseline",
) -> dict[str, Tensor]:
    """Draw the sampling points, offsets, masks and effective receptive fields of a detector's backbone on one image.

    Deformable layers of the heads are not drawn: they run in parallel on all levels of the pyramid, not in sequence.
    The train or eval mode of the model is restored, and its parameters get no gradients.

    Args:
        model: detector, see `models.detector`.
        image: `(channels, H, W)`, see `as_rgb`.
        pixels: (x, y) of the image, for which sampling points and receptive fields are drawn.
        device: device of the models.
        name: name of the model in titles.
        baseline: detector whose receptive fields are drawn for comparison. None: the same weights with offsets of 0, if
            the model has deformable layers.
        baseline_name: name of the baseline in titles.

    Returns:
        Figures `(3, h, w)` uint8 by name: "receptive_field"; with deformable layers also "sampling_points" and
        "offsets"; with masks also "masks".
    """
    fields = {name: receptive_fields(model, image, pixels, device=device)}
    layers = deformable_layers(model.backbone.body)
    if baseline is not None:
        fields = {baseline_name: receptive_fields(baseline, image, pixels, device=device)} | fields
    elif layers:
        with zero_offsets(model):
            fields = {f"{name}: same weights, regular grid": receptive_fields(model, image, pixels, device=device)} | {
                f"{name}: learned offsets": fields[name]
            }
    figures = {"receptive_field": draw_receptive_fields(image, fields)}
    if not layers:
        return figures

    with torch.no_grad(), eval_mode(model), capture_sampling(model) as seen:
        dtype = next(model.parameters()).dtype
        prepared, _ = model.transform(to_device([image], [], device, dtype)[0])
        model.backbone.body(prepared.tensors)
    frame = Frame.of(image, prepared, model.transform.margins(tuple(image.shape[-2:])))
    learned, regular = (sampled_layers(model, seen, frame, regular=flat) for flat in (False, True))
    scales = [layer.mask_scale for layer in layers.values() if layer.modulation]
    figures["sampling_points"] = draw_sampling_points(image, pixels, learned, regular, frame, has_masks=bool(scales))
    if scales:
        figures["masks"] = draw_masks(image, learned, frame, start=scales[-1] / 2)
    figures["offsets"] = draw_offsets(image, learned, regular, frame)
    return figures


def box_centres(boxes: Tensor, most: int, image: Tensor) -> list[Pixel]:
    """Return the centres (x, y) of the first `most` boxes (xyxy), or the centre of the image without boxes."""
    height, width = image.shape[1:]
    whole = boxes.new_tensor([[0, 0, width, height]])
    chosen = boxes[:most] if len(boxes) else whole
    # a box from 0 to 1 covers one pixel, whose centre has the coordinate 0
    return [(x, y) for x, y in ((chosen[:, :2] + chosen[:, 2:]) / 2 - 0.5).nan_to_num().tolist()]
