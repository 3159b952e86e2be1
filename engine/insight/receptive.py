"""Effective receptive fields: how much a unit of the network depends on each pixel of an image."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..devices import to_device
from .capture import deformable_layers
from .sampling_locations import Frame

FRACTIONS = (0.5, 0.9)


class ReceptiveField(NamedTuple):
    """Effective receptive field of one unit of the last stage.

    Attributes:
        gradient: `(h, w)`, norm of the gradient over the colour channels at each pixel of the resized image.
        centre: `(2,)`, location (y, x) of the unit in pixels of the image.
        stage: name of the stage, for example "layer4".
        stride: stride of the stage relative to the network's input.
        radii: for each of `FRACTIONS`, the radius in pixels of the image that contains this fraction of the gradient's
            energy (the sum of its squares). NaN if the gradient is 0.
        frame: frame of the image.
    """

    gradient: Tensor
    centre: Tensor
    stage: str
    stride: float
    radii: dict[float, float]
    frame: Frame


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Context in which a model is in eval mode and runs without `torch.compile`."""
    was_training = model.training
    model.eval()
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        model.train(was_training)


@contextmanager
def zero_offsets(model: nn.Module) -> Iterator[None]:
    """Context in which deformable layers sample as at the start of training: offsets of 0, constant masks."""
    hooks = [
        layer.conv_offset.register_forward_hook(lambda _, arguments, predicted: torch.zeros_like(predicted))
        for layer in deformable_layers(model).values()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def receptive_fields(
    model: nn.Module, image: Tensor, pixels: Sequence[tuple[float, float]], *, device: torch.device
) -> list[ReceptiveField]:
    """Measure effective receptive fields in the last stage of a detector's backbone, https://arxiv.org/abs/1701.04128.

    As in the paper, the output gradient is 1 at one position of the stage, in all channels, and 0 elsewhere. It is
    propagated back to the network's input. The paper averages over random images and weights; here both are given.
    The computation uses the dtype of the weights, without autocast. The train or eval mode of the model is restored,
    and its parameters get no gradients.

    Args:
        model: detector, see `models.detector`.
        image: `(channels, H, W)`, see `as_rgb`.
        pixels: (x, y) of the image. Each selects the nearest unit.
        device: device of the model.

    Returns:
        One receptive field per pixel.
    """
    dtype = next(model.parameters()).dtype
    with eval_mode(model), torch.inference_mode(False), torch.enable_grad():
        prepared, _ = model.transform(to_device([image.clone()], [], device, dtype)[0])
        frame = Frame.of(image, prepared, model.transform.margins(tuple(image.shape[-2:])))
        inputs = prepared.tensors.detach().requires_grad_()
        *_, features = model.backbone.body(inputs).values()
        stride = frame.stride(features.shape[-2:])
        units = [_unit_at(pixel, frame, stride, features.shape[-2:]) for pixel in pixels]
        found = []
        for unit in units:
            (gradient,) = torch.autograd.grad(features[0, :, unit[0], unit[1]].sum(), inputs, retain_graph=True)
            found.append(frame.cut(gradient[0].cpu().double().nan_to_num().norm(dim=0)))
    stage = list(model.backbone.body.return_layers)[-1]
    centres = [frame.to_image(unit * stride) for unit in units]
    return [
        ReceptiveField(gradient, centre, stage, stride[0].item(), energy_radii(gradient, centre, frame), frame)
        for gradient, centre in zip(found, centres, strict=True)
    ]


def energy_radii(gradient: Tensor, centre: Tensor, frame: Frame) -> dict[float, float]:
    """Return the radii around `centre` (image pixels) that contain `FRACTIONS` of a gradient's energy."""
    rows, columns = (torch.arange(size, dtype=torch.float64) for size in gradient.shape)
    locations = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)
    locations = frame.to_image(locations + torch.tensor(frame.origin))
    distance, order = (locations - centre).norm(dim=-1).flatten().sort()
    energy = gradient.square().flatten()[order].cumsum(0)
    if not energy[-1] > 0:
        return dict.fromkeys(FRACTIONS, float("nan"))
    found = torch.searchsorted(energy, energy[-1] * torch.tensor(FRACTIONS, dtype=energy.dtype))
    return dict(zip(FRACTIONS, distance[found].tolist(), strict=True))


def _unit_at(pixel: tuple[float, float], frame: Frame, stride: Tensor, size: Sequence[int]) -> Tensor:
    """Return the unit `(2,)` of a map nearest to a pixel (x, y) of the image."""
    location = frame.to_network(torch.tensor(pixel[::-1], dtype=torch.float64))
    return (location / stride).round().long().clamp(torch.zeros(2).long(), torch.tensor(size) - 1)
