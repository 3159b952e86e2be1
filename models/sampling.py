"""Random sampling of anchors and proposals with a separate random stream per image, and means over the samples."""

from functools import cache

import torch
from torch import Tensor


class ImageSampler:
    """Sampler of the anchors or proposals on which a part of the detector is trained.

    As torchvision's `BalancedPositiveNegativeSampler`, it draws at most `batch_size_per_image` candidates from each
    image, at most `positive_fraction` of them positive and the rest negative. The samples of an image with a seed
    depend only on this seed, not on other images, so they do not change if a batch is split. The sampler does not
    synchronise the device and has no state.

    Args:
        batch_size_per_image: Number of candidates drawn from an image that has enough of them.
        positive_fraction: Maximum fraction of positives.
        seed_offset: Number that separates the random streams of samplers with the same seeds.
    """

    def __init__(self, batch_size_per_image: int, positive_fraction: float, *, seed_offset: int) -> None:
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.seed_offset = seed_offset

    def __call__(self, labels: list[Tensor], targets: list[dict]) -> list[Tensor]:
        """Draw samples from each image.

        Args:
            labels: Labels of each image's candidates, `(N,)`: positive from 1 on, negative 0, ignored below 0.
            targets: Target of each image. Without a "seed" the samples are drawn from PyTorch's global random state.

        Returns:
            Boolean masks `(N,)` of the candidates drawn from each image.
        """
        return [self._draw(own, target.get("seed")) for own, target in zip(labels, targets, strict=True)]

    def mean_over_images(self, loss: Tensor, labels: list[Tensor]) -> Tensor:
        """Return the mean over images of a loss that is a mean over the samples of the whole batch.

        The result is divided by the requested number of samples of all images, so that it does not depend on which
        images share a batch.

        Args:
            loss: Scalar loss; NaN without any sample, which becomes 0.
            labels: Labels of each image's candidates, `(N,)`; candidates with labels from 0 on were drawn.
        """
        full = self.batch_size_per_image * len(labels)
        missing = full - (torch.cat(labels) >= 0).sum()
        # not drawn / full: a GPU multiplies by the reciprocal, so the quotient of equal numbers is not exactly 1
        fraction = 1 - missing.to(loss.dtype) / full
        return torch.where(missing < full, loss * fraction, 0)

    def _draw(self, labels: Tensor, seed: int | None) -> Tensor:
        generator = None if seed is None else _generator(labels.device).manual_seed(seed ^ self.seed_offset)
        order = torch.randperm(len(labels), generator=generator, device=labels.device)
        # The first elements in shuffled order are a random sample; unlike `torch.where`, `cumsum` does not synchronise.
        shuffled = labels[order]
        positive, negative = shuffled >= 1, shuffled == 0
        positive &= positive.cumsum(0) <= int(self.batch_size_per_image * self.positive_fraction)
        negative &= negative.cumsum(0) <= self.batch_size_per_image - positive.sum()
        drawn = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
        drawn[order] = positive | negative
        return drawn


@cache
def _generator(device: torch.device) -> torch.Generator:
    """Return the generator of a device, seeded for every image; a global, because samplers must be copyable."""
    return torch.Generator(device)
