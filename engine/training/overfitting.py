"""Training and validation loss that part: a sign of overfitting."""

from typing import NamedTuple

# Evaluations in a row in which the training loss falls and the validation loss rises, before a note.
PATIENCE = 3


class LossTrend(NamedTuple):
    """Losses of the last evaluation, and for how many evaluations they have parted; part of the state of a run.

    Attributes:
        train: mean training loss between the last two evaluations; None before the first.
        val: validation loss of the last evaluation; None before the first.
        parting: number of evaluations in a row in which the training loss fell and the validation loss rose.
        lowest: validation loss before it rose.
    """

    train: float | None = None
    val: float | None = None
    parting: int = 0
    lowest: float | None = None

    def after(self, train: float, val: float) -> "LossTrend":
        """Return the trend after one more evaluation."""
        if self.val is None or not (train < self.train and val > self.val):
            return LossTrend(train, val)
        return LossTrend(train, val, self.parting + 1, self.lowest if self.parting else self.val)

    @property
    def note(self) -> str | None:
        """The note of the evaluation in which the losses have parted for long enough; None in all others."""
        if self.parting != PATIENCE:
            return None
        return (
            f"validation loss rose in {PATIENCE} evaluations in a row, from {self.lowest:.3f} to {self.val:.3f}, while "
            f"training loss fell to {self.train:.3f}: the detector begins to overfit. If AP does not improve either, "
            "use more augmentation (data.augment) or more images, or stop earlier (train.early_stopping_patience). "
            "best.pt keeps the weights of the best AP"
        )
