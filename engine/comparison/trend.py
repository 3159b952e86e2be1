"""Trend of the gain of a network over the deformation of the objects."""

import math
from collections.abc import Mapping
from typing import NamedTuple

from .differences import Difference


class Trend(NamedTuple):
    """Change of a gain from the weakest to the strongest deformation, with a 95 % interval.

    Attributes:
        weakest: weakest deformation.
        strongest: strongest deformation.
        value: gain at the strongest minus gain at the weakest deformation.
        low: lower end of the interval.
        high: upper end of the interval.
    """

    weakest: float
    strongest: float
    value: float
    low: float
    high: float


def gain_trend(gains: Mapping[float, Difference]) -> Trend:
    """Compare the gains at the weakest and the strongest deformation, which have separate images and runs.

    The interval of the difference of two independent estimates follows Zou and Donner (Statistics in Medicine 27,
    2008): the distances to the ends of the two intervals are added in quadrature.

    Args:
        gains: gains by deformation, two or more.

    Raises:
        ValueError: if there are fewer than two deformations.
    """
    if len(gains) < 2:
        raise ValueError(f"a trend needs gains at two deformations or more, got {sorted(gains)}")
    weakest, strongest = min(gains), max(gains)
    first, last = gains[weakest], gains[strongest]
    value = last.value - first.value
    down = math.hypot(last.value - last.low, first.high - first.value)
    up = math.hypot(last.high - last.value, first.value - first.low)
    return Trend(weakest, strongest, value, value - down, value + up)


def explain_trend(trend: Trend, base: str, base_ap: Mapping[float, float], spread: float) -> str:
    """List possible reasons why a gain does not grow; return an empty text if it grows.

    Args:
        trend: trend of the gain.
        base: name of the base.
        base_ap: mean AP of the base at each deformation.
        spread: largest standard deviation of AP over the seeds of a network, NaN with one seed each.
    """
    if trend.low > 0:
        return ""
    reasons = []
    first, last = base_ap[trend.weakest], base_ap[trend.strongest]
    if last < first:
        reasons.append(
            f"AP of {base} drops from {100 * first:.1f} to {100 * last:.1f}, and at a low AP the same relative gain is "
            "a smaller difference"
        )
    if spread > abs(trend.value) / 2:
        reasons.append(
            f"the standard deviation over seeds is up to {100 * spread:.1f}, too large to resolve a change of "
            f"{100 * abs(trend.value):.1f} with this number of seeds"
        )
    if math.isnan(spread):
        reasons.append("with one seed each, the variance between seeds is unknown")
    return f"Possible reasons: {'; '.join(reasons)}." if reasons else "These runs do not show the reason."


def describe_trend(name: str, base: str, gains: Mapping[float, Difference], base_ap: Mapping[float, float]) -> str:
    """Describe whether the gain of a network over the base grows with the deformation.

    Args:
        name: name of the network.
        base: name of the base.
        gains: gain in AP at each deformation, as fractions.
        base_ap: mean AP of the base at each deformation.
    """
    trend = gain_trend(gains)
    ends = (trend.weakest, trend.strongest)
    points = " and ".join(f"{100 * gains[end].value:+.1f} AP at deformation {end:g}" for end in ends)
    relative = ""
    if all(base_ap[end] > 0 for end in ends):
        relative = f" ({' and '.join(f'{100 * gains[end].value / base_ap[end]:+.0f} %' for end in ends)} of its AP)"
    interval = f"{100 * trend.value:+.1f} (95 % interval {100 * trend.low:+.1f} to {100 * trend.high:+.1f})"
    if trend.low > 0:
        outcome = "The gain grows with the deformation by more than its uncertainty."
    elif trend.high < 0:
        outcome = "The gain falls with the deformation by more than its uncertainty."
    else:
        outcome = "The change of the gain is not larger than its uncertainty."
    return f"{name} gains {points} over {base}{relative}. The gain changes by {interval}. {outcome}"
