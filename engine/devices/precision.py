"""Batches on the device, and the types that the model computes in."""

import torch
from torch import Tensor

AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, amp: str) -> torch.autocast:
    """Context in which the model runs: "off", "bf16" or "fp16"."""
    return torch.autocast(device.type, dtype=AMP_DTYPES.get(amp), enabled=amp != "off")


def set_tf32(allowed: bool) -> None:
    """Choose whether NVIDIA GPUs may multiply float32 numbers in TF32, which has 10 bits of mantissa."""
    precision = "tf32" if allowed else "ieee"
    torch.backends.cuda.matmul.fp32_precision = precision
    torch.backends.cudnn.conv.fp32_precision = precision


def to_device(
    images: list[Tensor], targets: list[dict], device: torch.device, dtype: torch.dtype = torch.float32
) -> tuple[list[Tensor], list[dict]]:
    """Move a batch; uint8 images become `dtype` in [0, 1] there, so that workers pass a quarter of the bytes.

    Boxes become `dtype` too, everything else keeps its own.
    """
    images = [image.to(device, non_blocking=True).to(dtype).div_(255) for image in images]
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
