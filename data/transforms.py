"""What happens to a picture and its boxes before the model, by torchvision.transforms.v2.

Scaling to the training size and normalising are the detector's own work (torchvision's contract), so that boxes given
and returned are pixels of the picture as it comes from here.
"""

from torchvision.transforms import v2


def train_transform(*, flip: float = 0.5) -> v2.Transform:
    """Random horizontal flip with probability `flip`, to a uint8 tensor."""
    return v2.Compose([v2.ToImage(), v2.RandomHorizontalFlip(flip), v2.ToPureTensor()])


def eval_transform() -> v2.Transform:
    """To a uint8 tensor, nothing else."""
    return v2.Compose([v2.ToImage(), v2.ToPureTensor()])
