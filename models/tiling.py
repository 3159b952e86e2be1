"""Detection in large images: in overlapping tiles and the whole image, whose detections are merged."""

import math
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import resize

from .masks import Detections, as_patches, joined_patches, paste_all, shift_patches, unpasted_masks
from .tile_merging import Views, merge_views

# The object of a box that ends this close to a border of its tile, in pixels, may continue in the next tile.
BORDER_PX = 2
MIN_TILE, MAX_OVERLAP = 32, 0.9
# Longer side to which an image is reduced before it is detected as a whole: the memory does not depend on its size.
WHOLE_PX = 1333  # the default of data.max_size
OVERLAP = 0.2  # unless asked for otherwise, as in SAHI


class Window(NamedTuple):
    """A tile of an image: columns `left` to `right - 1` and rows `top` to `bottom - 1`."""

    left: int
    top: int
    right: int
    bottom: int


def tile_windows(width: int, height: int, tile: int, overlap: float) -> list[Window]:
    """Return the tiles that cover an image, row by row.

    The last tile of a row or column ends at the border of the image, so that all tiles have the same size. A tile is
    smaller only if the image is.

    Args:
        width: Width of the image in pixels.
        height: Height of the image in pixels.
        tile: Side of a tile in pixels.
        overlap: Fraction of a tile that neighbours share at least.

    Raises:
        ValueError: As `check_tile`.
    """
    check_tile(tile, overlap)
    columns, rows = _starts(width, tile, overlap), _starts(height, tile, overlap)
    return [Window(x, y, min(x + tile, width), min(y + tile, height)) for y, x in product(rows, columns)]


def check_tile(tile: int, overlap: float) -> None:
    """Raise `ValueError` if the side of a tile or its overlap is out of range."""
    if tile < MIN_TILE:
        raise ValueError(f"the side of a tile must be at least {MIN_TILE} pixels, got {tile}")
    if not 0 <= overlap <= MAX_OVERLAP:
        raise ValueError(f"the overlap of tiles must be a fraction from 0 to {MAX_OVERLAP}, got {overlap}")


class TiledDetector(nn.Module):
    """A detector in eval mode that detects objects in overlapping tiles of each image, and in the whole image.

    Detections of all tiles and of the whole image are merged, see `merge_views`. The whole image shows objects that are
    larger than a tile. An image that is not larger than a tile is detected as without tiles.

    The memory is that of `batch_size` tiles, or of an image of 1333 pixels: only tiles of uint8 images are converted to
    floats, and larger images are reduced. The limit `detections_per_image` holds for each tile.

    Args:
        model: Detector, see `models.detector`.
        tile: Side of a tile in pixels of the image. The detector resizes a tile as it resizes an image of this size.
        overlap: Fraction of a tile that neighbours share at least. Objects that are not larger than the overlap are
            seen whole in some tile.
        batch_size: Number of tiles per forward pass.

    Attributes:
        pastes_masks: Whether masks of detections have the size of the image, see `unpasted_masks`.

    Raises:
        ValueError: As `check_tile`.
    """

    pastes_masks = True

    def __init__(self, model: nn.Module, tile: int, overlap: float, *, batch_size: int = 1) -> None:
        super().__init__()
        check_tile(tile, overlap)
        self.model = model
        self.tile, self.overlap, self.batch_size = tile, overlap, batch_size

    def forward(self, images: list[Tensor]) -> list[Detections]:
        """Return the detections of each image on the CPU, the best first.

        Args:
            images: Images `(3, H, W)`, uint8 or with values in [0, 1], on any device.

        Raises:
            RuntimeError: In train mode.
        """
        if self.training:
            raise RuntimeError("TiledDetector works in eval mode only: call eval(), and train its `model` instead")
        return [self._detect(image) for image in images]

    def _detect(self, image: Tensor) -> Detections:
        height, width = image.shape[-2:]
        windows = tile_windows(width, height, self.tile, self.overlap)
        found = []
        with unpasted_masks(self.model):
            for start in range(0, len(windows), self.batch_size):
                found += self._detect_tiles(image, windows[start : start + self.batch_size])
            if len(windows) > 1:
                found.append(self._detect_whole(image))
        whole = Window(0, 0, width, height)
        merged = found[0] if len(windows) == 1 else _merge(found, [*windows, whole], (height, width))
        return paste_all(merged) if self.pastes_masks else merged

    def _detect_whole(self, image: Tensor) -> Detections:
        """Return the detections of the whole image, on the CPU."""
        height, width = image.shape[-2:]
        scale = min(1.0, WHOLE_PX / max(height, width))
        small = image
        if scale < 1:
            small = resize(image, [max(1, round(height * scale)), max(1, round(width * scale))], antialias=True)
        (found,) = self.model([unit_range(small.to(self._device))])
        found = _with_patches(found)
        factors = found["boxes"].new_tensor([width / small.shape[-1], height / small.shape[-2]] * 2)
        found["boxes"] = found["boxes"] * factors
        if "mask_patches" in found:
            found |= {"mask_boxes": found["mask_boxes"] * factors, "mask_size": torch.tensor([height, width])}
        return found

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _detect_tiles(self, image: Tensor, windows: list[Window]) -> list[Detections]:
        """Return the detections of some tiles, in pixels of the image and on the CPU."""
        tiles = [image[:, top:bottom, left:right] for left, top, right, bottom in windows]
        inputs = [unit_range(tile.to(self._device)) for tile in tiles]
        size = image.shape[-2:]
        return [
            _in_image(_with_patches(output), window, size)
            for output, window in zip(self.model(inputs), windows, strict=True)
        ]


