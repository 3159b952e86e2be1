"""Search for the largest batch that fits, on memory that is only arithmetic."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.training.largest_batch import SAFETY, largest_batch


@given(fixed=st.integers(0, 1000), each=st.integers(1, 100), available=st.integers(1, 5000), most=st.integers(1, 64))
def test_memory_that_grows_by_the_same_amount(fixed, each, available, most):
    limit = int(SAFETY * available)
    fitting = [size for size in range(1, most + 1) if fixed + each * size <= limit]
    calls = []

    def peak(size):
        calls.append(size)
        return fixed + each * size

    if not fitting:
        with pytest.raises(ValueError, match="one image needs"):
            largest_batch(peak, available, most)
    else:
        assert largest_batch(peak, available, most).size == fitting[-1]
        assert len(calls) <= 3


@given(st.integers(1, 300), st.floats(1.0, 2.0), st.integers(1, 64))
def test_memory_that_grows_faster_is_never_exceeded(most_units, power, most):
    def peak(size):
        return None if size**power > most_units else int(size**power)

    size = largest_batch(peak, int(most_units / SAFETY) + 2, most).size
    assert size == 1 or peak(size) is not None
