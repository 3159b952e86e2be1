"""Batches on the device, and the types that the model computes in."""

import torch
from torch import Tensor

AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, amp: str) -> torch.autocast:
    """Context in which the model runs: "off", "bf16" or "fp16"."""
    return torch.autocast(device.type, dtype=AMP_DTYPES.get(amp), enabled=amp != "off")


def to_device(batch: tuple[list[Tensor], list[dict]], device: torch.device) -> tuple[list[Tensor], list[dict]]:
    """Move a batch; uint8 images become float32 in [0, 1] there, so that workers pass a quarter of the bytes."""
    images, targets = batch
    images = [image.to(device, non_blocking=True).float().div_(255) for image in images]
    targets = [
        {
            key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for key, value in target.items()
        }
        for target in targets
    ]
    return images, targets
