"""Whether the deformable layers of a run learn: what is logged of their offsets, masks and gradients, and warned of."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from dcn import DeformConv2d

from ..display import counted
from .capture import SamplingRecord, capture_sampling, deformable_layers

# A mean |offset| below this, in pixels, changes what a layer reads by less than a hundredth of the difference between
# neighbouring pixels: it is a plain convolution still.
STILL_PX = 0.01
# Share of a run, and steps that are the fewest, after which offsets are expected to have moved, and not before the end
# of the warm-up. Most of the run is unspent then; those of the demo are 0.1 to 0.3 pixels after a fifth of it.
MOVED_BY_SHARE = 0.2
MOVED_BY_STEPS = 100
# A layer with this share of its points outside, beyond what the undeformed kernel has there, reads zeros with a quarter
# of its points.
LEAVING_SHARE = 0.25
# A point whose mask is below this counts for almost nothing.
LOW_MASK = 0.1
# The most layers that a warning names.
NAMED_LAYERS = 5


class Report(NamedTuple):
    """What there is to say of a step: scalars by tag, and what to warn of."""

    scalars: dict[str, float]
    warnings: list[str]


class Health:
    """Watches the deformable layers of a model in some steps of its training, at no forward pass of its own.

    Scalars have tags `dcn_<figure>/<layer>`, a chart for each layer, and `dcn/<figure>`, the mean over the layers, or
    the largest where the figure is a maximum. They are those of one step, not means since the last record:

    - `offset_mean_px`, `offset_p95_px`, `offset_max_px`: of |offset|, the length of the vector (dy, dx), in pixels of
      the layer's input map; p95 is the 95th percentile.
    - `outside_share`: share of the sampling points outside the image, that is beyond the outer edges of the outermost
      pixels of the layer's input map. `outside_share_added`: that, less the share of the undeformed kernel, whose
      points lie in the padding at the border: 0 at the start of a run, and below 0 where offsets draw points in.
    - `mask_mean`, `mask_std`, `mask_share_below_0.1`: of the mask that samples are multiplied by, `mask_scale *
      sigmoid`. None for DCNv1.
    - `grad_norm_conv_offset`, `grad_norm_weight`: norms of the gradients, as the optimizer took them, of the weight and
      bias that predict offsets and masks, and of the layer's own weight; none where they are frozen. `grad_ratio`: the
      first over the second.

    All points of all images count alike, also those where a smaller image of a batch was padded, and of a head those of
    all maps of the pyramid, each in pixels of its map. They are the images of this process, of the last micro-batch of
    the step.

    Args:
        model: to watch; None in the processes of a run that log nothing.
        total_steps: of the run.
        warmup_steps: over which the learning rate rises.

    Attributes:
        moved_by: step from which offsets that are still 0 are warned of; shorter runs are not judged.
    """

    def __init__(self, model: nn.Module | None, *, total_steps: int, warmup_steps: int) -> None:
        self._model = model
        self._layers = deformable_layers(model) if model is not None else {}
        self.moved_by = max(MOVED_BY_STEPS, warmup_steps, math.ceil(MOVED_BY_SHARE * total_steps))
        self._warned: set[str] = set()

    @contextmanager
    def capture(self, due: bool) -> Iterator[dict[str, SamplingRecord]]:
        """Within this context, what the layers predict is noted where that is due: see `capture_sampling`."""
        if not (due and self._layers):
            yield {}
            return
        with capture_sampling(self._model) as seen:
            yield seen

    def report(self, step: int, seen: Mapping[str, SamplingRecord]) -> Report:
        """Report on a step while its gradients stand; each kind of warning is given once by a process.

        Args:
            step: updates done.
            seen: of `capture`, in that step.
        """
        if not seen:
            return Report({}, [])
        tensors = {
            (name, figure): value
            for name, sampling in seen.items()
            for figure, value in (
                measure_sampling(self._layers[name], sampling) | measure_gradients(self._layers[name])
            ).items()
        }
        # one wait for the device, not one for each number
        numbers = torch.stack([value.to(torch.float32) for value in tensors.values()]).tolist()
        layers: dict[str, dict[str, float]] = {name: {} for name in seen}
        for (name, figure), number in zip(tensors, numbers, strict=True):
            layers[name][figure] = number
        return Report(tag_figures(layers), self._warnings(step, layers, seen))

    def histograms(self, seen: Mapping[str, SamplingRecord]) -> dict[str, Tensor]:
        """Numbers to show as histograms, by tag: offsets, dy and dx alike, and masks of each layer."""
        offsets = {f"dcn_offset_px/{name}": _joined(one.offset for one in s.maps) for name, s in seen.items()}
        return offsets | {
            f"dcn_mask/{name}": _joined(one.mask for one in s.maps) for name, s in seen.items() if s.mask is not None
        }

    def _warnings(
        self, step: int, layers: Mapping[str, Mapping[str, float]], seen: Mapping[str, SamplingRecord]
    ) -> list[str]:
        warnings = []
        still = {
            name: found
            for name, found in layers.items()
            if found["offset_mean_px"] < STILL_PX and "grad_norm_conv_offset" in found  # what is frozen need not move
        }
        if still and step >= self.moved_by and "still" not in self._warned:
            self._warned.add("still")
            warnings.append(_say_still(step, still))
        leaving = {
            name: found
            for name, found in layers.items()
            if found["outside_share_added"] > LEAVING_SHARE or found["offset_p95_px"] > max(seen[name].input_size)
        }
        if leaving and "leaving" not in self._warned:
            self._warned.add("leaving")
            warnings.append(_say_leaving(step, leaving, seen))
        return warnings


def measure_sampling(layer: DeformConv2d, sampling: SamplingRecord) -> dict[str, Tensor]:
    """Figures of a layer's offsets and mask, see `Health`, as tensors `()` on their device."""
    points = [_points(layer, one) for one in sampling.maps]
    lengths, outside, undeformed_outside = (_joined(parts) for parts in zip(*points, strict=True))
    figures = {
        "offset_mean_px": lengths.mean(),
        "offset_p95_px": _percentile_95(lengths),
        "offset_max_px": lengths.max(),
        "outside_share": _share(outside),
        "outside_share_added": _share(outside) - _share(undeformed_outside),
    }
    if sampling.mask is not None:
        masks = _joined(one.mask for one in sampling.maps)
        std, mean = torch.std_mean(masks, correction=0)
        low = _share(masks < LOW_MASK)
        figures |= {"mask_mean": mean, "mask_std": std, f"mask_share_below_{LOW_MASK}": low}
    return figures


