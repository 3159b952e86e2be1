"""What a detector's deformable layers learned, as pictures of one image."""

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
    against: nn.Module | None = None,
    against_name: str = "the other network",
) -> dict[str, Tensor]:
    """Draw what the deformable layers of a detector's backbone do on one image, and what its units depend on.

    Those of a head run side by side, on every map of the pyramid, and not one after the other: they are left out.
    The model is left in the mode it was in, and gets no gradients.

    Args:
        model: detector, see `models.detector`.
        image: `(3, H, W)` uint8.
        pixels: (x, y) of the image, for which sampling points and receptive fields are drawn.
        device: where the models are.
        name: of the model, for titles.
        against: another detector whose receptive fields are drawn beside. Without one they are those of the same
            weights on the regular grid, where there are deformable layers.
        against_name: its name.

    Returns:
        Pictures `(3, h, w)` uint8: "receptive_field"; with deformable layers also "sampling_points" and "offsets", and
        "masks" if they have masks.
    """
    fields = {name: receptive_fields(model, image, pixels, device=device)}
    layers = deformable_layers(model.backbone.body)
    if against is not None:
        fields = {against_name: receptive_fields(against, image, pixels, device=device)} | fields
    elif layers:
        with zero_offsets(model):
            fields = {f"{name}: same weights, regular grid": receptive_fields(model, image, pixels, device=device)} | {
                f"{name}: learned offsets": fields[name]
            }
    pictures = {"receptive_field": draw_receptive_fields(image, fields)}
    if not layers:
        return pictures

    with torch.no_grad(), eval_mode(model), capture_sampling(model) as seen:
        dtype = next(model.parameters()).dtype
        prepared, _ = model.transform(to_device([image], [], device, dtype)[0])
        model.backbone.body(prepared.tensors)
    frame = Frame.of(image, prepared, model.transform.margins(tuple(image.shape[-2:])))
    learned, regular = (sampled_layers(model, seen, frame, regular=flat) for flat in (False, True))
    scales = [layer.mask_scale for layer in layers.values() if layer.modulation]
    pictures["sampling_points"] = draw_sampling_points(image, pixels, learned, regular, frame, has_masks=bool(scales))
    if scales:
        pictures["masks"] = draw_masks(image, learned, frame, start=scales[-1] / 2)
    pictures["offsets"] = draw_offsets(image, learned, regular, frame)
    return pictures


def box_centres(boxes: Tensor, most: int, image: Tensor) -> list[Pixel]:
    """The pixels (x, y) in the middle of the first boxes (xyxy), `most` at most; without a box that of the image."""
    height, width = image.shape[1:]
    whole = boxes.new_tensor([[0, 0, width, height]])
    chosen = boxes[:most] if len(boxes) else whole
    # a box from 0 to 1 holds the one pixel whose centre is called 0
    return [(x, y) for x, y in ((chosen[:, :2] + chosen[:, 2:]) / 2 - 0.5).tolist()]
