"""Fixtures for the tests of steps and loaders."""

from collections.abc import Callable, Iterable

import pytest


@pytest.fixture(scope="session")
def by_step() -> Callable[[Iterable], list[list]]:
    """Return `by_step(batches)`, which groups the batches of one process by step."""

    def split(batches: Iterable) -> list[list]:
        steps = [[]]
        for batch in batches:
            steps[-1].append(batch)
            if batch.ends_step:
                steps.append([])
        assert steps.pop() == [], "the last batch does not end its step"
        return steps

    return split
