"""Offset health: statistics and warnings of the offsets, masks and gradients of deformable layers in training."""

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

# With a mean |offset| below this, in pixels, a layer still samples as a plain convolution does: its samples differ by
# less than a hundredth of the difference between neighbouring pixels.
STILL_PX = 0.01
# Offsets are expected to have moved after this fraction of the run, but not before this many steps, nor before the end
# of the warm-up. In the demo they have grown to 0.1 to 0.3 pixels after a fifth of the run.
MOVED_BY_FRACTION = 0.2
MOVED_BY_STEPS = 100
# A layer that has this fraction of its points outside, minus the fraction of the regular grid, reads zeros at a quarter
# of its points.
LEAVING_FRACTION = 0.25
# A point with a mask below this contributes almost nothing.
LOW_MASK = 0.1
# Number of layers that a warning names.
NAMED_LAYERS = 5


class Report(NamedTuple):
    """Scalars of a step by tag, and warnings."""

    scalars: dict[str, float]
    warnings: list[str]


class Health:
    """Measures the deformable layers of a model in some training steps, without an extra forward pass.

    Each statistic has a tag per layer, `dcn_<statistic>/<layer>`, and `dcn_<statistic>/mean` over the layers
    (`dcn_offset_max_px/max`). The values are those of one step, not means since the last record:

    - `offset_mean_px`, `offset_p95_px`, `offset_max_px`: mean, 95th percentile and maximum of |offset|, the length of
      the vector (dy, dx), in pixels of the layer's input map.
    - `outside_frac`: fraction of the sampling points outside the input map, beyond the edges of its border pixels.
    - `outside_frac_vs_regular`: `outside_frac` minus the fraction of the regular grid, whose points at the border are
      in the padding. It is 0 at the start of a run, and negative where offsets move points inside.
    - `mask_mean`, `mask_std`, `mask_frac_lt_0.1`: mean and standard deviation of the mask, `mask_scale * sigmoid`, and
      the fraction of points with a mask below 0.1. DCNv1 has no mask.
    - `grad_norm_conv_offset`, `grad_norm_weight`: norms of the gradients that the optimizer used, of the layer that
      predicts offsets and masks, and of the layer's weight. Frozen parameters have none.
    - `grad_ratio`: `grad_norm_conv_offset / grad_norm_weight`.

    Statistics are over all points of the last micro-batch of this process, including padding of smaller images. A layer
    of a head that runs on all levels of the pyramid is measured over all levels, in pixels of each level.

    Args:
        model: model to measure; None in processes that log nothing.
        total_steps: steps of the run.
        warmup_steps: steps of the learning-rate warm-up.

    Attributes:
        moved_by: step from which offsets that are still 0 cause a warning. Shorter runs get no such warning.
    """

    def __init__(self, model: nn.Module | None, *, total_steps: int, warmup_steps: int) -> None:
        self._model = model
        self._layers = deformable_layers(model) if model is not None else {}
        self.moved_by = max(MOVED_BY_STEPS, warmup_steps, math.ceil(MOVED_BY_FRACTION * total_steps))
        self._warned: set[str] = set()

    @contextmanager
    def capture(self, due: bool) -> Iterator[dict[str, SamplingRecord]]:
        """Context that captures the sampling of the layers if `due`, see `capture_sampling`."""
        if not (due and self._layers):
            yield {}
            return
        with capture_sampling(self._model) as seen:
            yield seen

    def report(self, step: int, seen: Mapping[str, SamplingRecord]) -> Report:
        """Return the scalars and warnings of a step; call it before its gradients are cleared.

        Each kind of warning appears once.

        Args:
            step: number of updates so far.
            seen: the records of `capture` in this step.
        """
        if not seen:
            return Report({}, [])
        tensors = {
            (name, statistic): value
            for name, sampling in seen.items()
            for statistic, value in (
                measure_sampling(self._layers[name], sampling) | measure_gradients(self._layers[name])
            ).items()
        }
        # one synchronization with the device, not one per number
        numbers = torch.stack([value.to(torch.float32) for value in tensors.values()]).tolist()
        layers: dict[str, dict[str, float]] = {name: {} for name in seen}
        for (name, statistic), number in zip(tensors, numbers, strict=True):
            layers[name][statistic] = number
        return Report(tag_statistics(layers), self._warnings(step, layers, seen))

    def histograms(self, seen: Mapping[str, SamplingRecord]) -> dict[str, Tensor]:
        """Return the values of histograms by tag: offsets (dy and dx together) and masks of each layer."""
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
            if found["offset_mean_px"] < STILL_PX and "grad_norm_conv_offset" in found  # frozen layers do not move
        }
        if still and step >= self.moved_by and "still" not in self._warned:
            self._warned.add("still")
            warnings.append(_describe_still(step, still))
        leaving = {
            name: found
            for name, found in layers.items()
            if found["outside_frac_vs_regular"] > LEAVING_FRACTION
            or found["offset_p95_px"] > max(seen[name].input_size)
        }
        if leaving and "leaving" not in self._warned:
            self._warned.add("leaving")
            warnings.append(_describe_leaving(step, leaving, seen))
        return warnings


def measure_sampling(layer: DeformConv2d, sampling: SamplingRecord) -> dict[str, Tensor]:
    """Return the statistics of a layer's offsets and mask, see `Health`, as scalar tensors on their device."""
    points = [_points(layer, one) for one in sampling.maps]
    lengths, outside, regular_outside = (_joined(parts) for parts in zip(*points, strict=True))
    statistics = {
        "offset_mean_px": lengths.mean(),
        "offset_p95_px": _percentile_95(lengths),
        "offset_max_px": lengths.max(),
        "outside_frac": _fraction(outside),
        "outside_frac_vs_regular": _fraction(outside) - _fraction(regular_outside),
    }
    if sampling.mask is not None:
        masks = _joined(one.mask for one in sampling.maps)
        std, mean = torch.std_mean(masks, correction=0)
        low = _fraction(masks < LOW_MASK)
        statistics |= {"mask_mean": mean, "mask_std": std, f"mask_frac_lt_{LOW_MASK}": low}
    return statistics


