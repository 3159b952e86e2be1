"""Whether a difference between two groups of runs is larger than its uncertainty."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

# Of all intervals: the share of repetitions of the whole experiment in which they hold the truth.
CONFIDENCE = 0.95


class Difference(NamedTuple):
    """How much larger a metric is in one group of runs than in another, with 95 % intervals; NaN without a metric.

    Attributes:
        value: mean of the other group less mean of the base.
        low: lower end of the interval by which it is judged: over images and seeds together; over images alone where
            one of the groups has a single run.
        high: its upper end.
        images_low: lower end over images: had the same networks been judged by other images of the kind.
        images_high: its upper end.
        seeds_low: lower end over seeds: had the networks been trained again and judged by the same images; None where
            one of the groups has a single run.
        seeds_high: its upper end, or None.
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
        """Whether 0 is outside of the interval."""
        return self.low > 0 or self.high < 0


def difference(
    base: Sequence[float],
    other: Sequence[float],
    base_samples: Sequence[NDArray[np.float64]],
    other_samples: Sequence[NDArray[np.float64]],
) -> Difference:
    """Compare a metric of two groups of runs, each of one recipe with as many seeds as it has runs.

    Images: percentiles of the difference of the groups' means over the samples of the bootstrap, in each of which all
    runs are judged by the same images. Seeds: Welch's t interval over the runs. Both: the variances of the two are
    added, and t has Welch and Satterthwaite's degrees of freedom for the seeds' part and infinitely many for the
    images'. What a seed does to single images is thus in both parts, so that the interval is rather too wide.
    Sources: Welch, Biometrika 34, 1947; Efron and Tibshirani, An Introduction to the Bootstrap, 1993.

    Args:
        base: the metric of each run of the base.
        other: of each run of the other group.
        base_samples: for each run of the base the metric in each round of `bootstrap`, `(samples,)`; samples with NaN,
            where no box of a class was drawn, are left out.
        other_samples: the same of the other group, from the same call of `bootstrap`.

    Raises:
        ValueError: if a group is empty, or the samples do not fit the runs or each other.
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
    """Welch's interval about a difference of means, with a further variance that counts as known."""
    parts = [float(np.var(runs, ddof=1)) / len(runs) for runs in (base, other)]
    variance = sum(parts) + known_variance
    guessed = sum(part**2 / (len(runs) - 1) for part, runs in zip(parts, (base, other), strict=True))
    freedom = variance**2 / guessed if guessed > 0 else math.inf
    margin = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * math.sqrt(variance)
    return value - margin, value + margin


def conclusion(
    base_name: str, other_name: str, metric: str, difference: Difference, base_seeds: int, other_seeds: int
) -> str:
    """Say in one sentence what a difference shows and what it does not.

    Args:
        base_name: of the base group.
        other_name: of the other.
        metric: as in "AP50".
        difference: of the metric, as fractions.
        base_seeds: how many runs the base has.
        other_seeds: how many the other has.
    """
    if math.isnan(difference.low):
        return f"{metric} of {other_name} and {base_name} cannot be compared: there is no box to judge by."
    size = f"{abs(100 * difference.value):.1f}"
    word = "higher" if difference.value > 0 else "lower"
    relation = f"{size} {word} than that of {base_name}" if float(size) else f"that of {base_name} to a tenth"
    shown = f"{metric} of {other_name} is {relation}"
    interval = f"95 % interval {_signed(difference.low)} to {_signed(difference.high)}"
    if difference.seeds_low is not None:
        outcome = (
            "the difference is larger than its uncertainty."
            if difference.exceeds_uncertainty
            else "not larger than its uncertainty; nothing is shown."
        )
        return f"{shown}, {interval} over images and {base_seeds} + {other_seeds} seeds: {outcome}"
    outcome = (
        "larger than the choice of images explains"
        if difference.exceeds_uncertainty
        else "not larger than its uncertainty; nothing is shown"
    )
    seeds = "one seed each" if base_seeds == other_seeds == 1 else f"{base_seeds} + {other_seeds} seeds"
    return (
        f"{shown}, {interval} over images alone: {outcome}; {seeds}, so training's own chance is not in it, and other "
        "seeds may change it."
    )


def _signed(value: float) -> str:
    return f"{round(100 * value, 1) + 0.0:+.1f}"  # + 0.0: no minus before a zero