def _points(layer: DeformConv2d, sampling: SamplingRecord) -> tuple[Tensor, Tensor, Tensor]:
    """How far the points on one map are moved, whether they are outside, and whether the undeformed kernel's are."""
    dy, dx = sampling.offset.unflatten(1, (-1, *layer.kernel_size, 2)).unbind(4)  # (B, G, kh, kw, Ho, Wo) each
    rows, columns = (_undeformed(layer, axis, sampling.offset) for axis in (0, 1))  # (kh, Ho), (kw, Wo)
    rows, columns = rows[:, None, :, None], columns[:, None, :]  # broadcast to (kh, kw, Ho, Wo)
    return (
        torch.hypot(dy, dx),
        _leave(rows + dy, columns + dx, sampling.input_size),
        _leave(rows, columns, sampling.input_size),
    )


def measure_gradients(layer: DeformConv2d) -> dict[str, Tensor]:
    """Norms of the gradients of a layer, see `Health`, as tensors `()`; none of what has no gradient."""
    parts = {"conv_offset": [*layer.conv_offset.parameters()], "weight": [layer.weight]}
    gradients = {name: [p.grad for p in parameters if p.grad is not None] for name, parameters in parts.items()}
    norms = {f"grad_norm_{name}": get_total_norm(found) for name, found in gradients.items() if found}
    return norms if len(norms) < 2 else norms | {"grad_ratio": torch.div(*norms.values())}


