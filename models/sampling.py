"""Random samples of anchors and proposals, each image's from a random stream of its own."""

from functools import cache

import torch
from torch import Tensor


class ImageSampler:
    """Draws the anchors or proposals that a part of the detector is trained on.

    It is called as torchvision's `BalancedPositiveNegativeSampler` and draws as it does: from each image at most
    `batch_size_per_image` places, at most `positive_fraction` of them positive, the rest negative. But what is drawn
    from an image with a seed depends on that seed alone, not on the images beside or before it, so that it stays the
    same however a batch is split. The device is never waited for.

    Args:
        batch_size_per_image: places drawn from an image that has enough of them.
        positive_fraction: bound on the share of positives.
        salt: sets apart the streams of samplers that get the same seeds.

    Attributes:
        seeds: one for each image of the next call; None draws from torch's global state. So does a sampler without.
        missing: how many fewer places than `batch_size_per_image` an image the last call drew, int64 `()`.
    """

    def __init__(self, batch_size_per_image: int, positive_fraction: float, *, salt: int) -> None:
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.salt = salt
        self.seeds: list[int | None] | None = None
        self.missing: Tensor | None = None

    def __call__(self, matched_idxs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Draw from each image.

        Args:
            matched_idxs: one `(N,)` for each image: positive from 1 on, negative at 0, ignored below.

        Returns:
            uint8 masks `(N,)` of the positives drawn from each image, and of the negatives.
        """
        seeds = self.seeds or [None] * len(matched_idxs)
        drawn = [self._draw(labels, seed) for labels, seed in zip(matched_idxs, seeds, strict=True)]
        positives, negatives = ([*masks] for masks in zip(*drawn, strict=True))
        self.missing = self.batch_size_per_image * len(matched_idxs) - torch.cat([*positives, *negatives]).sum()
        return positives, negatives

    def _draw(self, labels: Tensor, seed: int | None) -> tuple[Tensor, Tensor]:
        generator = None if seed is None else _generator(labels.device).manual_seed(seed ^ self.salt)
        order = torch.randperm(len(labels), generator=generator, device=labels.device)
        # The first of a shuffled row are a random sample; counting along it, unlike `torch.where`, needs no wait.
        shuffled = labels[order]
        positive, negative = shuffled >= 1, shuffled == 0
        positive &= positive.cumsum(0) <= int(self.batch_size_per_image * self.positive_fraction)
        negative &= negative.cumsum(0) <= self.batch_size_per_image - positive.sum()
        masks = torch.zeros(2, len(labels), dtype=torch.uint8, device=labels.device)
        masks[:, order] = torch.stack([positive, negative]).to(torch.uint8)
        return masks[0], masks[1]


@cache
def _generator(device: torch.device) -> torch.Generator:
    """Give the generator of a device, seeded anew for every image; outside the sampler, so that that can be copied."""
    return torch.Generator(device)
