"""Intervals by formulas and by how often they hold a truth that is known, and the sentence about them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from engine.comparison.bootstrap import bootstrap, match_images
from engine.comparison.differences import Difference, conclusion, difference


def samples(*values):
    return [np.array(v, dtype=float) for v in values]


def test_value_is_the_difference_of_means():
    found = difference([0.3, 0.4], [0.5, 0.5, 0.8], samples([0.3] * 9, [0.4] * 9), samples(*[[0.6] * 9] * 3))
    assert found.value == pytest.approx(0.25)


def test_images_are_the_percentiles_of_paired_rounds():
    rng = np.random.default_rng(0)
    a, b, c = rng.normal(0, 1, (3, 400))
    found = difference([0.1, 0.2], [0.5], [a, b], [a + c / 9])
    each = np.sort([a[i] + c[i] / 9 - (a[i] + b[i]) / 2 for i in range(400)])
    # by linear interpolation between the 400 values
    for end, share in ((found.images_low, 0.025), (found.images_high, 0.975)):
        place = share * 399
        low = math.floor(place)
        assert end == pytest.approx(each[low] + (place - low) * (each[low + 1] - each[low]))
    assert (found.low, found.high) == (found.images_low, found.images_high)
    assert found.seeds_low is None
    assert found.seeds_high is None


@given(
    base=st.lists(st.floats(0, 1, width=16), min_size=2, max_size=5, unique=True),
    other=st.lists(st.floats(0, 1, width=16), min_size=2, max_size=5, unique=True),
)
def test_seeds_are_welchs_interval(base, other):
    found = difference(base, other, [np.zeros(3)] * len(base), [np.zeros(3)] * len(other))
    expected = stats.ttest_ind(other, base, equal_var=False).confidence_interval(0.95)
    assert [found.seeds_low, found.seeds_high] == pytest.approx([expected.low, expected.high], abs=1e-9)
    # images that do not matter leave the seeds' interval
    assert [found.low, found.high] == pytest.approx([expected.low, expected.high], abs=1e-9)


def test_both_sources_add_up():
    base, other = [0.30, 0.34, 0.32], [0.40, 0.41]
    sampled = np.random.default_rng(0).normal(0.1, 0.02, 1000)
    found = difference(base, other, [np.zeros(1000)] * 3, [sampled] * 2)
    a, b = 0.0004 / 3, 0.00005 / 2  # variances of the means by hand
    v = float(((sampled - sampled.mean()) ** 2).mean())
    freedom = (a + b + v) ** 2 / (a**2 / 2 + b**2 / 1)
    margin = stats.t(freedom).ppf(0.975) * math.sqrt(a + b + v)
    assert [found.low, found.high] == pytest.approx([0.085 - margin, 0.085 + margin])
    assert found.high - found.low > found.images_high - found.images_low


def test_equal_seeds_leave_a_normal_interval_over_images():
    sampled = np.random.default_rng(0).normal(0.1, 0.02, 1000)
    found = difference([0.3, 0.3], [0.4, 0.4], [np.zeros(1000)] * 2, [sampled] * 2)
    margin = 1.959964 * sampled.std()
    assert [found.low, found.high] == pytest.approx([0.1 - margin, 0.1 + margin])
    assert (found.seeds_low, found.seeds_high) == pytest.approx((0.1, 0.1))


def test_nothing_varies():
    same = difference([0.3], [0.3], samples([0.3] * 5), samples([0.3] * 5))
    assert same[:5] == (0, 0, 0, 0, 0)
    assert not same.exceeds_uncertainty
    twice = difference([0.3] * 2, [0.3] * 2, samples(*[[0.3] * 5] * 2), samples(*[[0.3] * 5] * 2))
    assert twice == Difference(*[0.0] * 7)
    assert not twice.exceeds_uncertainty
    other = difference([0.5], [0.25], samples([0.5] * 5), samples([0.25] * 5))
    assert other[:5] == (-0.25,) * 5
    assert other.exceeds_uncertainty


@pytest.mark.parametrize("runs", [1, 2])
def test_a_figure_that_is_absent_gives_none(runs):
    absent = [np.full(5, np.nan)] * runs
    found = difference([math.nan] * runs, [0.5] * runs, absent, [np.ones(5)] * runs)
    assert all(math.isnan(v) for v in found if v is not None)
    assert (found.seeds_low is None) == (runs == 1)
    assert not found.exceeds_uncertainty
    for one, other in ((math.nan, 0.5), (0.5, math.nan)):
        assert math.isnan(difference([one] * runs, [other] * runs, [np.ones(5)] * runs, [np.ones(5)] * runs).low)
    # there are boxes, but in no round
    assert math.isnan(difference([0.5], [0.5], absent[:1], absent[:1]).low)


def test_samples_without_a_figure_are_left_out():
    base, other = [0.1, 0.2, math.nan, 0.4, 0.1], [0.2, 0.4, math.nan, 0.7, 0.2]
    found = difference([0.2], [0.4], samples(base), samples(other))
    kept = difference([0.2], [0.4], samples([0.1, 0.2, 0.4, 0.1]), samples([0.2, 0.4, 0.7, 0.2]))
    assert found == kept
    assert not math.isnan(found.low)


@pytest.mark.parametrize(
    ("low", "high", "exceeds"), [(0.1, 0.2, True), (-0.2, -0.1, True), (-0.1, 0.2, False), (0.0, 0.2, False)]
)
def test_it_exceeds_its_uncertainty_if_0_is_outside(low, high, exceeds):
    # by the interval of both sources, whatever those of one say
    assert Difference(0.1, low, high, -1, 1, 0.1, 1).exceeds_uncertainty is exceeds


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (([], [0.5], [], samples([1])), "`base` needs at least one run, and samples for each, got 0 and 0"),
        (([0.5], [0.5], samples([1]), []), "`other` needs .* got 1 and 0"),
        (([0.5], [0.5], samples([1, 2]), samples([1])), r"the same number of samples, got \[1, 2\]"),
    ],
)
def test_runs_and_samples_must_fit(arguments, said):
    with pytest.raises(ValueError, match=said):
        difference(*arguments)


def share_held(intervals, truth):
    return np.mean([low <= truth <= high for low, high in intervals])


def test_intervals_over_images_hold_the_truth_as_often_as_they_say():
    """Scores of images with a common difficulty: the truth is the difference of their expectations."""
    rng = np.random.default_rng(0)
    intervals, widths, images = [], [], 80
    for _ in range(600):
        hard = rng.normal(0, 0.2, images)
        base, other = 0.4 + hard + rng.normal(0, 0.05, images), 0.43 + hard + rng.normal(0, 0.08, images)
        weights = rng.multinomial(images, [1 / images] * images, size=400) / images
        found = difference([base.mean()], [other.mean()], [weights @ base], [weights @ other])
        intervals.append((found.low, found.high))
        widths.append(found.high - found.low)
    # 95 % less what 80 images and 400 samples cost, and 3 deviations of 600 trials
    assert 0.915 < share_held(intervals, 0.03) < 0.975
    # paired: without the common difficulty
    assert np.mean(widths) == pytest.approx(2 * 1.96 * math.hypot(0.05, 0.08) / math.sqrt(images), rel=0.05)


@pytest.mark.parametrize("seed_effect", [0.0, 0.004, 0.03])
def test_intervals_over_seeds_and_images_hold_the_truth_as_often_as_they_say(seed_effect):
    """Three seeds each, whose effects are small, like those of images, or larger."""
    rng = np.random.default_rng(0)
    intervals, images, spread = [], 200, 0.1
    for _ in range(1500):
        base_seeds, other_seeds = rng.normal(0.4, seed_effect, 3), rng.normal(0.42, seed_effect, 3)
        change = rng.normal(0, spread, images)  # of each image, by the recipe
        drawn = change.mean() + rng.normal(0, spread / math.sqrt(images), 300)
        found = difference(
            base_seeds, other_seeds + change.mean(), [np.zeros(300)] * 3, [s + drawn for s in other_seeds]
        )
        intervals.append((found.low, found.high))
    assert 0.93 < share_held(intervals, 0.02) < 0.975


def draw_population(rng, images):
    """Two detectors of different quality on images of one class, of which some are harder than others."""
    truth, results = {}, ({}, {})
    for image in range(images):
        hard = rng.normal()
        boxes = rng.uniform(20, 90, (int(rng.integers(1, 4)), 4))
        truth[image] = [[float(v) for v in box] for box in boxes]
        for quality, found in zip((0.0, 0.4), results, strict=True):
            found[image] = []
            for box in boxes:
                shift = 0.05 * math.exp(0.3 * hard - quality) * rng.normal(size=2) * box[2:]
                found[image].append(([*(box[:2] + shift), *box[2:]], rng.normal(1 + quality - 0.3 * hard)))
            found[image].append(([*rng.uniform(0, 100, 2), 50.0, 40.0], rng.normal(0)))
    return truth, results


def judged(truth, found, picked):
    """Judge one detector by images of the population, each as often as it was picked."""
    boxes = [(place, box) for place, image in enumerate(picked, start=1) for box in truth[image]]
    coco = {
        "images": [{"id": place} for place in range(1, len(picked) + 1)],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [
            {"id": n, "image_id": place, "category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for n, (place, box) in enumerate(boxes, start=1)
        ],
    }
    results = [
        {"image_id": place, "category_id": 1, "bbox": [float(v) for v in box], "score": float(score)}
        for place, image in enumerate(picked, start=1)
        for box, score in found[image]
    ]
    return match_images(coco, results)


@pytest.mark.slow
def test_intervals_of_ap_hold_the_truth_as_often_as_they_say():
    """Val sets drawn from a population whose own AP is known: 60 of 80 images."""
    rng = np.random.default_rng(0)
    truth, results = draw_population(rng, 1500)
    population = [judged(truth, found, range(1500)).metrics() for found in results]
    intervals = {"AP": [], "AP75": []}
    for trial in range(60):
        picked = rng.integers(0, 1500, 80)
        runs = [judged(truth, found, picked) for found in results]
        base, other = bootstrap(runs, samples=200, seed=trial)
        base_figures, other_figures = (run.metrics() for run in runs)
        for name, held in intervals.items():
            found = difference([base_figures[name]], [other_figures[name]], [base[name]], [other[name]])
            held.append((found.low, found.high))
    for name, held in intervals.items():
        gain = population[1][name] - population[0][name]
        assert gain > 0.05
        assert share_held(held, gain) > 0.86  # 95 %, and 3 deviations of 60 trials
        assert share_held(held, gain + 0.1) < 0.6


def sentence(low, high, *, seeds=(3, 3), value=None, metric="AP"):
    middle = (low + high) / 2 if value is None else value
    ends = (low, high) if min(seeds) > 1 else (None, None)
    return conclusion("plain", "dcn_234", metric, Difference(middle, low, high, low, high, *ends), *seeds)


def test_conclusions_of_several_seeds():
    assert sentence(0.012, 0.05) == (
        "AP of dcn_234 is 3.1 higher than that of plain (95 % interval +1.2 to +5.0 over images and 3 + 3 seeds). "
        "The difference is larger than its uncertainty."
    )
    assert sentence(-0.05, -0.012, metric="AP75", seeds=(2, 4)) == (
        "AP75 of dcn_234 is 3.1 lower than that of plain (95 % interval -5.0 to -1.2 over images and 2 + 4 seeds). "
        "The difference is larger than its uncertainty."
    )
    assert sentence(-0.01, 0.05) == (
        "AP of dcn_234 is 2.0 higher than that of plain (95 % interval -1.0 to +5.0 over images and 3 + 3 seeds). "
        "The difference is not larger than its uncertainty."
    )


def test_conclusions_of_single_seeds_have_a_note():
    assert sentence(0.012, 0.05, seeds=(1, 1)) == (
        "AP of dcn_234 is 3.1 higher than that of plain (95 % interval +1.2 to +5.0 over images only). The difference "
        "is larger than its uncertainty. Note: with one seed each, the interval does not include the variance between "
        "seeds."
    )
    assert sentence(-0.012, 0.05, seeds=(3, 1)) == (
        "AP of dcn_234 is 1.9 higher than that of plain (95 % interval -1.2 to +5.0 over images only). The difference "
        "is not larger than its uncertainty. Note: with 3 + 1 seeds, the interval does not include the variance "
        "between seeds."
    )


def test_conclusions_without_a_difference_or_a_metric():
    said = sentence(-0.0004, 0.01, value=-0.0004)
    assert said.startswith("AP of dcn_234 is equal to that of plain within 0.1 (95 % interval +0.0 to +1.0 over")
    assert (
        sentence(math.nan, math.nan)
        == "AP of dcn_234 and plain cannot be compared: the val split has no box for this metric."
    )
