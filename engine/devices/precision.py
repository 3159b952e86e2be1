"""Batches on the device, and the number formats of the model."""

import torch
from torch import Tensor

AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, amp: str) -> torch.autocast:
    """Return the autocast context for `amp`: "off", "bf16" or "fp16"."""
    return torch.autocast(device.type, dtype=AMP_DTYPES.get(amp), enabled=amp != "off")


def set_tf32(allowed: bool) -> None:
    """Allow or forbid TF32, with 10 bits of mantissa, for float32 multiplication on NVIDIA GPUs."""
    precision = "tf32" if allowed else "ieee"
    torch.backends.cuda.matmul.fp32_precision = precision
    torch.backends.cudnn.conv.fp32_precision = precision


def to_device(
    images: list[Tensor], targets: list[dict], device: torch.device, dtype: torch.dtype = torch.float32
) -> tuple[list[Tensor], list[dict]]:
    """Move a batch to a device and convert it there.

    Images of uint8 change to `dtype` in [0, 1] on the device, so that workers pass a quarter of the bytes.

    Args:
        images: `(channels, H, W)`, uint8, or floating-point from 0 to 1.
        targets: dicts of torchvision's detectors. Floating-point tensors, such as boxes, are converted to `dtype`.
        device: target device.
        dtype: dtype of images and boxes.

    Returns:
        Images and targets on the device.
    """
    moved = [image.to(device, non_blocking=True) for image in images]
    images = [image.to(dtype) if image.is_floating_point() else image.to(dtype).div_(255) for image in moved]
    targets = [
        {
            key: value.to(device, dtype if value.is_floating_point() else value.dtype, non_blocking=True)
            if isinstance(value, Tensor)
            else value
            for key, value in target.items()
        }
        for target in targets
    ]
    return images, targets
