"""What a run left: its config and weights, from the run's folder or a checkpoint."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..config import RunConfig, with_current_names, with_overrides
from ..runs import LAST, load_checkpoint


class Trained(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        path: its file.
        config: of the run.
        state: everything, see `Trainer.state_dict` and `Checkpoints`.
    """

    path: Path
    config: RunConfig
    state: dict[str, Any]

    @property
    def is_finished(self) -> bool:
        """Whether the run did all that its config asks for, and was judged."""
        state, settings = self.state, self.config.train
        done = state["epoch"] >= settings.epochs or state["step"] >= (settings.max_steps or math.inf)
        has_stopped_early = (
            settings.early_stopping_patience is not None
            and state["evals_without_improvement"] >= settings.early_stopping_patience
        )
        return state["last_eval_step"] == state["step"] and (done or has_stopped_early)


def load_trained(path: Path, overrides: Sequence[str] = ()) -> Trained:
    """Read a checkpoint, or the last one of a run's folder.

    Args:
        path: a file, or a folder.
        overrides: `key=value` for the config of the run, as in `data.num_workers=0`.

    Raises:
        ValueError: if there is none, or it is damaged, or an override is wrong.
    """
    file = path / LAST if path.is_dir() else path
    state = load_checkpoint(file)
    state["config"] = with_current_names(state["config"], str(file), is_silent=True)
    return Trained(file, with_overrides(state["config"], overrides, str(file)), state)
