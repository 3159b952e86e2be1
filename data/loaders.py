"""Batches of a detection data set: the same however they are split over processes, resumed or read by workers."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .images import ImageError
from .steps import Batch, MicroBatch, StepSampler
from .workers import loader_settings

UNREADABLE_POLICIES = ("raise", "skip")


class SeededDataset(Dataset):
    """A data set that is read by micro-batches, each image under torch's random state of its own seed.

    Args:
        dataset: `read(index, size, strong)` gives `(image, target)`, and `dummy(size, strong)` the same without any
            object, for which nothing is read; `size` and `strong` are those of the `MicroBatch`.
        unreadable: what becomes of an image that cannot be read: "raise" its `ImageError`, or "skip" it.
        fill_empty: whether a micro-batch without any image becomes a dummy one of weight 0. Processes that train
            together need it: each must take part in every pass.

    Raises:
        ValueError: if the policy is none of these.
    """

    def __init__(self, dataset: Dataset, *, unreadable: str, fill_empty: bool) -> None:
        if unreadable not in UNREADABLE_POLICIES:
            raise ValueError(f"`unreadable` must be one of {', '.join(UNREADABLE_POLICIES)}, got {unreadable!r}")
        self.dataset = dataset
        self.unreadable = unreadable
        self.fill_empty = fill_empty

    def __len__(self) -> int:
        """Count the images."""
        return len(self.dataset)

    def __getitems__(self, plan: MicroBatch) -> Batch:
        """Read a micro-batch; torch's loaders call this with what their batch sampler gives."""
        batch = Batch([], [], plan.weight, plan.ends_step, [])
        for index, seed in plan.samples:
            try:
                image, target = _seeded(seed, self.dataset.read, index, plan.size, plan.strong)
            except ImageError as error:
                if self.unreadable == "raise":
                    raise
                batch.unreadable.append(str(error))
            else:
                batch.images.append(image)
                batch.targets.append(target)
        if batch.unreadable:
            batch = batch._replace(weight=plan.weight * len(batch.images) / len(plan.samples))
        if self.fill_empty and not batch.images:
            dummy = self.dummy_batch(plan.size, plan.strong)
            batch = batch._replace(images=dummy.images, targets=dummy.targets)
        return batch

    def dummy_batch(self, size: int | None = None, strong: bool = True) -> Batch:
        """Make a batch of one image without any object, which counts nothing and ends its step.

        It has a size that training images have, since it goes through the model like one.
        """
        image, target = _seeded(0, self.dataset.dummy, size, strong)
        return Batch([image], [target], 0.0, True, [])


def _seeded(seed: int, read: Callable[..., tuple[Tensor, dict]], *arguments: object) -> tuple[Tensor, dict]:
    """Return the image and target that a call gives under a random state of its own, with its seed."""
    with torch.random.fork_rng(devices=[]):
        # not `torch.manual_seed`: it would seed the GPUs too, and nothing would put their state back
        torch.default_generator.manual_seed(seed)
        image, target = read(*arguments)
    return image, target | {"seed": seed}


def train_loader(
    dataset: Dataset,
    *,
    batch_size: int,
    workers: int,
    seed: int,
    accumulate: int = 1,
    rank: int = 0,
    processes: int = 1,
    unreadable: str = "raise",
    pin_memory: bool = False,
    sizes: Sequence[int] = (),
    strong_epochs: int | None = None,
) -> DataLoader:
    """Load this process's share of shuffled steps of a `CocoDetection`, see `StepSampler`.

    Args:
        dataset: what to read; its `aspect_ratios` sort the images.
        batch_size: most images in a `Batch`.
        workers: processes that read, 0 to read in this one.
        seed: of the order and of each image's randomness.
        accumulate: batches of a full step in each process.
        rank: which process this is, from 0.
        processes: how many share each step.
        unreadable: "raise" the `ImageError` of an image that cannot be read, or "skip" it and say so in the batch. A
            batch without any image is a dummy one of weight 0.
        pin_memory: whether batches come in memory that a GPU copies from fast.
        sizes: see `StepSampler`.
        strong_epochs: see `StepSampler`.
    """
    sampler = StepSampler(
        dataset.aspect_ratios,
        batch_size,
        seed=seed,
        accumulate=accumulate,
        rank=rank,
        processes=processes,
        sizes=sizes,
        strong_epochs=strong_epochs,
    )
    return DataLoader(
        SeededDataset(dataset, unreadable=unreadable, fill_empty=True),
        batch_sampler=sampler,
        **loader_settings(workers, pin_memory),
    )


def eval_loader(
    dataset: Dataset,
    *,
    batch_size: int,
    workers: int,
    rank: int = 0,
    processes: int = 1,
    unreadable: str = "raise",
    pin_memory: bool = False,
) -> DataLoader:
    """Load images `rank, rank + processes, ...` in the order of the data set: each once over all processes.

    Args are those of `train_loader`. A `Batch` weighs its share of the data set and ends a step; a process may have no
    batch at all, and a batch no image where none of its images could be read.
    """
    mine = [(index, 0) for index in range(rank, len(dataset), processes)]
    batches = [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]
    return DataLoader(
        SeededDataset(dataset, unreadable=unreadable, fill_empty=False),
        batch_sampler=[MicroBatch(samples, len(samples) / len(dataset), True) for samples in batches],
        **loader_settings(workers, pin_memory),
    )
