"""Whether a gain grows with the deformation, and how sure that is."""

import math

import numpy as np
import pytest

from engine.comparison.differences import Difference
from engine.comparison.trend import Trend, describe_trend, explain_trend, gain_trend


def gain(value, low, high) -> Difference:
    return Difference(value, low, high, low, high, None, None)


def test_the_ends_are_compared():
    gains = {0.8: gain(0.04, 0.03, 0.06), 0.0: gain(0.01, -0.01, 0.02), 0.4: gain(0.5, 0.4, 0.6)}
    trend = gain_trend(gains)
    assert (trend.weakest, trend.strongest) == (0.0, 0.8)
    assert trend.value == pytest.approx(0.03)
    # the lower end is as far as the last's lower and the first's upper end are from their values
    assert trend.low == pytest.approx(0.03 - math.hypot(0.01, 0.01))
    assert trend.high == pytest.approx(0.03 + math.hypot(0.02, 0.02))


def test_the_interval_covers_the_truth():
    random = np.random.default_rng(0)
    first, last, std = 0.010, 0.035, (0.012, 0.020)
    covered = 0
    for _ in range(4000):
        values = [random.normal(mean, s) for mean, s in zip((first, last), std, strict=True)]
        gains = [gain(value, value - 1.96 * s, value + 1.96 * s) for value, s in zip(values, std, strict=True)]
        trend = gain_trend(dict(enumerate(gains)))
        covered += trend.low <= last - first <= trend.high
    assert 0.94 < covered / 4000 < 0.96


@pytest.mark.parametrize(
    ("last", "outcome"),
    [
        (gain(0.04, 0.03, 0.05), "The gain grows with the deformation by more than its uncertainty."),
        (gain(0.02, 0.00, 0.04), "The change of the gain is not larger than its uncertainty."),
        (gain(-0.02, -0.03, -0.01), "The gain falls with the deformation by more than its uncertainty."),
    ],
)
def test_the_description_names_gains_and_outcome(last, outcome):
    gains = {0.0: gain(0.01, 0.005, 0.015), 1.0: last}
    said = describe_trend("dcn", "plain", gains, {0.0: 0.5, 1.0: 0.2})
    gained = f"{100 * last.value:+.1f} AP at deformation 1"
    assert said.startswith(f"dcn gains +1.0 AP at deformation 0 and {gained} over plain")
    assert f"+2 % and {100 * last.value / 0.2:+.0f} % of its AP" in said
    assert said.endswith(f" {outcome}")


def test_one_deformation_has_no_trend():
    with pytest.raises(ValueError, match=r"two deformations or more, got \[0\.5\]"):
        gain_trend({0.5: gain(0.1, 0, 0.2)})


def test_a_base_that_finds_nothing():
    gains = {0.0: gain(0.01, 0.005, 0.015), 1.0: gain(0.02, 0.0, 0.04)}
    said = describe_trend("dcn", "plain", gains, {0.0: 0.5, 1.0: 0.0})
    assert said.startswith(
        "dcn gains +1.0 AP at deformation 0 and +2.0 AP at deformation 1 over plain. The gain changes by"
    )


@pytest.mark.parametrize(
    ("trend", "last_ap", "spread", "reasons"),
    [
        (Trend(0.0, 1.0, 0.04, 0.01, 0.07), 0.2, 0.3, []),  # it grows: nothing to explain
        (Trend(0.0, 1.0, -0.021, -0.09, 0.05), 0.165, 0.033, ["AP falls", "seeds"]),
        (Trend(0.0, 1.0, -0.1, -0.12, -0.08), 0.165, 0.033, ["AP falls"]),
        (Trend(0.0, 1.0, -0.1, -0.12, -0.08), 0.5, 0.033, ["unknown"]),
        (Trend(0.0, 1.0, 0.01, -0.12, 0.08), 0.5, math.nan, ["one seed"]),
    ],
)
def test_why_there_is_no_growth(trend, last_ap, spread, reasons):
    said = explain_trend(trend, "plain", {0.0: 0.405, 0.5: 0.9, 1.0: last_ap}, spread)
    marks = {
        "AP falls": "AP of plain drops from 40.5 to 16.5",
        "seeds": "standard deviation over seeds is up to 3.3, too large to resolve a change of 2.1",
        "one seed": "with one seed each",
        "unknown": "These runs do not show the reason.",
    }
    assert [name for name, mark in marks.items() if mark in said] == reasons
    assert bool(said) == bool(reasons)
