"""Steps contain each image once, or by its factor, for any split of a step and after resuming."""

import itertools
import math
from collections import Counter
from collections.abc import Iterable
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import MicroBatch, StepSampler

RATIOS = st.lists(st.sampled_from([0.5, 0.99, 1.0, 1.8]), max_size=40)
SIZES = st.integers(1, 7)


def indices(sampler: Iterable[MicroBatch]) -> list[list[int]]:
    return [[index for index, _ in batch.samples] for batch in sampler]


@given(RATIOS, SIZES, st.integers(0, 3), st.integers(0, 3))
def test_every_image_comes_once_in_steps_of_one_kind(ratios, size, seed, epoch):
    sampler = StepSampler(ratios, size, seed=seed)
    sampler.set_position(epoch)
    batches = indices(sampler)
    assert sorted(index for batch in batches for index in batch) == list(range(len(ratios)))
    assert all(len({ratios[index] >= 1 for index in batch}) == 1 for batch in batches)
    assert len(batches) == len(sampler) == sampler.steps
    assert all(1 <= len(batch) <= size for batch in batches)
    assert sum(len(batch) < size for batch in batches) <= 2


def test_batches_of_one_process_are_those_of_earlier_versions():
    sampler = StepSampler([1.5, 0.5, 1.0] * 3, 2, seed=5)
    sampler.set_position(1)
    assert indices(sampler) == [[6, 5], [8, 2], [3, 0], [7, 4], [1]]
    assert next(iter(sampler)).samples == [(6, 3758845230286133271), (5, 2253529350308858652)]


@given(
    ratios=RATIOS,
    batch_size=st.integers(1, 3),
    grad_accum_steps=st.integers(1, 3),
    processes=st.integers(1, 4),
    epoch=st.integers(0, 1),
    start=st.integers(0, 5),
    sizes=st.sampled_from([(), (480, 512, 544)]),
    factors=st.sampled_from([None, [1.0], [1, 2.25, 1.6]]),
)
def test_a_step_is_the_same_however_it_is_split(
    by_step, ratios, batch_size, grad_accum_steps, processes, epoch, start, sizes, factors
):
    options = {
        "seed": 2,
        "sizes": sizes,
        "repeats": factors and [*itertools.islice(itertools.cycle(factors), len(ratios))],
    }
    whole = StepSampler(ratios, batch_size * grad_accum_steps * processes, **options)
    shares = [
        StepSampler(ratios, batch_size, grad_accum_steps=grad_accum_steps, rank=rank, processes=processes, **options)
        for rank in range(processes)
    ]
    for sampler in (whole, *shares):
        sampler.set_position(epoch, start)
    steps = [[batch.samples for batch in step] for step in by_step(whole)]
    split = [by_step(share) for share in shares]
    assert {len(steps)} == {len(share) for share in split} == {max(whole.steps - start, 0)}
    assert {share.steps for share in shares} == {whole.steps}
    drawn = [[{batch.size for batch in step} for step in by_step(sampler)] for sampler in (whole, *shares)]
    assert all(len(step) == 1 for step in drawn[0])
    assert all(sizes == drawn[0] for sizes in drawn)
    for (step,), *parts in zip(steps, *split, strict=True):
        assert [draw for part in parts for batch in part for draw in batch.samples] == step
        assert sum(batch.weight for part in parts for batch in part) == pytest.approx(1)
        for batch in itertools.chain(*parts):
            assert len(batch.samples) <= batch_size
            assert batch.weight == pytest.approx(len(batch.samples) / len(step))
        # otherwise the processes would wait for each other forever
        assert {len(part) for part in parts} == {math.ceil(math.ceil(len(step) / processes) / batch_size)}
        counts = [sum(len(batch.samples) for batch in part) for part in parts]
        assert max(counts) - min(counts) <= 1
        for part in parts:
            assert max(len(batch.samples) for batch in part) - min(len(batch.samples) for batch in part) <= 1


@given(RATIOS, st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(0, 45))
def test_a_later_start_gives_the_tail_of_the_epoch(by_step, ratios, batch_size, grad_accum_steps, processes, start):
    sampler = StepSampler(
        ratios, batch_size, seed=1, grad_accum_steps=grad_accum_steps, rank=processes - 1, processes=processes
    )
    sampler.set_position(2)
    whole = list(sampler)
    assert len(whole) == len(sampler)
    sampler.set_position(2, start)
    assert list(sampler) == [batch for step in by_step(whole)[start:] for batch in step]
    assert len(sampler) == len(whole)


