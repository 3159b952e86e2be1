"""The sampler draws what torchvision's does, each image for itself, and does not wait for the device."""

import copy

import pytest
import torch
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

from models.sampling import ImageSampler

PER_IMAGE, FRACTION = 10, 0.3


def make(salt: int = 7) -> ImageSampler:
    return ImageSampler(PER_IMAGE, FRACTION, salt=salt)


def labels(positive: int, negative: int, ignored: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    """Labels in a mixed order; those of positives are classes."""
    row = torch.tensor([1 + index % 3 for index in range(positive)] + [0] * negative + [-1] * ignored, dtype=dtype)
    return row[torch.randperm(len(row), generator=torch.Generator().manual_seed(positive + negative))]


# enough of both; few positives; few negatives; few of both; one kind alone; nothing
COUNTS = [(8, 40, 5), (2, 40, 5), (8, 3, 5), (1, 4, 9), (0, 30, 0), (12, 0, 0), (0, 2, 3), (0, 0, 4), (0, 0, 0)]


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
@pytest.mark.parametrize("seeded", [True, False])
def test_numbers_and_kinds_are_those_of_torchvision(dtype, seeded):
    images = [labels(*counts, dtype) for counts in COUNTS]
    sampler = make()
    sampler.seeds = list(range(len(images))) if seeded else None
    ours, theirs = sampler(images), BalancedPositiveNegativeSampler(PER_IMAGE, FRACTION)(images)
    for masks, expected, is_kind in zip(ours, theirs, (lambda row: row >= 1, lambda row: row == 0), strict=True):
        for row, mask, wanted in zip(images, masks, expected, strict=True):
            assert (mask.dtype, mask.shape) == (wanted.dtype, wanted.shape)
            assert mask.sum() == wanted.sum()
            assert is_kind(row[mask.bool()]).all()
    drawn = sum(int(mask.sum()) for masks in theirs for mask in masks)
    assert sampler.missing.item() == PER_IMAGE * len(images) - drawn


@pytest.mark.parametrize("seeded", [True, False])
def test_every_place_is_drawn_equally_often(seeded):
    """3 out of 8 positives and 7 out of 20 negatives: within 4.5 standard deviations of that share."""
    row, sampler, trials = labels(8, 20, 3), make(), 3000
    sampler.seeds = list(range(trials)) if seeded else None
    torch.manual_seed(0)
    positives, negatives = (torch.stack(masks).double().mean(0) for masks in sampler([row] * trials))
    for shares, kind, expected in ((positives, row >= 1, 3 / 8), (negatives, row == 0, 7 / 20)):
        deviation = (expected * (1 - expected) / trials) ** 0.5
        assert (shares[kind] - expected).abs().max() < 4.5 * deviation
        assert not shares[~kind].any()


def draw(sampler: ImageSampler, images: list[torch.Tensor], seeds: list[int | None] | None) -> list[list[int]]:
    sampler.seeds = seeds
    positives, negatives = sampler(images)
    return [(p | n).nonzero().flatten().tolist() for p, n in zip(positives, negatives, strict=True)]


def test_what_is_drawn_belongs_to_the_image():
    images = [labels(8 + index, 40 + index, 5) for index in range(4)]
    seeds = [11, 2**62 - 1, 13, 11]
    sampler = make()
    whole = draw(sampler, images, seeds)
    torch.manual_seed(5)  # another global state
    assert draw(sampler, images[::-1], seeds[::-1]) == whole[::-1]
    assert [draw(sampler, [image], [seed])[0] for image, seed in zip(images, seeds, strict=True)] == whole
    assert draw(make(), images, seeds) == draw(copy.deepcopy(sampler), images, seeds) == whole
    assert draw(make(8), images, seeds) != whole
    assert draw(sampler, images, [seed + 1 for seed in seeds[:-1]] + [11])[:3] != whole[:3]


def test_a_seed_leaves_the_global_state_alone():
    before = torch.get_rng_state()
    draw(make(), [labels(8, 40, 5)], [3])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("seeds", [None, [None, None]])
def test_without_seeds_it_follows_the_global_state(seeds):
    images = [labels(8, 40, 5)] * 2
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(draw(make(), images, seeds))
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0][0] != drawn[0][1]


def test_only_some_images_have_a_seed():
    images = [labels(8, 40, 5)] * 2
    drawn = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        drawn.append(draw(make(), images, [4, None]))
    assert drawn[0][0] == drawn[1][0]
    assert drawn[0][1] != drawn[1][1]


def test_it_asks_the_device_for_no_number():
    """Tensors without content refuse what would wait for a GPU, such as `.item()` and the `torch.where` of theirs."""
    with FakeTensorMode():
        images = [torch.zeros(50), torch.zeros(60)]
        sampler = make()
        positives, _ = sampler(images)
        assert [len(mask) for mask in positives] == [50, 60]
        with pytest.raises(DynamicOutputShapeException):
            BalancedPositiveNegativeSampler(PER_IMAGE, FRACTION)(images)


@pytest.mark.gpu
def test_on_a_gpu_without_waiting():
    images, seeds = [labels(8, 40, 5).cuda(), labels(9, 50, 6).cuda()], [3, 4]
    sampler = make()
    whole = draw(sampler, images, seeds)
    assert [draw(sampler, [image], [seed])[0] for image, seed in zip(images, seeds, strict=True)] == whole
    torch.cuda.set_sync_debug_mode("error")
    try:
        sampler.seeds = seeds
        sampler(images)
    finally:
        torch.cuda.set_sync_debug_mode("default")
