"""A pipeline of Albumentations applied to an image with its boxes, masks and ignored boxes."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors

from .albumentations_file import compose_of, reason_of
from .band_files import RGB
from .geometry import objects_at
from .ignored_boxes import IgnoredBoxes
from .segmentation import decode_masks, encode_masks

# draws of the trial, so that transforms with a probability are tried too
_TRIALS = 16
# A smaller side vanishes, see `objects.py`.
_MIN_PX = 0.01


class Pipeline:
    """A pipeline of Albumentations 2.0 for RGB images, uint8 or float32.

    All random numbers come from torch's random state. Masks follow by the row and the column that each new pixel
    comes from, so that the memory is that of one mask and not of one per object.

    Args:
        name: File of the pipeline, for messages.
        content: Content of the file, as `albumentations.to_dict` returns it. Only the minimum and maximum
            sizes and `min_visibility` of its `bbox_params` count.
        min_visibility: Minimum visible fraction of a box, as of `TrainTransform`; the larger of it and the file's
            holds.

    Raises:
        ValueError: If Albumentations is not installed, or the content cannot be used.
    """

    def __init__(self, name: str, content: Any, min_visibility: float = 0.0) -> None:
        self.name = name
        self._compose = compose_of(name, content, min_visibility)

    def __call__(
        self, image: Tensor, target: dict[str, Any], segmentations: Sequence[list | dict[str, Any]] | None = None
    ) -> tuple[Tensor, dict[str, Any], Sequence[list | dict[str, Any]] | None]:
        """Transform an image, its target and the segmentations of its objects.

        If pixels move, the box of an object with a segmentation is the one around its moved mask. Objects without a
        pixel or a box are removed.

        Args:
            image: `(3, H, W)`.
            target: Target with `boxes` and `labels`, and optionally `ignored`.
            segmentations: Valid segmentations of all objects, or None.

        Raises:
            ValueError: If a transform fails, or returns an image of another kind.
        """
        height, width = image.shape[-2:]
        places = _places(height, width) if segmentations is not None or "ignored" in target else None
        given = {
            "image": image.as_subclass(Tensor).permute(1, 2, 0).contiguous().numpy(),
            "bboxes": target["boxes"].as_subclass(Tensor).numpy().copy(),
            "objects": np.arange(len(target["boxes"])),
        } | ({} if places is None else {"mask": places.copy()})
        seed = int(torch.randint(2**62, ()))
        # one state for all transforms: with `set_random_seed` all of them would draw the same numbers
        self._compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        try:
            found = self._compose(**given)
        except Exception as error:
            which = f" (image id {target['image_id']})" if "image_id" in target else ", in a trial"
            raise ValueError(
                f"{self.name} failed for an image of {width}x{height} pixels{which}: {reason_of(error)}"
            ) from None
        changed = self._image(found["image"], image.dtype)
        size = changed.shape[-2:]
        boxes = torch.from_numpy(np.asarray(found["bboxes"], dtype=np.float32).reshape(-1, 4)[:, :4].copy())
        objects = torch.from_numpy(np.asarray(found["objects"], dtype=np.float64).round().astype(np.int64))
        moved = None
        if places is not None and not np.array_equal(found["mask"], places):
            moved = found["mask"].round().astype(np.int64) - 1
        if "ignored" in target:
            regions = target["ignored"] if moved is None else _moved_regions(target["ignored"], moved)
            target = target | {"ignored": IgnoredBoxes.of(regions, size)}
        kept = (boxes[:, 2:] - boxes[:, :2] > _MIN_PX).all(dim=1)
        boxes, objects = boxes[kept], objects[kept]
        if segmentations is not None and moved is not None:
            boxes, objects, segmentations = _moved_masks(objects.unique(), segmentations, moved, (width, height))
        elif segmentations is not None:
            segmentations = [segmentations[index] for index in objects.tolist()]
        boxes = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size)
        return changed, objects_at(target, objects) | {"boxes": boxes}, segmentations

    def check(self, width: int, height: int) -> None:
        """Apply the pipeline to a drawn image of a size, as a trial.

        Raises:
            ValueError: As when it is called.
        """
        generator = torch.Generator().manual_seed(0)
        image = torch.randint(256, (RGB, height, width), dtype=torch.uint8, generator=generator)
        corners = torch.tensor([[0.2, 0.3, 0.6, 0.7], [0.5, 0.1, 0.9, 0.4]]) * torch.tensor([width, height] * 2)
        boxes = tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=(height, width))
        target = {"boxes": boxes, "labels": torch.tensor([1, 1])}
        regions = IgnoredBoxes.of(corners.clone(), (height, width))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            for _ in range(_TRIALS):
                self(image, target | {"ignored": regions})

    def _image(self, image: Any, dtype: torch.dtype) -> Tensor:
        """Return the image of the pipeline as a tensor."""
        is_array = isinstance(image, np.ndarray) and image.ndim == RGB and image.shape[2] == RGB
        tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))) if is_array else None
        if tensor is None or tensor.dtype != dtype or not tensor.numel():
            got = f"{image.dtype} {tuple(image.shape)}" if hasattr(image, "shape") else type(image).__name__
            raise ValueError(
                f"{self.name} must return RGB images (H, W, 3) of {dtype}, as it gets them, got {got}; leave out "
                "transforms such as Normalize and ToTensorV2, since the detector normalises"
            )
        return tensor


def _places(height: int, width: int) -> NDArray[np.float32]:
    """Return the row and the column of each pixel, counted from 1, `(height, width, 2)`; 0 means outside."""
    rows, columns = np.arange(1, height + 1), np.arange(1, width + 1)
    return np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).astype(np.float32)


def _moved_regions(ignored: Tensor, moved: NDArray[np.int64]) -> Tensor:
    """Return the boxes around the moved pixels of ignored boxes, without those of which no pixel is left.

    Args:
        ignored: `(k, 4)`.
        moved: Row and column from which each new pixel comes, `(H, W, 2)`; -1 for pixels from outside.
    """
    rows, columns = moved[..., 0], moved[..., 1]
    found = []
    for left, top, right, bottom in ignored.as_subclass(Tensor).tolist():
        inside = (columns + 1 > left) & (columns < right) & (rows + 1 > top) & (rows < bottom) & (rows >= 0)
        if inside.any():
            found.append(_box_around(inside))
    return torch.tensor(found, dtype=torch.float32).reshape(-1, 4)


def _moved_masks(
    objects: Tensor, segmentations: Sequence[list | dict[str, Any]], moved: NDArray[np.int64], size: tuple[int, int]
) -> tuple[Tensor, Tensor, list[dict[str, Any]]]:
    """Return boxes, indices and segmentations of the objects of which a pixel is left.

    Args:
        objects: Indices of the objects.
        segmentations: Segmentations of all objects before.
        moved: See `_moved_regions`.
        size: (width, height) before.
    """
    rows, columns = moved[..., 0], moved[..., 1]
    is_inside = (rows >= 0) & (columns >= 0)
    boxes, kept, masks = [], [], []
    for index in objects.tolist():
        mask = decode_masks([segmentations[index]], size)[0][rows, columns] * is_inside
        if mask.any():
            boxes.append(_box_around(mask))
            kept.append(index)
            masks += encode_masks(torch.from_numpy(mask[None]))
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), torch.tensor(kept, dtype=torch.int64), masks


def _box_around(mask: NDArray[Any]) -> list[int]:
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