def _points(layer: DeformConv2d, sampling: SamplingRecord) -> tuple[Tensor, Tensor, Tensor]:
    """Return |offset| of the points on one map, whether each is outside, and the same for the regular grid."""
    dy, dx = sampling.offset.unflatten(1, (-1, *layer.kernel_size, 2)).unbind(4)  # (B, G, kh, kw, Ho, Wo) each
    rows, columns = (_regular(layer, axis, sampling.offset) for axis in (0, 1))  # (kh, Ho), (kw, Wo)
    rows, columns = rows[:, None, :, None], columns[:, None, :]  # broadcast to (kh, kw, Ho, Wo)
    return (
        torch.hypot(dy, dx),
        _is_outside(rows + dy, columns + dx, sampling.input_size),
        _is_outside(rows, columns, sampling.input_size),
    )


def measure_gradients(layer: DeformConv2d) -> dict[str, Tensor]:
    """Return the gradient norms of a layer, see `Health`, as scalar tensors; frozen parameters have none."""
    parts = {"conv_offset": [*layer.conv_offset.parameters()], "weight": [layer.weight]}
    gradients = {name: [p.grad for p in parameters if p.grad is not None] for name, parameters in parts.items()}
    norms = {f"grad_norm_{name}": get_total_norm(found) for name, found in gradients.items() if found}
    return norms if len(norms) < 2 else norms | {"grad_ratio": torch.div(*norms.values())}


def tag_statistics(layers: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return the scalars by tag, see `Health`, from the statistics by layer."""
    tagged, over_layers = {}, {}
    for statistic in dict.fromkeys(statistic for found in layers.values() for statistic in found):
        values = {name: found[statistic] for name, found in layers.items() if statistic in found}
        if statistic == "offset_max_px":
            over_layers[f"dcn_{statistic}/max"] = max(values.values())
        else:
            over_layers[f"dcn_{statistic}/mean"] = sum(values.values()) / len(values)
        tagged |= {f"dcn_{statistic}/{name}": value for name, value in values.items()}
    return over_layers | tagged


def _regular(layer: DeformConv2d, axis: int, like: Tensor) -> Tensor:
    """Return the rows (axis 0) or columns (1) of the regular grid, `(k, out)`, in pixels of the layer's input."""
    starts = torch.arange(like.shape[axis - 2], device=like.device, dtype=like.dtype) * layer.stride[axis]
    points = torch.arange(layer.kernel_size[axis], device=like.device, dtype=like.dtype) * layer.dilation[axis]
    return points[:, None] + starts - layer.padding[axis]


def _is_outside(y: Tensor, x: Tensor, size: tuple[int, int]) -> Tensor:
    """Return whether locations are outside a map; NaN is outside."""
    return ~((y >= -0.5) & (y <= size[0] - 0.5) & (x >= -0.5) & (x <= size[1] - 0.5))


def _joined(parts: Iterable[Tensor]) -> Tensor:
    """Return the values of some tensors as one; a single tensor is returned unchanged."""
    parts = [*parts]
    return parts[0] if len(parts) == 1 else torch.cat([part.flatten() for part in parts])


def _fraction(conditions: Tensor) -> Tensor:
    return conditions.count_nonzero() / conditions.numel()


def _percentile_95(values: Tensor) -> Tensor:
    """Return `torch.quantile(values, 0.95, interpolation="lower")`, which sorts and is limited to 16 million values."""
    rank = math.floor(0.95 * (values.numel() - 1))
    return values.flatten().topk(values.numel() - rank, sorted=False).values.min()


def _describe_still(step: int, layers: Mapping[str, Mapping[str, float]]) -> str:
    means = {name: f"{found['offset_mean_px']:.2g} in {name}" for name, found in layers.items()}
    return (
        f"offsets are still close to 0 after {counted(step, 'step')}: mean |offset| in pixels is {_name_some(means)}. "
        f"Below {STILL_PX} px a layer samples like a plain convolution. Try a higher train.offset_lr_factor or "
        "train.lr, pretrained model.backbone.weights, or a longer run"
    )


def _describe_leaving(step: int, layers: Mapping[str, Mapping[str, float]], seen: Mapping[str, SamplingRecord]) -> str:
    reach = {}
    for name, found in layers.items():
        height, width = seen[name].input_size
        maps = f"maps of up to {height}x{width}" if seen[name].more else f"a map of {height}x{width}"
        regular = found["outside_frac"] - found["outside_frac_vs_regular"]
        reach[name] = (
            f"{100 * found['outside_frac']:.0f} % in {name} (regular grid: {100 * regular:.0f} %; "
            f"95th percentile of |offset|: {found['offset_p95_px']:.3g} pixels on {maps})"
        )
    return (
        f"offsets leave the feature map, where the layer reads zeros. Sampling points outside at step {step}: "
        f"{_name_some(reach)}. Try a lower train.offset_lr_factor, train.lr or train.clip_grad_norm, or more "
        "train.warmup_steps"
    )


def _name_some(layers: Mapping[str, str]) -> str:
    """Join the descriptions of layers, at most `NAMED_LAYERS`."""
    named = [*layers.values()]
    more = f" and {len(named) - NAMED_LAYERS} more layers" if len(named) > NAMED_LAYERS else ""
    return ", ".join(named[:NAMED_LAYERS]) + more
