"""Whether a difference between two groups of runs is larger than its uncertainty."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

# Coverage of all intervals: fraction of repeated experiments whose interval contains the true difference.
CONFIDENCE = 0.95


class Difference(NamedTuple):
    """Difference of a metric between two groups of runs, with 95 % intervals; NaN if the metric is undefined.

    Attributes:
        value: mean of the other group minus mean of the base.
        low: lower end of the main interval: over images and seeds, or over images only if a group has a single run.
        high: upper end of the main interval.
        images_low: lower end over images: the same networks evaluated on other images of this kind.
        images_high: upper end over images.
        seeds_low: lower end over seeds: the networks trained again and evaluated on the same images. None if a group
            has a single run.
        seeds_high: upper end over seeds, or None.
    """

    value: float
    low: float
    high: float
    images_low: float
    images_high: float
    seeds_low: float | None
    seeds_high: float | None

    @property
    def exceeds_uncertainty(self) -> bool:
        """Whether the main interval excludes 0."""
        return self.low > 0 or self.high < 0


def difference(
    base: Sequence[float],
    other: Sequence[float],
    base_samples: Sequence[NDArray[np.float64]],
    other_samples: Sequence[NDArray[np.float64]],
) -> Difference:
    """Compare a metric of two groups of runs; the runs of a group differ only in their seed.

    Over images: percentiles of the difference of the group means over the samples of a paired bootstrap. Over seeds:
    Welch's t interval over the runs. Over both: the variances are added. Student's t then has Welch-Satterthwaite
    degrees of freedom for the seeds and infinitely many for the images.
    Note: the effect of a seed on single images is part of both variances, so the combined interval is slightly wide.
    Sources: Welch, Biometrika 34, 1947; Efron and Tibshirani, An Introduction to the Bootstrap, 1993.

    Args:
        base: metric of each run of the base.
        other: metric of each run of the other group.
        base_samples: for each run of the base, the metric in each sample of `bootstrap`, `(samples,)`. NaN samples (no
            box of the class was drawn) are skipped.
        other_samples: the same for the other group, from the same call of `bootstrap`.

    Raises:
        ValueError: if a group is empty, or the numbers of samples and runs do not match.
    """
    sizes = {len(samples) for samples in [*base_samples, *other_samples]}
    for name, runs, samples in (("base", base, base_samples), ("other", other, other_samples)):
        if not len(runs) or len(runs) != len(samples):
            raise ValueError(
                f"`{name}` needs at least one run, and samples for each, got {len(runs)} and {len(samples)}"
            )
    if len(sizes) > 1:
        raise ValueError(f"all runs must have the same number of samples, got {sorted(sizes)}")
    value = float(np.mean(other) - np.mean(base))
    resampled = np.mean(other_samples, axis=0) - np.mean(base_samples, axis=0)
    resampled = resampled[~np.isnan(resampled)]
    if math.isnan(value) or not len(resampled):
        absent = None if min(len(base), len(other)) < 2 else math.nan
        return Difference(value, *[math.nan] * 4, absent, absent)
    tail = (1 - CONFIDENCE) / 2
    images = [float(end) for end in np.quantile(resampled, [tail, 1 - tail])]
    if min(len(base), len(other)) < 2:
        return Difference(value, *images, *images, None, None)
    seeds = _t_interval(value, base, other)
    return Difference(value, *_t_interval(value, base, other, float(np.var(resampled))), *images, *seeds)


def _t_interval(
    value: float, base: Sequence[float], other: Sequence[float], known_variance: float = 0.0
) -> tuple[float, float]:
    """Return Welch's interval of a difference of means, with an additional known variance."""
    parts = [float(np.var(runs, ddof=1)) / len(runs) for runs in (base, other)]
    variance = sum(parts) + known_variance
    guessed = sum(part**2 / (len(runs) - 1) for part, runs in zip(parts, (base, other), strict=True))
    freedom = variance**2 / guessed if guessed > 0 else math.inf
    margin = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * math.sqrt(variance)
    return value - margin, value + margin


def conclusion(
    base_name: str, other_name: str, metric: str, difference: Difference, base_seeds: int, other_seeds: int
) -> str:
    """Describe a difference and what it shows, in two or three sentences.

    Args:
        base_name: name of the base group.
        other_name: name of the other group.
        metric: name of the metric, such as "AP50".
        difference: difference of the metric, as fractions.
        base_seeds: number of runs of the base.
        other_seeds: number of runs of the other group.
    """
    if math.isnan(difference.low):
        return f"{metric} of {other_name} and {base_name} cannot be compared: the val split has no box for this metric."
    size = f"{abs(100 * difference.value):.1f}"
    word = "higher" if difference.value > 0 else "lower"
    relation = f"{size} {word} than that of {base_name}" if float(size) else f"equal to that of {base_name} within 0.1"
    sources = f"images and {base_seeds} + {other_seeds} seeds" if difference.seeds_low is not None else "images only"
    interval = f"95 % interval {_signed(difference.low)} to {_signed(difference.high)} over {sources}"
    outcome = (
        "The difference is larger than its uncertainty."
        if difference.exceeds_uncertainty
        else "The difference is not larger than its uncertainty."
    )
    sentences = f"{metric} of {other_name} is {relation} ({interval}). {outcome}"
    if difference.seeds_low is not None:
        return sentences
    seeds = "one seed each" if base_seeds == other_seeds == 1 else f"{base_seeds} + {other_seeds} seeds"
    return f"{sentences} Note: with {seeds}, the interval does not include the variance between seeds."


def _signed(value: float) -> str:
    return f"{round(100 * value, 1) + 0.0:+.1f}"  # + 0.0: no minus before a zero
