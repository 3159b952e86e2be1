"""`DeformConv2d`: a convolution that predicts its own offsets and mask."""

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from .functional import check_backend, deform_conv2d


class DeformConv2d(nn.Module):
    """Deformable convolution layer: DCNv2 (`modulation=True`) or DCNv1 (`modulation=False`).

    A plain convolution `conv_offset`, of the same kernel, stride, padding and dilation, predicts an offset and (v2) a
    mask for every output pixel and kernel point: `mask = mask_scale * sigmoid(logits)`. It starts at zero, so that the
    offsets are 0 and the mask is `mask_scale / 2`. With `mask_scale=2`, as in the authors' released code, the layer
    starts as the plain convolution with the same weight; `mask_scale=1` is the text of the paper and what mmdetection,
    detectron2 and PaddleDetection train with.

    State-dict keys are those of mmcv: `weight`, `bias`, `conv_offset.weight`, `conv_offset.bias`.
    Papers: v1 https://arxiv.org/abs/1703.06211, v2 https://arxiv.org/abs/1811.11168.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: height and width of the kernel.
        stride: as in `nn.Conv2d`.
        padding: as in `nn.Conv2d`, zeros only.
        dilation: as in `nn.Conv2d`.
        groups: blocked connections of the weight, as in `nn.Conv2d`; `conv_offset` always sees all channels.
        offset_groups: G, the number of channel groups with offsets (and mask) of their own.
        bias: whether the output gets a bias.
        modulation: whether samples are weighted by a learned mask (DCNv2).
        mask_scale: factor of the sigmoid.
        backend: a name in `dcn.BACKENDS`, or "auto".

    Raises:
        ValueError: if the numbers do not fit each other.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        offset_groups: int = 1,
        bias: bool = False,
        modulation: bool = True,
        mask_scale: float = 2.0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        for name, count in (("groups", groups), ("offset_groups", offset_groups)):
            if count < 1 or in_channels % count:
                raise ValueError(f"`{name}` must divide in_channels = {in_channels}, got {count}")
        if out_channels % groups:
            raise ValueError(f"`groups` must divide out_channels = {out_channels}, got {groups}")
        if not (math.isfinite(mask_scale) and mask_scale > 0):
            raise ValueError(f"`mask_scale` must be a positive number, got {mask_scale}")
        check_backend(backend)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size, self.stride = _pair(kernel_size), _pair(stride)
        self.padding, self.dilation = _pair(padding), _pair(dilation)
        self.groups = groups
        self.offset_groups = offset_groups
        self.modulation = modulation
        self.mask_scale = mask_scale
        self.backend = backend

        points = math.prod(self.kernel_size)
        self.offset_channels = 2 * offset_groups * points
        self.mask_channels = offset_groups * points if modulation else 0
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *self.kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.conv_offset = nn.Conv2d(
            in_channels,
            self.offset_channels + self.mask_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise `weight` and `bias` as `nn.Conv2d` does, and `conv_offset` to zero."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)
        nn.init.zeros_(self.conv_offset.weight)
        nn.init.zeros_(self.conv_offset.bias)

    @classmethod
    def from_conv(
        cls,
        conv: nn.Conv2d,
        *,
        offset_groups: int = 1,
        modulation: bool = True,
        mask_scale: float = 2.0,
        backend: str = "auto",
    ) -> "DeformConv2d":
        """Make the deformable twin of a convolution, sharing its weight and bias.

        Raises:
            ValueError: if `conv` pads with anything but a number of zeros.
        """
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise ValueError(
                f"a deformable convolution pads with a number of zeros, got {conv.padding_mode} {conv.padding!r}"
            )
        layer = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            groups=conv.groups,
            offset_groups=offset_groups,
            bias=conv.bias is not None,
            modulation=modulation,
            mask_scale=mask_scale,
            backend=backend,
        )
        layer.weight, layer.bias = conv.weight, conv.bias
        return layer.to(conv.weight.device, conv.weight.dtype)

    def predict(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Predict where and how strongly to sample.

        Args:
            x: `(B, C, H, W)`.

        Returns:
            offset `(B, 2*G*K, Ho, Wo)`, per group and point (dy, dx) interleaved, and mask `(B, G*K, Ho, Wo)` after
            the sigmoid, None for DCNv1; both float32 or float64, whatever the autocast type.
        """
        return self.interpret(self.conv_offset(x))

    def interpret(self, predicted: Tensor) -> tuple[Tensor, Tensor | None]:
        """Take the output of `conv_offset`, `(B, 2*G*K + G*K, Ho, Wo)`, for what `predict` gives: offset and mask."""
        # Places need more than the 8 bits of a bfloat16: at column 200 its steps are a whole pixel.
        predicted = predicted.to(torch.promote_types(predicted.dtype, torch.float32))
        if not self.modulation:
            return predicted, None
        offset, logits = predicted.split([self.offset_channels, self.mask_channels], dim=1)
        return offset, self.mask_scale * logits.sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `x` `(B, C, H, W)` at the places it predicts itself, to `(B, N, Ho, Wo)`.

        Under autocast `x` and the output are of its type, as in `nn.Conv2d`.
        """
        kind = x.device.type
        if x.dtype == torch.float32 and torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        offset, mask = self.predict(x)
        return deform_conv2d(
            x, offset, self.weight, self.bias, self.stride, self.padding, self.dilation, mask, backend=self.backend
        )

    def extra_repr(self) -> str:
        """Numbers shown by `print(module)`, in the words of `nn.Conv2d`."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, "
            f"offset_groups={self.offset_groups}, modulation={self.modulation}, mask_scale={self.mask_scale}"
        )
