"""What tests of steps and loaders share."""

from collections.abc import Callable, Iterable

import pytest


@pytest.fixture(scope="session")
def by_step() -> Callable[[Iterable], list[list]]:
    """`by_step(batches)`: the batches of one process, step by step."""

    def split(batches: Iterable) -> list[list]:
        steps = [[]]
        for batch in batches:
            steps[-1].append(batch)
            if batch.ends_step:
                steps.append([])
        assert steps.pop() == [], "the last batch does not end its step"
        return steps

    return split
