"""`DeformConv2d`: a deformable convolution layer that predicts its offsets and mask."""

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from .functional import check_backend, deform_conv2d
from .portable import portable_deform_conv2d


class DeformConv2d(nn.Module):
    """Deformable convolution layer: DCNv2 (`modulation=True`) or DCNv1 (`modulation=False`).

    A plain convolution `conv_offset` with the same kernel size, stride, padding and dilation predicts the offsets, and
    for DCNv2 the mask, of every output pixel and kernel point: `mask = mask_scale * sigmoid(logits)`. Its weight and
    bias are initialised to zero, so that the offsets are 0 and the mask is `mask_scale / 2`. With `mask_scale=2`, as in
    the authors' released code, the layer then equals the plain convolution with the same weight. The paper's text,
    mmdetection, detectron2 and PaddleDetection use `mask_scale=1`.

    The state-dict keys are those of mmcv: `weight`, `bias`, `conv_offset.weight`, `conv_offset.bias`.
    Papers: v1 https://arxiv.org/abs/1703.06211, v2 https://arxiv.org/abs/1811.11168.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Height and width of the kernel.
        stride: As in `nn.Conv2d`.
        padding: As in `nn.Conv2d`, zeros only.
        dilation: As in `nn.Conv2d`.
        groups: Blocked connections of the weight, as in `nn.Conv2d`; `conv_offset` always reads all channels.
        offset_groups: G, the number of channel groups with separate offsets and masks.
        bias: Whether to add a learnable bias to the output.
        modulation: Whether to multiply samples by a learned mask (DCNv2).
        mask_scale: Factor of the sigmoid.
        backend: A name in `dcn.BACKENDS`, or "auto".

    Raises:
        ValueError: If an argument is out of range, or the numbers of channels and groups do not match.

    Example:
        ```python
        layer = dcn.DeformConv2d(256, 256, 3, padding=1)
        output = layer(torch.rand(2, 256, 50, 84))
        ```
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
        """Return a deformable layer with the settings of a convolution that shares its weight and bias.

        Args:
            conv: Convolution to replace.
            offset_groups: See `DeformConv2d`.
            modulation: See `DeformConv2d`.
            mask_scale: See `DeformConv2d`.
            backend: See `DeformConv2d`.

        Raises:
            ValueError: If the padding of `conv` is not a number of zeros.
        """
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise ValueError(
                "the padding of a deformable convolution must be a number of zeros, "
                f"got {conv.padding_mode} {conv.padding!r}"
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
        """Return the offset and mask for an input.

        Args:
            x: Input, `(B, C, H, W)`.

        Returns:
            offset: Offsets `(B, 2*G*K, Ho, Wo)`, ordered by group, kernel point and (dy, dx); float32 or float64, also
                under autocast.
            mask: Mask `(B, G*K, Ho, Wo)` after the sigmoid, in the same dtype; None for DCNv1.
        """
        return self.split_prediction(self.conv_offset(x))

    def split_prediction(self, predicted: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return offset and mask, see `predict`, from the output of `conv_offset`, `(B, 2*G*K + G*K, Ho, Wo)`."""
        # Locations need more than the 8 bits of a bfloat16, whose steps are a whole pixel at column 200.
        predicted = predicted.to(torch.promote_types(predicted.dtype, torch.float32))
        if not self.modulation:
            return predicted, None
        offset, logits = predicted.split([self.offset_channels, self.mask_channels], dim=1)
        return offset, self.mask_scale * logits.sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Return the deformable convolution of an input at the predicted locations.

        Args:
            x: Input, `(B, C, H, W)`. Under autocast it is cast to the autocast dtype, as in `nn.Conv2d`.

        Returns:
            Output, `(B, N, Ho, Wo)`, in the dtype of the (cast) input.
        """
        if torch.jit.is_scripting():
            return self._scripted_forward(x)
        kind = x.device.type
        if x.dtype == torch.float32 and torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        offset, mask = self.predict(x)
        return deform_conv2d(
            x, offset, self.weight, self.bias, self.stride, self.padding, self.dilation, mask, backend=self.backend
        )

    def _scripted_forward(self, x: Tensor) -> Tensor:
        """`forward` for `torch.jit.script`, by torchvision's operator."""
        predicted = self.conv_offset(x)
        if predicted.dtype == torch.float16 or predicted.dtype == torch.bfloat16:
            predicted = predicted.float()
        offset = predicted[:, : self.offset_channels]
        mask = self.mask_scale * predicted[:, self.offset_channels :].sigmoid() if self.modulation else None
        return portable_deform_conv2d(x, offset, self.weight, self.bias, self.stride, self.padding, self.dilation, mask)

    def extra_repr(self) -> str:
        """Return the settings shown by `print(module)`, in the format of `nn.Conv2d`."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, "
            f"offset_groups={self.offset_groups}, modulation={self.modulation}, mask_scale={self.mask_scale}"
        )
