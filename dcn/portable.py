"""The operator in programs that another process loads, which has torchvision but not this project.

`torch.jit.trace`, `torch.jit.script` and `torch.export` record operators by name. The backends of this project are
operators of this project, so a recorded program contains torchvision's operator instead.
"""

import torch
from torch import Tensor
from torchvision.ops import deform_conv2d


def is_recorded() -> bool:
    """Whether `torch.jit.trace` or `torch.export` is recording a program."""
    return torch.jit.is_tracing() or torch.compiler.is_exporting()


# TorchScript compiles this function: types are explicit, and it uses no globals.
def portable_deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    mask: Tensor | None,
) -> Tensor:
    """Compute `dcn.deform_conv2d` by torchvision's operator, in the dtype of `offset`.

    As in the "torchvision" backend, offsets are finite and a NaN offset gives NaN.
    """
    far = 2.0**20
    dtype = offset.dtype
    is_nan = offset.isnan()
    is_lost = is_nan[:, 0::2] | is_nan[:, 1::2]
    factor = torch.ones_like(is_lost, dtype=dtype) if mask is None else mask.to(dtype)
    return deform_conv2d(
        input.to(dtype),
        offset.nan_to_num(nan=far, posinf=far, neginf=-far).clamp(-far, far),
        weight.to(dtype),
        None if bias is None else bias.to(dtype),
        stride,
        padding,
        dilation,
        factor.masked_fill(is_lost, float("nan")),
    ).to(input.dtype)
