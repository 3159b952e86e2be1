"""How the gain of a network changes with the deformation of what it is shown."""

import math
from collections.abc import Mapping
from typing import NamedTuple

from .differences import Difference


class Trend(NamedTuple):
    """How much larger a gain is at the strongest deformation than at the weakest, with a 95 % interval.

    Attributes:
        weakest: deformation. strongest: the other.
        value: gain at the strongest less that at the weakest.
        low: lower end of the interval. high: upper end.
    """

    weakest: float
    strongest: float
    value: float
    low: float
    high: float


def gain_trend(gains: Mapping[float, Difference]) -> Trend:
    """Compare the gains at the ends of a range of deformations, each found on images and by runs of its own.

    The interval of a difference of two independent estimates is put together of theirs as in Zou and Donner (Statistics
    in Medicine 27, 2008): their distances to the nearer ends add up by squares.

    Args:
        gains: at two or more deformations.

    Raises:
        ValueError: if there are fewer.
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
    """Say why a gain does not grow, as far as the runs tell; nothing where it does.

    Args:
        trend: of the gain.
        base: name of the base.
        base_ap: mean AP of the base at each deformation.
        spread: the largest standard deviation of AP over the seeds of a network, NaN with one seed each.
    """
    if trend.low > 0:
        return ""
    reasons = []
    first, last = base_ap[trend.weakest], base_ap[trend.strongest]
    if last < first:
        reasons.append(
            f"AP of {base} itself goes from {100 * first:.1f} to {100 * last:.1f}, and where less is found, the same "
            "help shows in fewer points"
        )
    if spread > abs(trend.value) / 2:
        reasons.append(
            f"seeds of one network differ by a standard deviation of up to {100 * spread:.1f}, beside which a change "
            f"of {100 * abs(trend.value):.1f} does not stand out; more of them would tell"
        )
    if math.isnan(spread):
        reasons.append("with one seed each, training's own chance cannot be told from it")
    return f"Why: {'; '.join(reasons)}." if reasons else "Why that is so, these runs do not tell."


def describe_trend(name: str, base: str, gains: Mapping[float, Difference], base_ap: Mapping[float, float]) -> str:
    """Say in words whether the gain of a network over the base grows with the deformation.

    Args:
        name: of the network.
        base: name of the base.
        gains: in AP, as fractions, at each deformation.
        base_ap: mean AP of the base at each deformation.
    """
    trend = gain_trend(gains)
    ends = (trend.weakest, trend.strongest)
    points = " and ".join(f"{100 * gains[end].value:+.1f} AP at deformation {end:g}" for end in ends)
    shares = ""
    if all(base_ap[end] > 0 for end in ends):
        shares = f", {' and '.join(f'{100 * gains[end].value / base_ap[end]:+.0f} %' for end in ends)} of its AP"
    interval = f"{100 * trend.value:+.1f}, 95 % interval {100 * trend.low:+.1f} to {100 * trend.high:+.1f}"
    if trend.low > 0:
        outcome = "it grows with the deformation by more than its uncertainty"
    elif trend.high < 0:
        outcome = "it falls with the deformation by more than its uncertainty"
    else:
        outcome = "within its uncertainty, so neither growth nor fall is shown"
    return f"{name} gains {points} over {base}{shares}. From one to the other that is {interval}: {outcome}."
