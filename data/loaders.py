"""Data loaders whose batches do not depend on the number of processes and workers, nor on resumption."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .image_files import ImageError
from .steps import Batch, MicroBatch, StepSampler
from .workers import loader_settings

UNREADABLE_POLICIES = ("raise", "skip")


class SeededDataset(Dataset):
    """A data set that is read by micro-batches, each image with torch's random state set by the image's seed.

    Args:
        dataset: Data set with the methods `read(index, size, strong)`, which returns `(image, target)`, and
            `dummy(size, strong)`, which returns an image without objects and reads no file. `size` and `strong` are
            the attributes of the `MicroBatch`.
        on_unreadable_image: "raise" the `ImageError` of an image that cannot be read, or "skip" the image.
        fill_empty: Whether a micro-batch without any image is replaced by a dummy of weight 0. Distributed training
            needs it, because every process must take part in every pass.

    Raises:
        ValueError: If the policy is unknown.
    """

    def __init__(self, dataset: Dataset, *, on_unreadable_image: str, fill_empty: bool) -> None:
        if on_unreadable_image not in UNREADABLE_POLICIES:
            raise ValueError(
                f"`on_unreadable_image` must be one of {', '.join(UNREADABLE_POLICIES)}, got {on_unreadable_image!r}"
            )
        self.dataset = dataset
        self.on_unreadable_image = on_unreadable_image
        self.fill_empty = fill_empty

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.dataset)

    def __getitems__(self, plan: MicroBatch) -> Batch:
        """Read a micro-batch; PyTorch's loaders call this method with each item of their batch sampler."""
        batch = Batch([], [], plan.weight, plan.ends_step, [])
        for index, seed in plan.samples:
            try:
                image, target = _seeded(seed, self.dataset.read, index, plan.size, plan.strong)
            except ImageError as error:
                if self.on_unreadable_image == "raise":
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
        """Return a batch of weight 0 with one image without objects, which ends its step.

        The image has the size of training images, because it also passes through the model.
        """
        image, target = _seeded(0, self.dataset.dummy, size, strong)
        return Batch([image], [target], 0.0, True, [])


def _seeded(seed: int, read: Callable[..., tuple[Tensor, dict]], *arguments: object) -> tuple[Tensor, dict]:
    """Call `read` in a separate random state with a seed; return its image and target with the seed added."""
    with torch.random.fork_rng(devices=[]):
        # not `torch.manual_seed`, which would also seed the GPUs, whose state is not restored here
        torch.default_generator.manual_seed(seed)
        image, target = read(*arguments)
    return image, target | {"seed": seed}


def train_loader(
    dataset: Dataset,
    *,
    batch_size: int,
    workers: int,
    seed: int,
    grad_accum_steps: int = 1,
    rank: int = 0,
    processes: int = 1,
    on_unreadable_image: str = "raise",
    pin_memory: bool = False,
    sizes: Sequence[int] = (),
    strong_epochs: int | None = None,
    repeats: Sequence[float] | None = None,
) -> DataLoader:
    """Return a loader of this process's part of the shuffled steps of a `CocoDetection`, see `StepSampler`.

    Args:
        dataset: Data set; its `aspect_ratios` separate wide and tall images.
        batch_size: Maximum number of images in a `Batch`.
        workers: Number of worker processes; 0 reads in this process.
        seed: Seed of the order and of each image's randomness.
        grad_accum_steps: Batches of a full step in each process.
        rank: Rank of this process, from 0.
        processes: Number of processes that share each step.
        on_unreadable_image: "raise" the `ImageError` of an image that cannot be read, or "skip" it and add the message
            to `Batch.unreadable`. A batch without any image is replaced by a dummy of weight 0.
        pin_memory: Whether batches are in pinned memory.
        sizes: See `StepSampler`.
        strong_epochs: See `StepSampler`.
        repeats: See `StepSampler`.
    """
    sampler = StepSampler(
        dataset.aspect_ratios,
        batch_size,
        seed=seed,
        grad_accum_steps=grad_accum_steps,
        rank=rank,
        processes=processes,
        sizes=sizes,
        strong_epochs=strong_epochs,
        repeats=repeats,
    )
    return DataLoader(
        SeededDataset(dataset, on_unreadable_image=on_unreadable_image, fill_empty=True),
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
    on_unreadable_image: str = "raise",
    pin_memory: bool = False,
) -> DataLoader:
    """Return a loader of images `rank, rank + processes, ...` in the order of the data set.

    All processes together read each image once. The arguments are those of `train_loader`. The weight of a `Batch` is
    its fraction of the data set, and each batch ends a step. A process may have no batch, and a batch may have no image
    if none could be read.
    """
    mine = [(index, 0) for index in range(rank, len(dataset), processes)]
    batches = [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]
    return DataLoader(
        SeededDataset(dataset, on_unreadable_image=on_unreadable_image, fill_empty=False),
        batch_sampler=[MicroBatch(samples, len(samples) / len(dataset), True) for samples in batches],
        **loader_settings(workers, pin_memory),
    )
