"""Means since the last record, which a resumed run goes on with."""

from collections import defaultdict
from collections.abc import Mapping


class RunningMean:
    """Sums up records, dicts of numbers under the same names."""

    def __init__(self) -> None:
        self.clear()

    def add(self, record: Mapping[str, float]) -> None:
        """Take in one record."""
        self._count += 1
        for name, value in record.items():
            self._sums[name] += value

    def mean(self) -> dict[str, float]:
        """Mean of each number over the records since the start."""
        return {name: total / self._count for name, total in self._sums.items()}

    def clear(self) -> None:
        """Start anew."""
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._count = 0

    def state_dict(self) -> dict:
        """The sums, and of how many records they are."""
        return {"sums": dict(self._sums), "count": self._count}

    def load_state_dict(self, state: dict) -> None:
        """Go on from `state_dict()`."""
        self._sums, self._count = defaultdict(float, state["sums"]), state["count"]
