"""Transforms inside of a detector: normalisation, resizing and padding of images, and mapping detections back."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import clip_boxes_to_image

from .masks import set_masks

Size = tuple[int, int]
Margins = tuple[int, int, int, int]


class DetectorTransform(GeneralizedRCNNTransform):
    """torchvision's transform without resizing of training images.

    Attributes:
        pastes_masks: whether masks of detections have the size of the image, see `unpasted_masks`.
    """

    pastes_masks = True

    def postprocess(
        self, result: list[dict[str, Tensor]], image_shapes: list[Size], original_image_sizes: list[Size]
    ) -> list[dict[str, Tensor]]:
        """Map detections to pixels of the input images."""
        if self.training:
            return result
        patches = [found.pop("masks", None) for found in result]
        result = super().postprocess(result, image_shapes, original_image_sizes)
        for found, own, size in zip(result, patches, original_image_sizes, strict=True):
            if own is not None:
                found["masks"] = own
                set_masks(found, found["boxes"], size, pasted=self.pastes_masks)
        return result

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[ImageList, list[dict[str, Tensor]] | None]:
        """Resize, normalise and pad images as torchvision does.

        Raises:
            ValueError: If an image is too narrow, see `check_size`.
        """
        for image in () if self.training else images:
            self.check_size(tuple(image.shape[-2:]))
        return super().forward(images, targets)

    def check_size(self, size: Size) -> None:
        """Raise `ValueError` if the shorter side of an image (height, width) has no pixel after resizing."""
        # in the arithmetic of the resizing, which rounds down
        if self.fixed_size is None and int(min(size) * (self.max_size / max(size))) < 1:
            raise ValueError(
                f"an image must have a longer side of at most {self.max_size:g} times the shorter side, or the shorter "
                f"side has no pixel after resizing, got {size[1]}x{size[0]}: crop the image, or raise data.max_size"
            )

    def resize(self, image: Tensor, target: dict | None = None) -> tuple[Tensor, dict | None]:
        """Resize an image `(channels, H, W)` and its target in evaluation; return them unchanged in training."""
        return (image, target) if self.training else super().resize(image, target)

    def resize_unnormalized(self, image: Tensor) -> Tensor:
        """Resize an image `(channels, H, W)` in evaluation before normalisation, as exported programs do."""
        return self.resize(image)[0]

    def margins(self, size: Size) -> Margins:
        """Return the pixels that are filled above, left, below and right of an image (height, width) when resized."""
        return (0, 0, 0, 0)


class LetterboxTransform(DetectorTransform):
    """Transform that scales images to fit a square of `min_size[-1]` pixels and pads them equally on both sides."""

    def resize(self, image: Tensor, target: dict | None = None) -> tuple[Tensor, dict | None]:
        """Resize an image `(channels, H, W)` and its boxes in evaluation; return them unchanged in training."""
        if self.training:
            return image, target
        if target is not None:
            scale, shift = _scale_and_shift(target["boxes"], tuple(image.shape[-2:]), self.min_size[-1])
            target["boxes"] = target["boxes"] * scale + shift
        return self._place(image, image.new_zeros(len(image))), target

    def resize_unnormalized(self, image: Tensor) -> Tensor:
        """Resize an image `(channels, H, W)` in evaluation before normalisation, with padding of the mean."""
        return self._place(image, image.new_tensor(self.image_mean))

    def check_size(self, size: Size) -> None:
        """Accept every size: the shorter side keeps a pixel."""

    def _place(self, image: Tensor, fill: Tensor) -> Tensor:
        """Scale an image to fit a square and fill the rest with a colour, `(channels,)`."""
        side = self.min_size[-1]
        (height, width), (top, left, _, _) = letterbox_geometry(tuple(image.shape[-2:]), side)
        square = fill[:, None, None].repeat(1, side, side)
        scaled = interpolate(image[None], size=(height, width), mode="bilinear", align_corners=False)[0]
        square[:, top : top + height, left : left + width] = scaled
        return square

    def margins(self, size: Size) -> Margins:
        """Return the pixels that are filled above, left, below and right of an image (height, width) when resized."""
        return letterbox_geometry(size, self.min_size[-1])[1]

    def postprocess(
        self, result: list[dict[str, Tensor]], image_shapes: list[Size], original_image_sizes: list[Size]
    ) -> list[dict[str, Tensor]]:
        """Map detections to pixels of the input images and clip them; boxes outside have an area of 0."""
        if self.training:
            return result
        for found, original in zip(result, original_image_sizes, strict=True):
            scale, shift = _scale_and_shift(found["boxes"], original, self.min_size[-1])
            boxes = (found["boxes"] - shift) / scale
            found["boxes"] = clip_boxes_to_image(boxes, original)
            if "masks" in found:
                set_masks(found, boxes, original, pasted=self.pastes_masks)
        return result


def letterbox_geometry(size: Size, side: int) -> tuple[Size, Margins]:
    """Return the scaled (height, width) of an image in a square, and the margins above, left, below and right."""
    longest = max(size)
    height, width = (max(1, round(pixels * side / longest)) for pixels in size)
    top, left = (side - height) // 2, (side - width) // 2
    return (height, width), (top, left, side - height - top, side - width - left)


def _scale_and_shift(boxes: Tensor, original: Size, side: int) -> tuple[Tensor, Tensor]:
    """Return the factor and the shift that map boxes `(n, 4)` of an image to its square."""
    (height, width), (top, left, _, _) = letterbox_geometry(original, side)
    scale = torch.tensor([width / original[1], height / original[0]] * 2, dtype=boxes.dtype, device=boxes.device)
    return scale, torch.tensor([left, top] * 2, dtype=boxes.dtype, device=boxes.device)
