"""Exponential moving average (EMA) of weights."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class Ema:
    """Exponential moving average of the weights and norm statistics of a model.

    The decay of update n is `min(decay, (1 + n) / (10 + n))`. The small decay at the start removes the random initial
    weights quickly, as in PP-YOLO (https://arxiv.org/abs/2007.12099) and TensorFlow.

    Args:
        model: model to average; its present weights are the initial average.
        decay: decay per update, below 1. A decay of 0.9998 averages over about 5,000 updates.

    Attributes:
        updates: number of updates.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._average = AveragedModel(model, multi_avg_fn=self._mix, use_buffers=True).requires_grad_(False)

    @property
    def model(self) -> nn.Module:
        """The model with averaged weights."""
        return self._average.module

    def update(self, model: nn.Module) -> None:
        """Update the average with the weights of a model."""
        self.updates += 1
        self._average.update_parameters(model)

    def _mix(self, averages: list[Tensor], values: list[Tensor], _: Tensor) -> None:
        keep = min(self.decay, (1 + self.updates) / (10 + self.updates))
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, values, 1 - keep)
        else:  # counters of batch norms
            torch._foreach_copy_(averages, values)

    def state_dict(self) -> dict[str, Any]:
        """Return the averaged state of the model and the number of updates."""
        return {"model": self.model.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a `state_dict()`."""
        self.model.load_state_dict(state["model"])
        self.updates = state["updates"]
        self._average.n_averaged.fill_(state["updates"])
