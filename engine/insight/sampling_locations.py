"""Where deformable layers sample, in pixels of the image: the geometry of all pictures.

A location is (y, x) in pixels, the centre of the first pixel being (0, 0). Convolutions of a ResNet pad by half their
kernel and so keep centres: index i of a map of stride s lies at i * s of the network's input, not at
(i + 0.5) * s - 0.5. The detector's resize keeps edges: location p of its input is at
(p + 0.5) / scale - 0.5 of the image.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from dcn import DeformConv2d

from .capture import SamplingRecord, deformable_layers


def sampling_locations(
    offset: Tensor,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor:
    """Find the locations that a deformable convolution samples.

    Args:
        offset: `(B, 2*G*K, Ho, Wo)`, per group and kernel point (dy, dx) interleaved; zeros give the regular grid.
        kernel_size: height and width of the kernel, K = kh*kw points, row by row.
        stride: of the layer, as the next two along (y, x).
        padding: of the layer.
        dilation: of the layer.

    Returns:
        `(B, G, K, Ho, Wo, 2)`, locations in pixels of the layer's input.
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
    """How the network's input lies over an image; all sizes are (height, width) in pixels.

    Attributes:
        image: size of the image.
        resized: size that the detector scales it to.
        padded: size of the network's input, which is padded at the bottom and to the right.
        origin: where the first pixel of the resized image lies in the network's input; not at (0, 0) in a letterbox.
    """

    image: tuple[int, int]
    resized: tuple[int, int]
    padded: tuple[int, int]
    origin: tuple[int, int] = (0, 0)

    @classmethod
    def of(cls, image: Tensor, prepared: ImageList, margins: tuple[int, int, int, int]) -> "Frame":
        """Describe what a detector's transform made of one image `(3, H, W)`, whose margins it says."""
        (height, width), (top, left, bottom, right) = prepared.image_sizes[0], margins
        resized = (height - top - bottom, width - left - right)
        return cls(tuple(image.shape[-2:]), resized, tuple(prepared.tensors.shape[-2:]), (top, left))

    @property
    def scale(self) -> Tensor:
        """Pixels of the network's input for one of the image, along (y, x)."""
        return torch.tensor(self.resized, dtype=torch.float64) / torch.tensor(self.image)

    def stride(self, size: Sequence[int]) -> Tensor:
        """Stride, along (y, x), of a map of that size over the network's input."""
        return torch.tensor(self.padded, dtype=torch.float64) / torch.tensor(size)

    def to_image(self, locations: Tensor) -> Tensor:
        """Take locations `(..., 2)` of the network's input for locations of the image."""
        return (locations - torch.tensor(self.origin) + 0.5) / self.scale - 0.5

    def to_network(self, locations: Tensor) -> Tensor:
        """Take locations `(..., 2)` of the image for locations of the network's input."""
        return (locations + 0.5) * self.scale - 0.5 + torch.tensor(self.origin)

    def cut(self, values: Tensor) -> Tensor:
        """Return the part of a map `(..., h, w)` of the network's input that the image covers."""
        (top, left), (height, width) = self.origin, self.resized
        return values[..., top : top + height, left : left + width]

    def extent(self, size: Sequence[int]) -> tuple[float, float, float, float]:
        """Left, right, bottom and top edge, in locations of the image, of a map of that size laid over it."""
        stride = self.stride(size)
        corners = torch.stack([-0.5 * stride, (torch.tensor(size) - 0.5) * stride])
        (top, left), (bottom, right) = self.to_image(corners).tolist()
        return left, right, bottom, top


class SampledLayer(NamedTuple):
    """Where one deformable layer sampled, in locations of the network's input (float64).

    Attributes:
        name: of the layer.
        stride: of its output over the network's input, along (y, x).
        origin: location of the first pixel of its output, about which its regular grid lies.
        locations: `(G*K, Ho, Wo, 2)`.
        weights: `(G*K, Ho, Wo)`, its mask; ones for DCNv1.
    """

    name: str
    stride: Tensor
    origin: Tensor
    locations: Tensor
    weights: Tensor

    def nearest(self, locations: Tensor) -> Tensor:
        """Find the pixels `(..., 2)` of the layer's output nearest to locations `(..., 2)`, inside or outside of it."""
        return ((locations - self.origin) / self.stride).round().long()

    def centre(self, pixel: Tensor) -> Tensor:
        """Location of a pixel of the layer's output."""
        return self.origin + pixel * self.stride

    def contains(self, pixels: Tensor) -> Tensor:
        """Whether pixels `(..., 2)` are in the layer's output."""
        return ((pixels >= 0) & (pixels < torch.tensor(self.locations.shape[1:3]))).all(-1)

    def at(self, location: Tensor) -> Tensor:
        """Find the pixel `(2,)` of the layer's output nearest to a location, within it."""
        return self.nearest(location).clamp(min=torch.zeros(2).long(), max=torch.tensor(self.locations.shape[1:3]) - 1)


def sampled_layers(
    model: nn.Module, seen: dict[str, SamplingRecord], frame: Frame, *, regular: bool = False
) -> list[SampledLayer]:
    """Say where the deformable layers that ran on one image sampled, in the order in which they ran.

    Args:
        model: the network.
        seen: what `capture_sampling` noted, for a batch of one.
        frame: of the image.
        regular: whether to give the regular grid instead: offsets of 0, and masks as at the start.
    """
    layers = deformable_layers(model)
    return [_sampled(name, layers[name], sampling, frame, regular) for name, sampling in seen.items()]


def _sampled(name: str, layer: DeformConv2d, sampling: SamplingRecord, frame: Frame, regular: bool) -> SampledLayer:
    offset = sampling.offset.cpu().double()
    locations = sampling_locations(
        torch.zeros_like(offset) if regular else offset, layer.kernel_size, layer.stride, layer.padding, layer.dilation
    )
    locations = locations[0].flatten(0, 1)
    weights = torch.ones(locations.shape[:-1], dtype=torch.float64)
    if sampling.mask is not None:
        weights = weights * layer.mask_scale / 2 if regular else sampling.mask[0].cpu().double()
    step = frame.stride(sampling.input_size)
    middle = (torch.tensor(layer.kernel_size) - 1) * torch.tensor(layer.dilation) / 2 - torch.tensor(layer.padding)
    return SampledLayer(name, step * torch.tensor(layer.stride), step * middle, locations * step, weights)


def nested_points(layers: Sequence[SampledLayer], location: Tensor) -> tuple[Tensor, Tensor]:
    """Follow the sampling points of some layers downwards, as in the figures of the DCN papers.

    The last layer's output pixel nearest to `location` has its points; for each of them the output pixel of the layer
    before that lies nearest has its own, and so on: 9^3 = 729 for three layers of 3x3. What lies outside a layer's
    output reads zeros and is followed no further.

    Args:
        layers: in the order in which they run.
        location: `(2,)` of the network's input.

    Returns:
        Locations `(n, 2)` of the network's input that the first layer samples, and `(n,)` their weights: the geometric
        mean of the masks on the way, which is the product on the scale of a single mask.
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
