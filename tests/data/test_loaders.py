"""Batches: every image once, wide and tall apart, and the same after a resume."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset

import data
from data import AspectRatioBatchSampler, CocoDetection, eval_loader, eval_transform, load_annotations, train_transform

RATIOS = st.lists(st.sampled_from([0.5, 0.99, 1.0, 1.8]), max_size=40)
SIZES = st.integers(1, 7)


class Numbers(Dataset):
    """Items that tell their index and a random number; their aspect ratios change from image to image."""

    def __init__(self, count: int) -> None:
        self.aspect_ratios = [0.7 if index % 3 else 1.5 for index in range(count)]

    def __len__(self) -> int:
        return len(self.aspect_ratios)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict]:
        return torch.rand(3), {"image_id": index}


def indices(sampler: AspectRatioBatchSampler) -> list[list[int]]:
    return [[index for index, _ in batch] for batch in sampler]


def drawn(loader) -> list[list[tuple[int, list[float]]]]:
    """What a pass gives: the id and the random numbers of each image, batch by batch."""
    return [[(target["image_id"], image.tolist()) for image, target in zip(*batch, strict=True)] for batch in loader]


def train_loader(dataset: Dataset, *, workers: int = 0, batch_size: int = 3, seed: int = 5):
    return data.train_loader(dataset, batch_size=batch_size, workers=workers, seed=seed)


@given(RATIOS, SIZES, st.integers(0, 3), st.integers(0, 3))
def test_every_image_comes_once_in_batches_of_one_kind(ratios, size, seed, epoch):
    sampler = AspectRatioBatchSampler(ratios, size, seed=seed)
    sampler.set_position(epoch)
    batches = indices(sampler)
    assert sorted(index for batch in batches for index in batch) == list(range(len(ratios)))
    assert all(len({ratios[index] >= 1 for index in batch}) == 1 for batch in batches)
    assert len(batches) == len(sampler)
    assert all(1 <= len(batch) <= size for batch in batches)
    assert sum(len(batch) < size for batch in batches) <= 2


@given(RATIOS, SIZES, st.integers(0, 3), st.integers(0, 45))
def test_a_later_start_gives_the_tail_of_the_epoch(ratios, size, epoch, start):
    sampler = AspectRatioBatchSampler(ratios, size, seed=1)
    sampler.set_position(epoch)
    whole = list(sampler)
    sampler.set_position(epoch, start)
    assert list(sampler) == whole[start:]
    assert len(sampler) == len(whole)


def test_order_depends_on_seed_and_epoch_alone():
    def order(seed: int, epoch: int) -> list:
        sampler = AspectRatioBatchSampler([1.5, 0.5] * 20, 4, seed=seed)
        sampler.set_position(epoch)
        return list(sampler)

    assert order(0, 0) == order(0, 0)
    orders = [order(seed, epoch) for seed in range(3) for epoch in range(3)]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])
    # not only the seeds of the images, also their order
    assert len({tuple(index for batch in batches for index, _ in batch) for batches in orders}) == len(orders)


def test_images_of_an_epoch_have_seeds_of_their_own():
    seeds = [seed for batch in AspectRatioBatchSampler([1.0] * 50, 4, seed=0) for _, seed in batch]
    assert len({*seeds}) == 50


def test_shuffled():
    assert indices(AspectRatioBatchSampler([1.0] * 50, 50, seed=0)) != [list(range(50))]


def test_batch_size_below_one_is_refused():
    with pytest.raises(ValueError, match="`batch_size` must be at least 1, got 0"):
        AspectRatioBatchSampler([1.0], 0, seed=0)


def test_workers_do_not_change_what_is_drawn():
    passes = {}
    for workers in (0, 2):
        loader = train_loader(Numbers(14), workers=workers)
        for epoch, start in ((0, 0), (1, 0), (1, 2)):
            loader.batch_sampler.set_position(epoch, start)
            passes[workers, epoch, start] = drawn(loader)
    for epoch, start in ((0, 0), (1, 0), (1, 2)):
        assert passes[0, epoch, start] == passes[2, epoch, start]
    assert passes[0, 1, 2] == passes[0, 1, 0][2:], "the augmentation must not depend on where a run resumed"
    assert passes[0, 0, 0] != passes[0, 1, 0]


def test_augmentation_changes_from_epoch_to_epoch():
    loader = train_loader(Numbers(14))
    epochs = []
    for epoch in (0, 1):
        loader.batch_sampler.set_position(epoch)
        epochs.append({image_id: numbers for batch in drawn(loader) for image_id, numbers in batch})
    assert all(epochs[0][image_id] != epochs[1][image_id] for image_id in range(14))


@pytest.mark.parametrize("workers", [0, 2])
def test_global_random_state_is_untouched(workers):
    loader = train_loader(Numbers(7), workers=workers)
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    for _ in range(2):
        list(loader)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_drawn_images_do_not_depend_on_the_global_random_state():
    passes = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        passes.append(drawn(train_loader(Numbers(7))))
    assert passes[0] == passes[1]


def test_pictures_and_their_flips_on_files(shapes):
    annotations = load_annotations(shapes / "train", shapes / "annotations" / "train.json")
    dataset = CocoDetection(annotations, train_transform())
    plain = {target["image_id"]: image for image, target in CocoDetection(annotations, eval_transform())}
    flipped = 0
    passes = [list(train_loader(dataset, workers=workers, batch_size=5)) for workers in (0, 2)]
    assert [len(images) for images, _ in passes[0]] == [5, 5, 2]
    for (images, targets), (same_images, same_targets) in zip(*passes, strict=True):
        for image, target, same, same_target in zip(images, targets, same_images, same_targets, strict=True):
            assert torch.equal(image, same)
            assert torch.equal(target["boxes"], same_target["boxes"])
            flipped += torch.equal(image, plain[target["image_id"]].flip(2))
    assert 1 <= flipped <= 11


@pytest.mark.parametrize("workers", [0, 2])
def test_eval_loader_keeps_the_order(shapes, workers):
    annotations = load_annotations(shapes / "val", shapes / "annotations" / "val.json")
    loader = eval_loader(CocoDetection(annotations, eval_transform()), batch_size=4, workers=workers)
    state = torch.random.get_rng_state()
    batches = list(loader)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [[target["image_id"] for target in targets] for _, targets in batches] == [[1, 2, 3, 4], [5, 6]]
    assert all(isinstance(images, list) and images[0].shape == (3, 80, 96) for images, _ in batches)
