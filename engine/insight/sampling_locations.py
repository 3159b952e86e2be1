"""Sampling locations of deformable layers, in pixels of the image: the geometry of all figures.

A location is (y, x) in pixels; the centre of the first pixel is (0, 0).

- Convolutions of a ResNet pad by half their kernel, so they keep centres. Index i of a map with stride s is at i * s of
  the network's input, not at (i + 0.5) * s - 0.5.
- The detector's resize keeps edges: location p of the network's input is at (p + 0.5) / scale - 0.5 of the image.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from dcn import DeformConv2d

from .capture import SamplingRecord, deformable_layers

# Maximum offset in figures, in pixels of a layer's input.
FAR_PX = 1e4


def sampling_locations(
    offset: Tensor,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor:
    """Return the sampling locations of a deformable convolution.

    Args:
        offset: `(B, 2*G*K, Ho, Wo)`, (dy, dx) of each group and kernel point interleaved. Zeros give the regular grid.
        kernel_size: height and width of the kernel; its K = kh*kw points are in row-major order.
        stride: stride of the layer along (y, x).
        padding: padding of the layer along (y, x).
        dilation: dilation of the layer along (y, x).

    Returns:
        `(B, G, K, Ho, Wo, 2)` in pixels of the layer's input.
    """
    kh, kw = kernel_size
    groups = offset.shape[1] // (2 * kh * kw)
    moved = offset.unflatten(1, (groups, kh, kw, 2)).movedim(4, -1)  # (B, G, kh, kw, Ho, Wo, 2)
    rows, columns = (
        torch.arange(size, device=offset.device)[:, None] * dilation[axis]
        + torch.arange(offset.shape[2 + axis], device=offset.device) * stride[axis]
        - padding[axis]
        for axis, size in enumerate(kernel_size)
    )  # (kh, Ho) and (kw, Wo)
    grid = torch.stack(torch.broadcast_tensors(rows[:, None, :, None], columns[None, :, None, :]), dim=-1)
    return (moved + grid).flatten(2, 3)


class Frame(NamedTuple):
    """Position and scale of the network's input relative to the image; all sizes are (height, width) in pixels.

    Attributes:
        image: size of the image.
        resized: size of the image after the detector's resize.
        padded: size of the network's input, which is padded at the bottom and on the right.
        origin: position of the resized image in the network's input. A letterbox moves it from (0, 0).
    """

    image: tuple[int, int]
    resized: tuple[int, int]
    padded: tuple[int, int]
    origin: tuple[int, int] = (0, 0)

    @classmethod
    def of(cls, image: Tensor, prepared: ImageList, margins: tuple[int, int, int, int]) -> "Frame":
        """Return the frame of an image `(3, H, W)`, from the output and the margins of the detector's transform."""
        (height, width), (top, left, bottom, right) = prepared.image_sizes[0], margins
        resized = (height - top - bottom, width - left - right)
        return cls(tuple(image.shape[-2:]), resized, tuple(prepared.tensors.shape[-2:]), (top, left))

    @property
    def scale(self) -> Tensor:
        """Pixels of the network's input per pixel of the image, along (y, x)."""
        return torch.tensor(self.resized, dtype=torch.float64) / torch.tensor(self.image)

    def stride(self, size: Sequence[int]) -> Tensor:
        """Return the stride along (y, x) of a map of this size relative to the network's input."""
        return torch.tensor(self.padded, dtype=torch.float64) / torch.tensor(size)

    def to_image(self, locations: Tensor) -> Tensor:
        """Convert locations `(..., 2)` of the network's input to locations of the image."""
        return (locations - torch.tensor(self.origin) + 0.5) / self.scale - 0.5

    def to_network(self, locations: Tensor) -> Tensor:
        """Convert locations `(..., 2)` of the image to locations of the network's input."""
        return (locations + 0.5) * self.scale - 0.5 + torch.tensor(self.origin)

    def cut(self, values: Tensor) -> Tensor:
        """Return the part of a map `(..., h, w)` of the network's input that the image covers."""
        (top, left), (height, width) = self.origin, self.resized
        return values[..., top : top + height, left : left + width]

    def extent(self, size: Sequence[int]) -> tuple[float, float, float, float]:
        """Return left, right, bottom and top edge, in pixels of the image, of a map of this size over it."""
        stride = self.stride(size)
        corners = torch.stack([-0.5 * stride, (torch.tensor(size) - 0.5) * stride])
        (top, left), (bottom, right) = self.to_image(corners).tolist()
        return left, right, bottom, top


