"""Exponential moving average of weights."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class Ema:
    """A model whose weights, and statistics of norms, are a moving average of another's.

    After update n the average keeps `min(decay, (1 + n) / (10 + n))` of itself, so that it soon forgets the random
    start, as in PP-YOLO (https://arxiv.org/abs/2007.12099) and TensorFlow.

    Args:
        model: whose average is taken; as it is now.
        decay: share that the average keeps at last, below 1; 0.9998 averages over about 5,000 steps.

    Attributes:
        updates: how many there were.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._average = AveragedModel(model, multi_avg_fn=self._mix, use_buffers=True).requires_grad_(False)

    @property
    def model(self) -> nn.Module:
        """The average, as a model."""
        return self._average.module

    def update(self, model: nn.Module) -> None:
        """Take in the weights after one more step."""
        self.updates += 1
        self._average.update_parameters(model)

    def _mix(self, averages: list[Tensor], values: list[Tensor], _: Tensor) -> None:
        keep = min(self.decay, (1 + self.updates) / (10 + self.updates))
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, values, 1 - keep)
        else:  # counters of batch norms
            torch._foreach_copy_(averages, values)

    def state_dict(self) -> dict[str, Any]:
        """The average under the keys of the model, and how many updates it is of."""
        return {"model": self.model.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self.model.load_state_dict(state["model"])
        self.updates = state["updates"]
        self._average.n_averaged.fill_(state["updates"])
