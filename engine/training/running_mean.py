"""Means of numbers since the last record; part of the state of a run."""

from collections import defaultdict
from collections.abc import Mapping


class RunningMean:
    """Mean of dicts of numbers with the same keys."""

    def __init__(self) -> None:
        self.clear()

    def add(self, record: Mapping[str, float]) -> None:
        """Add a dict of numbers."""
        self._count += 1
        for name, value in record.items():
            self._sums[name] += value

    def mean(self) -> dict[str, float]:
        """Return the mean of each number since the last `clear`."""
        return {name: total / self._count for name, total in self._sums.items()}

    def clear(self) -> None:
        """Remove all numbers."""
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._count = 0

    def state_dict(self) -> dict:
        """Return the sums and their count."""
        return {"sums": dict(self._sums), "count": self._count}

    def load_state_dict(self, state: dict) -> None:
        """Load a `state_dict()`."""
        self._sums, self._count = defaultdict(float, state["sums"]), state["count"]
