"""What a detector does to the images that it gets, and to its detections: `Resize.transform` makes them."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import clip_boxes_to_image

Size = tuple[int, int]
Margins = tuple[int, int, int, int]


class DetectorTransform(GeneralizedRCNNTransform):
    """torchvision's transform, which leaves training images at the size at which they come."""

    def resize(self, image: Tensor, target: dict | None = None) -> tuple[Tensor, dict | None]:
        """Resize an image `(3, H, W)` to evaluate on, and its target."""
        return (image, target) if self.training else super().resize(image, target)

    def resize_unnormalized(self, image: Tensor) -> Tensor:
        """Resize an image `(3, H, W)` to evaluate on that is not normalised, as an exported program takes it."""
        return self.resize(image)[0]

    def margins(self, size: Size) -> Margins:
        """Return the pixels that are filled above, left, below and right of an image (height, width) when resized."""
        return (0, 0, 0, 0)


class LetterboxTransform(DetectorTransform):
    """Scales images to fit a square of `min_size[-1]` pixels, in the middle of which they are; what is left is zero."""

    def resize(self, image: Tensor, target: dict | None = None) -> tuple[Tensor, dict | None]:
        """Resize an image `(3, H, W)` to evaluate on, and the boxes of its target."""
        if self.training:
            return image, target
        if target is not None:
            scale, shift = _scale_and_shift(target["boxes"], tuple(image.shape[-2:]), self.min_size[-1])
            target["boxes"] = target["boxes"] * scale + shift
        return self._place(image, image.new_zeros(len(image))), target

    def resize_unnormalized(self, image: Tensor) -> Tensor:
        """Resize an image `(3, H, W)` to evaluate on that is not normalised; the mean fills what is left."""
        return self._place(image, image.new_tensor(self.image_mean))

    def _place(self, image: Tensor, fill: Tensor) -> Tensor:
        """Scale an image to fit a square that is filled with a colour, `(3,)`."""
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
        """Take detections to pixels of the images given, whose borders cut them off; outside, no area is left."""
        if self.training:
            return result
        for found, original in zip(result, original_image_sizes, strict=True):
            scale, shift = _scale_and_shift(found["boxes"], original, self.min_size[-1])
            boxes = (found["boxes"] - shift) / scale
            found["boxes"] = clip_boxes_to_image(boxes, original)
            if "masks" in found:
                is_seen = (found["boxes"][:, 2:] > found["boxes"][:, :2]).all(1)
                masks = boxes.new_zeros(len(boxes), 1, *original)
                masks[is_seen] = paste_masks_in_image(found["masks"][is_seen], boxes[is_seen], original).to(masks)
                found["masks"] = masks
        return result


def letterbox_geometry(size: Size, side: int) -> tuple[Size, Margins]:
    """Return the (height, width) that an image is scaled to in a square, and the margins above, left, below, right."""
    longest = max(size)
    height, width = (max(1, round(pixels * side / longest)) for pixels in size)
    top, left = (side - height) // 2, (side - width) // 2
    return (height, width), (top, left, side - height - top, side - width - left)


def _scale_and_shift(boxes: Tensor, original: Size, side: int) -> tuple[Tensor, Tensor]:
    """Return what boxes `(n, 4)` of an image are multiplied by, and what is added then, to have them in its square."""
    (height, width), (top, left, _, _) = letterbox_geometry(original, side)
    scale = torch.tensor([width / original[1], height / original[0]] * 2, dtype=boxes.dtype, device=boxes.device)
    return scale, torch.tensor([left, top] * 2, dtype=boxes.dtype, device=boxes.device)