def unit_range(image: Tensor) -> Tensor:
    """Convert a uint8 image to float32 values in [0, 1]; return other images unchanged."""
    return image.to(torch.float32).div_(255) if image.dtype == torch.uint8 else image


def _with_patches(output: Detections) -> Detections:
    """Return detections on the CPU, with patches if they have masks."""
    found = {key: values.cpu() for key, values in output.items()}
    return as_patches(found) if "masks" in found else found


def _in_image(found: Detections, window: Window, size: tuple[int, int]) -> Detections:
    """Move the detections of a tile into an image of (height, width)."""
    moved = found | {"boxes": found["boxes"] + found["boxes"].new_tensor([window.left, window.top] * 2)}
    return shift_patches(moved, window, size) if "mask_patches" in found else moved


def _merge(found: list[Detections], windows: list[Window], size: tuple[int, int]) -> Detections:
    """Merge the detections of all tiles of an image of (height, width)."""
    cut = [_is_cut(one["boxes"], window, size) for one, window in zip(found, windows, strict=True)]
    joined = {key: torch.cat([one[key] for one in found]) for key in ("boxes", "labels", "scores")}
    tiles = torch.arange(len(found)).repeat_interleave(torch.tensor([len(one["boxes"]) for one in found]))
    values = [*joined.values(), tiles, torch.cat(cut), torch.tensor(windows)]
    merged = merge_views(Views(*(each.numpy() for each in values)))
    best = torch.tensor([each.parts[0] for each in merged], dtype=torch.int64)
    boxes = torch.tensor([each.box.tolist() for each in merged], dtype=joined["boxes"].dtype).reshape(-1, 4)
    scores = torch.tensor([each.score for each in merged], dtype=joined["scores"].dtype)
    result = {"boxes": boxes, "labels": joined["labels"][best], "scores": scores}
    if "mask_patches" in found[0]:
        result |= joined_patches(found, [each.parts for each in merged], boxes)
    return result


def _is_cut(boxes: Tensor, window: Window, size: tuple[int, int]) -> Tensor:
    """Return whether each box ends at a border of its tile that is not a border of the image, `(n,)`."""
    height, width = size
    near = (boxes - boxes.new_tensor(window)).abs() <= BORDER_PX
    inside = [window.left > 0, window.top > 0, window.right < width, window.bottom < height]
    return (near & torch.tensor(inside)).any(1)


def _starts(length: int, tile: int, overlap: float) -> list[int]:
    """Return the first pixels of the tiles along a side of an image."""
    step = tile - math.ceil(round(overlap * tile, 6))  # rounded, since 0.1 * 30 is above 3
    last = max(length - tile, 0)
    return [*range(0, last, step), last]
