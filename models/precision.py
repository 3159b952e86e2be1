"""Numbers that must not be rounded, whatever autocast computes in."""

from typing import Any

import torch
from torch import Tensor, nn


def give_float32(head: nn.Module) -> None:
    """Make a head give out float32 (float64 where it computes in that), under autocast too.

    torchvision decodes boxes, and learns from them, in the type of the head's outputs. A bfloat16 has 8 bits: its steps
    are 4 pixels from 512 on, and 8 from 1024 on.
    """
    head.register_forward_hook(lambda module, inputs, outputs: _as_float32(outputs))


def _as_float32(outputs: Any) -> Any:
    if isinstance(outputs, Tensor):
        return outputs.to(torch.promote_types(outputs.dtype, torch.float32))
    if isinstance(outputs, dict):
        return {name: _as_float32(output) for name, output in outputs.items()}
    return type(outputs)(_as_float32(output) for output in outputs)
