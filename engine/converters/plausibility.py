"""Check of an input format that was guessed, on an image with the statistics of photographs."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from .arithmetic import EPS, INPUT_FORMATS

_SIDE = 96
_FACTOR = 8.0  # formats in 0..255 and divided by the standard deviation differ by 58


def doubt_about_input(tensors: Mapping[str, Tensor], input_format: str) -> str | None:
    """Compare the outputs of the first convolution with the statistics of its batch norm.

    Args:
        tensors: converted tensors of a backbone or of a detector.
        input_format: input format that was folded into them.

    Returns:
        A warning if the outputs are far larger or smaller than the statistics, otherwise None. Networks with group norm
        and batch norms that are folded into weights and biases have no statistics.
    """
    start = next((key.removesuffix("bn1.running_var") for key in tensors if key.endswith("bn1.running_var")), None)
    conv = None if start is None else tensors.get(f"{start}conv1.weight")
    if conv is None:  # the first stem convolution of a vd network has another norm
        return None
    variance = tensors[f"{start}bn1.running_var"].double() + EPS
    if bool((variance - variance[0]).abs().max() < 1e-3 * variance[0]):
        return None  # folded
    outputs = F.conv2d(_photograph(), conv.double(), stride=2)
    ratio = float((outputs.var((0, 2, 3)) / variance).median().sqrt())
    if 1 / _FACTOR < ratio < _FACTOR:
        return None
    raw = INPUT_FORMATS[input_format][1]
    others = [name for name, (_, is_raw) in INPUT_FORMATS.items() if is_raw != raw]
    return (
        f"the outputs of the first convolution are {ratio:.2g} times the statistics of its batch norm: the input "
        f"format {input_format} may be wrong, try --input-format {' or '.join(others)}"
    )


def _photograph() -> Tensor:
    """Return normalised noise `(1, 3, H, W)` whose amplitudes fall with the frequency as in photographs."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.fft.fft2(torch.randn(4, _SIDE, _SIDE, generator=generator, dtype=torch.float64))
    frequencies = torch.fft.fftfreq(_SIDE, dtype=torch.float64)
    amplitudes = 1 / torch.hypot(frequencies[:, None], frequencies[None]).clamp(min=1 / _SIDE)
    grey, *colors = torch.fft.ifft2(noise * amplitudes).real
    image = torch.stack([grey + 0.3 * color for color in colors])
    return ((image - image.mean((1, 2), keepdim=True)) / image.std((1, 2), keepdim=True))[None]
