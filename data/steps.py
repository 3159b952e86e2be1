"""What a step learns from, and how it is split over processes and passes."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class MicroBatch(NamedTuple):
    """What one process reads for one pass through the model.

    Attributes:
        samples: (index, seed of the image) of each image; may be empty.
        weight: share of the step's images, over all processes; the weights of a step add up to 1.
        ends_step: whether it is the last of the step in this process.
        size: to which the images of the step are resized, in all processes; None: each image has a size of its own.
        strong: whether the strong augmentations are on in this epoch.
    """

    samples: list[tuple[int, int]]
    weight: float
    ends_step: bool
    size: int | None = None
    strong: bool = True


class Batch(NamedTuple):
    """What a loader gives.

    Attributes:
        images: each `(3, H, W)` uint8, of different sizes.
        targets: of each image, as the data set gives it, and its `seed`.
        weight: as of the `MicroBatch`, without the images that could not be read.
        ends_step: as of the `MicroBatch`.
        unreadable: messages of the images that could not be read.
    """

    images: list[Tensor]
    targets: list[dict]
    weight: float
    ends_step: bool
    unreadable: list[str]


class StepSampler:
    """Draws shuffled steps of either wide or tall images, so that a batch is padded little, and splits them.

    Where all images of a step are resized to one size, wide and tall images share steps.

    A step is what one update of the weights learns from, over all processes: `batch_size * accumulate * processes`
    images, fewer in the last step of each group. Every image comes once in an epoch. Which images a step has, in which
    order, which size it has, and a seed for the randomness of each image, depend on `seed`, the epoch and the number of
    images in a step alone: not on the split of a step, nor on where a run was resumed.

    Each process gets an equal, contiguous part of a step, in micro-batches of at most `batch_size` images. All
    processes have equally many of them, since they wait for each other in each; the last ones may be empty.

    Args:
        aspect_ratios: width over height of each image.
        batch_size: most images in a micro-batch.
        seed: of the order and the images' seeds.
        accumulate: micro-batches of a full step in each process.
        rank: which process this is, from 0.
        processes: how many share each step.
        sizes: one is drawn for all images of each step; empty: each image has a size of its own.
        strong_epochs: epochs in which the strong augmentations are on, counted from the start; None: all.

    Raises:
        ValueError: if `batch_size` or `accumulate` is below 1.
    """

    def __init__(
        self,
        aspect_ratios: Sequence[float],
        batch_size: int,
        *,
        seed: int,
        accumulate: int = 1,
        rank: int = 0,
        processes: int = 1,
        sizes: Sequence[int] = (),
        strong_epochs: int | None = None,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("accumulate", accumulate)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}")
        self.is_wide = [not sizes and ratio >= 1 for ratio in aspect_ratios]
        self.batch_size = batch_size
        self.step_size = batch_size * accumulate * processes
        self.seed = seed
        self.rank = rank
        self.processes = processes
        self.sizes = sizes
        self.strong_epochs = strong_epochs
        self.epoch = 0
        self.start = 0

    def set_position(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch that the next iteration draws, and how many of its steps it skips."""
        self.epoch, self.start = epoch, start

    @property
    def steps(self) -> int:
        """Count the steps of a whole epoch."""
        return len(self._step_sizes())

    def __len__(self) -> int:
        """Count the micro-batches of a whole epoch in this process."""
        return sum(map(self._micro_batches, self._step_sizes()))

    def __iter__(self) -> Iterator[MicroBatch]:
        """Yield this process's micro-batches of the chosen epoch, from step `start` on."""
        strong = self.strong_epochs is None or self.epoch < self.strong_epochs
        for step, size in self._steps()[self.start :]:
            part = _split_evenly(step, self.processes)[self.rank]
            *others, last = _split_evenly(part, self._micro_batches(len(step)))
            for samples in others:
                yield MicroBatch(samples, len(samples) / len(step), False, size, strong)
            yield MicroBatch(last, len(last) / len(step), True, size, strong)

    def _step_sizes(self) -> list[int]:
        wide = sum(self.is_wide)
        sizes = []
        for count in (wide, len(self.is_wide) - wide):
            full, rest = divmod(count, self.step_size)
            sizes += [self.step_size] * full + [rest] * (rest > 0)
        return sizes

    def _micro_batches(self, images: int) -> int:
        largest_part = -(-images // self.processes)
        return -(-largest_part // self.batch_size)

    def _steps(self) -> list[tuple[list[tuple[int, int]], int | None]]:
        """Return the (index, seed) of the images of each step of the epoch, and their size."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.is_wide), generator=generator).tolist()
        seeds = torch.randint(2**62, (len(self.is_wide),), generator=generator).tolist()
        steps: list[list[tuple[int, int]]] = []
        open_step: dict[bool, list[tuple[int, int]]] = {}
        for index in order:
            step = open_step.setdefault(self.is_wide[index], [])
            step.append((index, seeds[index]))
            if len(step) == self.step_size:
                steps.append(open_step.pop(self.is_wide[index]))
        steps += open_step.values()
        if not self.sizes:
            return [(step, None) for step in steps]
        chosen = torch.randint(len(self.sizes), (len(steps),), generator=generator).tolist()
        return [(step, self.sizes[choice]) for step, choice in zip(steps, chosen, strict=True)]


def _split_evenly(items: list[T], count: int) -> list[list[T]]:
    """Cut a list into `count` contiguous pieces whose lengths differ by one at most, the longer ones first."""
    length, longer = divmod(len(items), count)
    ends = [piece * length + min(piece, longer) for piece in range(count + 1)]
    return [items[start:end] for start, end in itertools.pairwise(ends)]
