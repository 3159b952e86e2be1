"""Weights of classes in the classification losses of detectors."""

from collections.abc import Sequence

import torch
from torch import nn


def set_class_weights(model: nn.Module, weights: Sequence[float]) -> None:
    """Multiply the classification loss of each sample by the weight of its class; samples of the background have 1.

    The losses are divided by the same numbers as without weights, so that a step does not depend on how it is split.

    Args:
        model: Detector. Its heads with a classification loss have a buffer `class_weights`, which the state dict
            does not contain; None: no weights.
        weights: Weight of each class, `num_classes` numbers.

    Raises:
        ValueError: If no head of the detector supports weights.
    """
    heads = [module for module in model.modules() if hasattr(module, "class_weights")]
    if not heads:
        raise ValueError("train.class_weights must be null: the losses of this detector have no weights of classes")
    like = next(model.parameters())
    for head in heads:
        head.class_weights = torch.tensor([1.0, *weights], dtype=like.dtype, device=like.device)
