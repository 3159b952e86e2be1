"""Batches of a detection data set."""

import signal
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

Batch = tuple[list[Tensor], list[dict]]


class AspectRatioBatchSampler:
    """Draws shuffled batches of either wide or tall images, so that a batch is padded little.

    Every image comes once in an epoch. The order, and a seed for the augmentation of each image, depend on `seed` and
    the epoch alone, so that a run resumed in the middle of an epoch sees the same images in the same way.

    Yields lists of (index, seed of the image). The last batch of each group may be smaller.

    Args:
        aspect_ratios: width over height of each image.
        batch_size: images in a batch.
        seed: of the order and the augmentation.
    """

    def __init__(self, aspect_ratios: Sequence[float], batch_size: int, *, seed: int) -> None:
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {batch_size}")
        self.is_wide = [ratio >= 1 for ratio in aspect_ratios]
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self.start = 0

    def set_position(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch that the next iteration draws, and how many of its batches it skips."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        """Count the batches of a whole epoch."""
        wide = sum(self.is_wide)
        return sum(-(-count // self.batch_size) for count in (wide, len(self.is_wide) - wide))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield the batches of the chosen epoch from `start` on."""
        yield from self._batches()[self.start :]

    def _batches(self) -> list[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.is_wide), generator=generator).tolist()
        seeds = torch.randint(2**62, (len(self.is_wide),), generator=generator).tolist()
        batches: list[list[tuple[int, int]]] = []
        open_batch: dict[bool, list[tuple[int, int]]] = {}
        for index in order:
            batch = open_batch.setdefault(self.is_wide[index], [])
            batch.append((index, seeds[index]))
            if len(batch) == self.batch_size:
                batches.append(open_batch.pop(self.is_wide[index]))
        return batches + list(open_batch.values())


class SeededItems(Dataset):
    """A data set whose items are drawn as (index, seed), with torch's random state set from the seed meanwhile."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        """Count the images."""
        return len(self.dataset)

    def __getitem__(self, draw: tuple[int, int]) -> tuple[Tensor, dict]:
        """Read item `index` under `seed`."""
        index, seed = draw
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.dataset[index]


def train_loader(dataset: Dataset, *, batch_size: int, workers: int, seed: int, pin_memory: bool = False) -> DataLoader:
    """Load shuffled batches `(images, targets)` of a `CocoDetection`, drawn by an `AspectRatioBatchSampler`."""
    return DataLoader(
        SeededItems(dataset),
        batch_sampler=AspectRatioBatchSampler(dataset.aspect_ratios, batch_size, seed=seed),
        **_settings(workers, pin_memory),
    )


def eval_loader(dataset: Dataset, *, batch_size: int, workers: int, pin_memory: bool = False) -> DataLoader:
    """Load batches `(images, targets)` in the order of the data set, every image once."""
    return DataLoader(dataset, batch_size=batch_size, shuffle=False, **_settings(workers, pin_memory))


def _settings(workers: int, pin_memory: bool) -> dict:
    return {
        "num_workers": workers,
        "collate_fn": collate,
        "pin_memory": pin_memory,
        "persistent_workers": workers > 0,
        "worker_init_fn": _leave_stopping_to_the_parent,
        # else every pass draws a number from the global random state, and a resumed run would make one pass more
        "generator": torch.Generator(),
    }


def _leave_stopping_to_the_parent(worker: int) -> None:
    """Ignore the signals by which a scheduler asks every process of a job to stop: training still needs its batches."""
    for name in ("SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):  # Windows has no SIGUSR1
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def collate(samples: list[tuple[Tensor, dict]]) -> Batch:
    """Keep images of different sizes apart: `([image, ...], [target, ...])`."""
    images, targets = zip(*samples, strict=True)
    return list(images), list(targets)