def tag_figures(layers: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Name the figures of layers, and those over all layers, as TensorBoard shows them, see `Health`."""
    tagged, over_layers = {}, {}
    for figure in dict.fromkeys(figure for found in layers.values() for figure in found):
        values = {name: found[figure] for name, found in layers.items() if figure in found}
        summary = max(values.values()) if figure == "offset_max_px" else sum(values.values()) / len(values)
        over_layers[f"dcn/{figure}"] = summary
        tagged |= {f"dcn_{figure}/{name}": value for name, value in values.items()}
    return over_layers | tagged


def _undeformed(layer: DeformConv2d, axis: int, like: Tensor) -> Tensor:
    """Rows (axis 0) or columns (1) that the undeformed kernel reads, `(k, out)`, in pixels of the layer's input."""
    starts = torch.arange(like.shape[axis - 2], device=like.device, dtype=like.dtype) * layer.stride[axis]
    points = torch.arange(layer.kernel_size[axis], device=like.device, dtype=like.dtype) * layer.dilation[axis]
    return points[:, None] + starts - layer.padding[axis]


def _leave(y: Tensor, x: Tensor, size: tuple[int, int]) -> Tensor:
    """Whether places lie on none of the pixels of a map, as those do that are NaN."""
    return ~((y >= -0.5) & (y <= size[0] - 0.5) & (x >= -0.5) & (x <= size[1] - 0.5))


def _joined(parts: Iterable[Tensor]) -> Tensor:
    """All numbers of some tensors; of a single one, as it is."""
    parts = [*parts]
    return parts[0] if len(parts) == 1 else torch.cat([part.flatten() for part in parts])


def _share(truths: Tensor) -> Tensor:
    return truths.count_nonzero() / truths.numel()


def _percentile_95(values: Tensor) -> Tensor:
    """`torch.quantile(values, 0.95, interpolation="lower")`; torch's sorts, and may refuse 16 million numbers."""
    rank = math.floor(0.95 * (values.numel() - 1))
    return values.flatten().topk(values.numel() - rank, sorted=False).values.min()


def _say_still(step: int, layers: Mapping[str, Mapping[str, float]]) -> str:
    means = {name: f"{found['offset_mean_px']:.2g} in {name}" for name, found in layers.items()}
    return (
        f"offsets are still 0: after {counted(step, 'step')} the mean |offset| in pixels is {_name_some(means)}; "
        f"below {STILL_PX} a layer samples as a plain convolution does. Try a higher train.offset_lr_factor or "
        "train.lr, pretrained model.backbone.weights, or a longer run"
    )


def _say_leaving(step: int, layers: Mapping[str, Mapping[str, float]], seen: Mapping[str, SamplingRecord]) -> str:
    reach = {}
    for name, found in layers.items():
        height, width = seen[name].input_size
        maps = f"maps of {height}x{width} and less" if seen[name].more else f"a map of {height}x{width}"
        reach[name] = (
            f"{100 * found['outside_share']:.0f} % of the points in {name} (undeformed: "
            f"{100 * (found['outside_share'] - found['outside_share_added']):.0f} %; 95 % of |offset| up to "
            f"{found['offset_p95_px']:.3g} pixels on {maps})"
        )
    return (
        f"offsets leave the feature map, where zeros are read: at step {step}, {_name_some(reach)}. Try a lower "
        "train.offset_lr_factor, train.lr or train.clip_grad_norm, or more train.warmup_steps"
    )


def _name_some(layers: Mapping[str, str]) -> str:
    """Join what is said of layers; of many, of the first."""
    named = [*layers.values()]
    more = f" and {len(named) - NAMED_LAYERS} more layers" if len(named) > NAMED_LAYERS else ""
    return ", ".join(named[:NAMED_LAYERS]) + more
