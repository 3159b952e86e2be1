"""Conventions shared by all backends: the dtype of the computation and the memory format of the results."""

from collections.abc import Sequence

import torch
from torch import Tensor


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """Return float64 if any tensor is float64, else float32: half-precision locations would be off by a pixel."""
    return torch.float64 if any(t is not None and t.dtype == torch.float64 for t in tensors) else torch.float32


def empty_as(like: Tensor, shape: Sequence[int]) -> Tensor:
    """Return an empty tensor with the dtype, device and memory format of `like`."""
    last = like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous()
    memory_format = torch.channels_last if last else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format)


def copy_as(like: Tensor, values: Tensor) -> Tensor:
    """Return a copy of `values` with the shape, dtype and memory format of `like`."""
    return empty_as(like, like.shape).copy_(values)
