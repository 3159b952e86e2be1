"""The images of a training step, and how they are split over processes and passes."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .rare_classes import draw_counts, with_whole_sum

T = TypeVar("T")


class MicroBatch(NamedTuple):
    """The images that one process reads for one pass through the model.

    Attributes:
        samples: (index, seed) of each image; may be empty.
        weight: Fraction of the step's images over all processes; the weights of a step sum to 1.
        ends_step: Whether it is the last micro-batch of the step in this process.
        size: Size to which all images of the step are resized, in all processes; None draws a size for each image.
        strong: Whether the strong augmentations are on in this epoch.
    """

    samples: list[tuple[int, int]]
    weight: float
    ends_step: bool
    size: int | None = None
    strong: bool = True


class Batch(NamedTuple):
    """A batch returned by a loader.

    Attributes:
        images: Images `(channels, H, W)`, uint8 or float32, of different sizes.
        targets: Target of each image from the data set, with its `seed` added.
        weight: Weight of the `MicroBatch`, without the images that could not be read.
        ends_step: As in `MicroBatch`.
        unreadable: Error messages of the images that could not be read.
    """

    images: list[Tensor]
    targets: list[dict]
    weight: float
    ends_step: bool
    unreadable: list[str]


class StepSampler:
    """Batch sampler that shuffles the images into steps and splits each step over processes and micro-batches.

    A step contains the images of one optimizer update over all processes: `batch_size * grad_accum_steps * processes`
    images, and fewer in the last step of a group. Each image is used once per epoch, or as often as its repeat factor.
    Wide and tall images form separate steps to reduce padding, unless all images of a step are resized to one size.

    A repeat factor of 2.3 means 2 or 3 uses in an epoch, and 2.3 on average. All epochs have the same number of steps:
    the factors of a group are scaled up to a whole number of images in total, which adds less than one image.

    The images of a step, their order, size and seeds depend only on `seed`, the epoch and the number of images in a
    step. They depend neither on how a step is split nor on where a run was resumed.

    Each process gets an equal, contiguous part of a step, in micro-batches of at most `batch_size` images. All
    processes have the same number of micro-batches, because each pass synchronises them; the last ones may be empty.

    Args:
        aspect_ratios: Width over height of each image.
        batch_size: Maximum number of images in a micro-batch.
        seed: Seed of the order and of the images' seeds.
        grad_accum_steps: Micro-batches of a full step in each process.
        rank: Rank of this process, from 0.
        processes: Number of processes that share each step.
        sizes: Sizes of which one is drawn for all images of a step. If empty, each image draws its size.
        strong_epochs: Number of epochs from the start with strong augmentations; None means all.
        repeats: Repeat factor of each image, at least 1; None uses each image once.

    Raises:
        ValueError: If `batch_size` or `grad_accum_steps` is below 1.
    """

    def __init__(
        self,
        aspect_ratios: Sequence[float],
        batch_size: int,
        *,
        seed: int,
        grad_accum_steps: int = 1,
        rank: int = 0,
        processes: int = 1,
        sizes: Sequence[int] = (),
        strong_epochs: int | None = None,
        repeats: Sequence[float] | None = None,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("grad_accum_steps", grad_accum_steps)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}")
        self.is_wide = [not sizes and ratio >= 1 for ratio in aspect_ratios]
        self.batch_size = batch_size
        self.step_size = batch_size * grad_accum_steps * processes
        self.seed = seed
        self.rank = rank
        self.processes = processes
        self.sizes = sizes
        self.strong_epochs = strong_epochs
        self.repeats = None if repeats is None else np.array(repeats, dtype=np.float64)
        for group in self._groups() if repeats is not None else ():
            self.repeats[group] = with_whole_sum(self.repeats[group])
        self.epoch = 0
        self.start = 0

    def set_position(self, epoch: int, start: int = 0) -> None:
        """Set the epoch of the next iteration, and the number of its steps to skip."""
        self.epoch, self.start = epoch, start

    @property
    def steps(self) -> int:
        """Return the number of steps in a whole epoch."""
        return len(self._step_sizes())

    @property
    def images(self) -> int:
        """Return the number of images in a whole epoch, repeated ones counted each time."""
        return sum(self._step_sizes())

    def __len__(self) -> int:
        """Return the number of micro-batches of this process in a whole epoch."""
        return sum(map(self._micro_batches, self._step_sizes()))

    def __iter__(self) -> Iterator[MicroBatch]:
        """Yield this process's micro-batches of the current epoch, from step `start` on."""
        strong = self.strong_epochs is None or self.epoch < self.strong_epochs
        for step, size in self._steps()[self.start :]:
            part = _split_evenly(step, self.processes)[self.rank]
            *others, last = _split_evenly(part, self._micro_batches(len(step)))
            for samples in others:
                yield MicroBatch(samples, len(samples) / len(step), False, size, strong)
            yield MicroBatch(last, len(last) / len(step), True, size, strong)

    def _step_sizes(self) -> list[int]:
        sizes = []
        for group in self._groups():
            count = len(group) if self.repeats is None else round(self.repeats[group].sum())
            full, rest = divmod(count, self.step_size)
            sizes += [self.step_size] * full + [rest] * (rest > 0)
        return sizes

    def _groups(self) -> list[NDArray[np.int64]]:
        """Return the indices of the wide and of the tall images."""
        wide = np.array(self.is_wide, dtype=bool)
        return [np.flatnonzero(wide), np.flatnonzero(~wide)]

    def _draw_images(self, generator: torch.Generator) -> Sequence[int]:
        """Return the images of the epoch in ascending order, each as often as the epoch uses it."""
        if self.repeats is None:
            return range(len(self.is_wide))
        counts = np.zeros(len(self.is_wide), dtype=np.int64)
        for group in self._groups():
            counts[group] = draw_counts(self.repeats[group], generator)
        return np.repeat(np.arange(len(counts)), counts).tolist()

    def _micro_batches(self, images: int) -> int:
        largest_part = -(-images // self.processes)
        return -(-largest_part // self.batch_size)

    def _steps(self) -> list[tuple[list[tuple[int, int]], int | None]]:
        """Return the (index, seed) pairs and the image size of each step of the epoch."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        images = self._draw_images(generator)
        order = torch.randperm(len(images), generator=generator).tolist()
        seeds = torch.randint(2**62, (len(images),), generator=generator).tolist()
        steps: list[list[tuple[int, int]]] = []
        open_step: dict[bool, list[tuple[int, int]]] = {}
        for place in order:
            index = images[place]
            step = open_step.setdefault(self.is_wide[index], [])
            step.append((index, seeds[place]))
            if len(step) == self.step_size:
                steps.append(open_step.pop(self.is_wide[index]))
        steps += open_step.values()
        if not self.sizes:
            return [(step, None) for step in steps]
        chosen = torch.randint(len(self.sizes), (len(steps),), generator=generator).tolist()
        return [(step, self.sizes[choice]) for step, choice in zip(steps, chosen, strict=True)]


def _split_evenly(items: list[T], count: int) -> list[list[T]]:
    """Split a list into `count` contiguous parts whose lengths differ by at most one, the longer ones first."""
    length, longer = divmod(len(items), count)
    ends = [piece * length + min(piece, longer) for piece in range(count + 1)]
    return [items[start:end] for start, end in itertools.pairwise(ends)]