@given(st.lists(st.tuples(st.sampled_from([0.5, 1.8]), st.integers(64, 2560)), max_size=30), SIZES, st.booleans())
def test_repeated_images_fill_the_same_steps_in_every_epoch(images, size, is_square):
    """Each image comes as often as its factor rounded up or down, with the group's factors raised to a whole sum."""
    ratios, factors = [ratio for ratio, _ in images], [factor / 64 for _, factor in images]
    sampler = StepSampler(ratios, size, seed=1, repeats=factors, sizes=(64,) if is_square else ())
    groups = [images] if is_square else [[i for i in images if (i[0] >= 1) is wide] for wide in (True, False)]
    totals = [Fraction(sum(factor for _, factor in group), 64) for group in groups]
    scales = {
        ratio: math.ceil(total) / total for total, group in zip(totals, groups, strict=True) for ratio, _ in group
    }
    for epoch in range(3):
        sampler.set_position(epoch)
        batches = list(sampler)
        drawn = Counter(index for batch in batches for index, _ in batch.samples)
        assert drawn.total() == sampler.images == sum(map(math.ceil, totals))
        assert len(batches) == sampler.steps == sum(math.ceil(math.ceil(total) / size) for total in totals)
        for index, (ratio, factor) in enumerate(images):
            scaled = float(factor * scales[ratio] / 64)
            assert math.floor(scaled + 1e-9) <= drawn[index] <= math.ceil(scaled - 1e-9)
        seeds = [seed for batch in batches for _, seed in batch.samples]
        assert len({*seeds}) == len(seeds), "a repeated image is augmented in another way"
        assert is_square or all(len({ratios[index] for index, _ in batch.samples}) == 1 for batch in batches)


def test_factors_are_the_mean_number_of_uses():
    """Over 2,000 epochs, within 4.5 standard deviations; the scale to a whole sum is 20/19.55."""
    factors = [1.0, 1.25, 3.7, 1.6] * 2 + [4.45]
    sampler = StepSampler([1.0] * len(factors), 7, seed=3, repeats=factors)
    uses = Counter()
    for epoch in range(2000):
        sampler.set_position(epoch)
        uses.update(index for batch in sampler for index, _ in batch.samples)
    for index, factor in enumerate(factors):
        wanted = factor * 20 / sum(factors)
        part = wanted % 1
        assert abs(uses[index] / 2000 - wanted) < 4.5 * (part * (1 - part) / 2000) ** 0.5


def test_order_depends_only_on_seed_and_epoch():
    def order(seed: int, epoch: int) -> list:
        sampler = StepSampler([1.5, 0.5] * 20, 4, seed=seed)
        sampler.set_position(epoch)
        return [batch.samples for batch in sampler]

    assert order(0, 0) == order(0, 0)
    orders = [order(seed, epoch) for seed in range(3) for epoch in range(3)]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])
    # not only the seeds of the images, but also their order
    assert len({tuple(index for batch in batches for index, _ in batch) for batches in orders}) == len(orders)


@given(RATIOS, SIZES, st.integers(0, 3), st.integers(0, 3), st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_steps_of_one_size_mix_wide_and_tall_images(ratios, size, seed, epoch, sizes):
    sampler = StepSampler(ratios, size, seed=seed, sizes=sizes)
    sampler.set_position(epoch)
    batches = list(sampler)
    assert sorted(index for batch in batches for index, _ in batch.samples) == list(range(len(ratios)))
    assert len(batches) == len(sampler) == sampler.steps == math.ceil(len(ratios) / size)
    assert {batch.size for batch in batches} <= {*sizes}
    # the order of images and their seeds are those of images of one shape, for any sizes
    alike = StepSampler([1.0] * len(ratios), size, seed=seed)
    alike.set_position(epoch)
    assert [batch.samples for batch in batches] == [batch.samples for batch in alike]
    assert all(batch.size is None and batch.strong for batch in alike)


def test_each_size_is_drawn_equally_often():
    """700 steps of 7 sizes: 100 times each, within 4.5 standard deviations."""
    sizes = [batch.size for batch in StepSampler([1.0] * 700, 1, seed=3, sizes=range(480, 481 + 6 * 32, 32))]
    assert len({*sizes}) == 7
    assert all(abs(sizes.count(size) - 100) < 4.5 * (700 * 6 / 49) ** 0.5 for size in sizes)


@pytest.mark.parametrize(("strong_epochs", "expected"), [(None, 4), (4, 4), (3, 3), (0, 0)])
def test_strong_augmentations_are_on_in_the_first_epochs(strong_epochs, expected):
    sampler = StepSampler([1.0] * 5, 2, seed=0, strong_epochs=strong_epochs)
    for epoch in range(4):
        sampler.set_position(epoch)
        assert {batch.strong for batch in sampler} == {epoch < expected}


def test_images_of_an_epoch_have_different_seeds():
    seeds = [seed for batch in StepSampler([1.0] * 50, 4, seed=0) for _, seed in batch.samples]
    assert len({*seeds}) == 50


def test_shuffled():
    assert indices(StepSampler([1.0] * 50, 50, seed=0)) != [list(range(50))]


@pytest.mark.parametrize("name", ["batch_size", "grad_accum_steps"])
def test_a_size_below_one_is_an_error(name):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1, got 0"):
        StepSampler([1.0], **({"batch_size": 1, "seed": 0} | {name: 0}))
