"""Read the config and weights of a run from its folder or a checkpoint."""

import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from models.checkpoint_form import TRAINED

from ..config import RunConfig, with_current_names, with_overrides
from ..runs import LAST, load_checkpoint


class Trained(NamedTuple):
    """Content of a checkpoint.

    Attributes:
        path: file of the checkpoint.
        config: config of the run, with overrides.
        state: whole content, see `Trainer.state_dict` and `Checkpoints`; its "config" has current names.
    """

    path: Path
    config: RunConfig
    state: dict[str, Any]

    @property
    def is_finished(self) -> bool:
        """Whether the run reached the end of its config, or stopped early, and was then evaluated."""
        state, settings = self.state, self.config.train
        done = state["epoch"] >= settings.epochs or state["step"] >= (settings.max_steps or math.inf)
        has_stopped_early = (
            settings.early_stopping_patience is not None
            and state["evals_without_improvement"] >= settings.early_stopping_patience
        )
        return state["last_eval_step"] == state["step"] and (done or has_stopped_early)


def load_trained(path: Path, overrides: Sequence[str] = (), *, needed: Collection[str] = TRAINED) -> Trained:
    """Read a checkpoint, or the last checkpoint of a run folder.

    Args:
        path: checkpoint file or run folder.
        overrides: `key=value` for the config of the run, as in `data.num_workers=0`.
        needed: entries that the checkpoint must have, see `models.checkpoint_form`.

    Raises:
        ValueError: if the checkpoint is missing or damaged, or an override is not valid.
    """
    file = path / LAST if path.is_dir() else path
    state = load_checkpoint(file, needed)
    state["config"] = with_current_names(state["config"], str(file), is_written=True)
    return Trained(file, with_overrides(state["config"], overrides, str(file)), state)