class SampledLayer(NamedTuple):
    """Sampling locations of one deformable layer, in pixels of the network's input (float64).

    Attributes:
        name: name of the layer.
        stride: stride of its output relative to the network's input, along (y, x).
        origin: location of the first pixel of its output: the centre of that pixel's regular grid.
        locations: `(G*K, Ho, Wo, 2)`.
        weights: `(G*K, Ho, Wo)`: the mask, or ones for DCNv1.
    """

    name: str
    stride: Tensor
    origin: Tensor
    locations: Tensor
    weights: Tensor

    def nearest(self, locations: Tensor) -> Tensor:
        """Return the pixels `(..., 2)` of the layer's output nearest to locations `(..., 2)`, unclamped."""
        return ((locations - self.origin) / self.stride).round().long()

    def centre(self, pixel: Tensor) -> Tensor:
        """Return the location of a pixel of the layer's output."""
        return self.origin + pixel * self.stride

    def contains(self, pixels: Tensor) -> Tensor:
        """Return whether pixels `(..., 2)` are inside the layer's output."""
        return ((pixels >= 0) & (pixels < torch.tensor(self.locations.shape[1:3]))).all(-1)

    def at(self, location: Tensor) -> Tensor:
        """Return the pixel `(2,)` of the layer's output nearest to a location, clamped to the output."""
        return self.nearest(location).clamp(min=torch.zeros(2).long(), max=torch.tensor(self.locations.shape[1:3]) - 1)


def sampled_layers(
    model: nn.Module, seen: dict[str, SamplingRecord], frame: Frame, *, regular: bool = False
) -> list[SampledLayer]:
    """Return the sampling locations of the deformable layers that ran on one image, in the order in which they ran.

    Args:
        model: network.
        seen: records of `capture_sampling` for a batch of one image.
        frame: frame of the image.
        regular: return the regular grid instead: offsets of 0, and masks as at the start of training.
    """
    layers = deformable_layers(model)
    return [_sampled(name, layers[name], sampling, frame, regular) for name, sampling in seen.items()]


def _sampled(name: str, layer: DeformConv2d, sampling: SamplingRecord, frame: Frame, regular: bool) -> SampledLayer:
    # offsets of a network that diverged are drawn as far away
    offset = sampling.offset.cpu().double().nan_to_num(nan=FAR_PX).clamp(-FAR_PX, FAR_PX)
    locations = sampling_locations(
        torch.zeros_like(offset) if regular else offset, layer.kernel_size, layer.stride, layer.padding, layer.dilation
    )
    locations = locations[0].flatten(0, 1)
    weights = torch.ones(locations.shape[:-1], dtype=torch.float64)
    if sampling.mask is not None:
        weights = weights * layer.mask_scale / 2 if regular else sampling.mask[0].cpu().double().nan_to_num()
    step = frame.stride(sampling.input_size)
    middle = (torch.tensor(layer.kernel_size) - 1) * torch.tensor(layer.dilation) / 2 - torch.tensor(layer.padding)
    return SampledLayer(name, step * torch.tensor(layer.stride), step * middle, locations * step, weights)


def nested_points(layers: Sequence[SampledLayer], location: Tensor) -> tuple[Tensor, Tensor]:
    """Trace sampling points from the last layer back to the first, as in the figures of the DCN papers.

    The trace starts at the output pixel of the last layer nearest to `location`. Each of its sampling points continues
    at the nearest output pixel of the layer before: three 3x3 layers have 9^3 = 729 points. Points outside a layer's
    output read zeros and end there.

    Args:
        layers: layers in the order in which they run.
        location: `(2,)` in pixels of the network's input.

    Returns:
        The locations `(n, 2)` that the first layer samples, in pixels of the network's input, and their weights `(n,)`:
        the geometric mean of the masks along the trace.
    """
    *below, top = layers
    row, column = top.at(location)
    locations, weights = top.locations[:, row, column], top.weights[:, row, column]
    for layer in reversed(below):
        pixels = layer.nearest(locations)
        inside = layer.contains(pixels)
        rows, columns = pixels[inside].unbind(-1)
        locations = layer.locations[:, rows, columns].transpose(0, 1).flatten(0, 1)
        weights = (layer.weights[:, rows, columns] * weights[inside]).transpose(0, 1).flatten()
    return locations, weights ** (1 / len(layers))
