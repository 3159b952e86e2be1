"""The sampler draws as torchvision's, separately for each image, and does not synchronise the device."""

import copy

import pytest
import torch
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

from models.sampling import ImageSampler

PER_IMAGE, FRACTION = 10, 0.3


def make(seed_offset: int = 7) -> ImageSampler:
    return ImageSampler(PER_IMAGE, FRACTION, seed_offset=seed_offset)


def labels(positive: int, negative: int, ignored: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    """Return labels in a mixed order; labels of positives are classes."""
    row = torch.tensor([1 + index % 3 for index in range(positive)] + [0] * negative + [-1] * ignored, dtype=dtype)
    return row[torch.randperm(len(row), generator=torch.Generator().manual_seed(positive + negative))]


# enough of both; few positives; few negatives; few of both; only one kind; none
COUNTS = [(8, 40, 5), (2, 40, 5), (8, 3, 5), (1, 4, 9), (0, 30, 0), (12, 0, 0), (0, 2, 3), (0, 0, 4), (0, 0, 0)]


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
@pytest.mark.parametrize("seeded", [True, False])
def test_numbers_and_kinds_match_torchvision(dtype, seeded):
    images = [labels(*counts, dtype) for counts in COUNTS]
    sampler = make()
    ours = sampler(images, [{"seed": index} if seeded else {} for index in range(len(images))])
    theirs = BalancedPositiveNegativeSampler(PER_IMAGE, FRACTION)(images)
    for row, mask, positives, negatives in zip(images, ours, *theirs, strict=True):
        assert (mask.dtype, mask.shape) == (torch.bool, row.shape)
        assert (row[mask] >= 1).sum() == positives.sum()
        assert (row[mask] == 0).sum() == negatives.sum()
        assert (row[mask] >= 0).all()


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_a_mean_over_images_is_over_full_samples(dtype):
    """By a loop over the labelled candidates, each with a different loss."""
    images = [labels(*counts, dtype)[: PER_IMAGE + 3] for counts in ((2, 5, 9), (0, 0, 4), (3, 7, 0))]
    places = [float(1 + index) for index, label in enumerate(torch.cat(images).tolist()) if label >= 0]
    loss = torch.tensor(sum(places) / len(places), dtype=torch.float64)
    found = make().mean_over_images(loss, images)
    assert found.item() == pytest.approx(sum(places) / (PER_IMAGE * len(images)), rel=1e-14)
    nothing = torch.tensor(float("nan"), dtype=torch.float64)
    assert make().mean_over_images(nothing, [labels(0, 0, 4, dtype)]).item() == 0
    full = [labels(3, 7, 2, dtype)] * 3
    assert make().mean_over_images(loss, full) == loss


@pytest.mark.parametrize("seeded", [True, False])
def test_every_candidate_is_drawn_equally_often(seeded):
    """3 of 8 positives and 7 of 20 negatives: within 4.5 standard deviations of these fractions."""
    row, trials = labels(8, 20, 3), 3000
    torch.manual_seed(0)
    masks = make()([row] * trials, [{"seed": trial} if seeded else {} for trial in range(trials)])
    shares = torch.stack(masks).double().mean(0)
    for kind, expected in ((row >= 1, 3 / 8), (row == 0, 7 / 20)):
        deviation = (expected * (1 - expected) / trials) ** 0.5
        assert (shares[kind] - expected).abs().max() < 4.5 * deviation
    assert not shares[row < 0].any()


def draw(sampler: ImageSampler, images: list[torch.Tensor], seeds: list[int | None]) -> list[list[int]]:
    targets = [{} if seed is None else {"seed": seed} for seed in seeds]
    return [mask.nonzero().flatten().tolist() for mask in sampler(images, targets)]


def test_samples_depend_only_on_the_image():
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


def test_a_seed_does_not_change_the_global_state():
    before = torch.get_rng_state()
    draw(make(), [labels(8, 40, 5)], [3])
    assert torch.equal(torch.get_rng_state(), before)


def test_without_seeds_it_follows_the_global_state():
    images = [labels(8, 40, 5)] * 2
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(draw(make(), images, [None, None]))
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


def test_sampling_does_not_synchronise_the_device():
    """Meta tensors raise for operations that wait for a GPU, such as `.item()` and torchvision's `torch.where`."""
    with FakeTensorMode():
        images = [torch.zeros(50), torch.zeros(60)]
        drawn = make()(images, [{}, {}])
        assert [len(mask) for mask in drawn] == [50, 60]
        make().mean_over_images(torch.zeros(()), images)
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
        sampler(images, [{"seed": seed} for seed in seeds])
    finally:
        torch.cuda.set_sync_debug_mode("default")
