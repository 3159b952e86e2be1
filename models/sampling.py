"""Random samples of anchors and proposals, each image's from a random stream of its own, and means over them."""

from functools import cache

import torch
from torch import Tensor


class ImageSampler:
    """Draws the anchors or proposals that a part of the detector is trained on.

    It draws as torchvision's `BalancedPositiveNegativeSampler` does: from each image at most `batch_size_per_image`
    places, at most `positive_fraction` of them positive, the rest negative. But what is drawn from an image with a seed
    depends on that seed alone, not on the images beside or before it, so that it stays the same however a batch is
    split. The device is never waited for, and nothing is kept from call to call.

    Args:
        batch_size_per_image: places drawn from an image that has enough of them.
        positive_fraction: bound on the share of positives.
        seed_offset: sets apart the streams of samplers that get the same seeds.
    """

    def __init__(self, batch_size_per_image: int, positive_fraction: float, *, seed_offset: int) -> None:
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.seed_offset = seed_offset

    def __call__(self, labels: list[Tensor], targets: list[dict]) -> list[Tensor]:
        """Draw from each image.

        Args:
            labels: one `(N,)` for each image: positive from 1 on, negative at 0, ignored below.
            targets: one for each image; without a "seed" its places are drawn from torch's global state.

        Returns:
            Boolean masks `(N,)` of the places drawn from each image.
        """
        return [self._draw(own, target.get("seed")) for own, target in zip(labels, targets, strict=True)]

    def mean_over_images(self, loss: Tensor, labels: list[Tensor]) -> Tensor:
        """Return the mean over images of a loss that is a mean over the places drawn from all of them together.

        It is divided by full samples of all images, so that it does not depend on which images share a batch.

        Args:
            loss: scalar; NaN if nothing was drawn, which becomes 0.
            labels: one `(N,)` for each image, whose places from 0 on were drawn.
        """
        full = self.batch_size_per_image * len(labels)
        missing = full - (torch.cat(labels) >= 0).sum()
        # not drawn / full: a GPU multiplies by the reciprocal, so that this would not be exactly 1 for full samples
        share = 1 - missing.to(loss.dtype) / full
        return torch.where(missing < full, loss * share, 0)

    def _draw(self, labels: Tensor, seed: int | None) -> Tensor:
        generator = None if seed is None else _generator(labels.device).manual_seed(seed ^ self.seed_offset)
        order = torch.randperm(len(labels), generator=generator, device=labels.device)
        # The first of a shuffled row are a random sample; counting along it, unlike `torch.where`, needs no wait.
        shuffled = labels[order]
        positive, negative = shuffled >= 1, shuffled == 0
        positive &= positive.cumsum(0) <= int(self.batch_size_per_image * self.positive_fraction)
        negative &= negative.cumsum(0) <= self.batch_size_per_image - positive.sum()
        drawn = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
        drawn[order] = positive | negative
        return drawn


def all_labelled(labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return masks of the positives and of the negatives of each image, as a sampler of torchvision that draws all."""
    return [own >= 1 for own in labels], [own == 0 for own in labels]


@cache
def _generator(device: torch.device) -> torch.Generator:
    """Give the generator of a device, seeded anew for every image; outside the sampler, so that that can be copied."""
    return torch.Generator(device)
