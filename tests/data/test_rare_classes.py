"""Repeat factors follow the formula of LVIS."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import class_repeat_factors, count_classes, image_repeat_factors
from data.arrays import AnnotationArrays, PackedBytes

LABELS = st.lists(st.lists(st.integers(1, 4), max_size=5), min_size=1, max_size=12)


def arrays_of(labels: list[list[int]]) -> AnnotationArrays:
    """Images with these labels."""
    count = len(labels)
    return AnnotationArrays(
        image_ids=np.arange(count),
        file_names=PackedBytes([b""] * count),
        sizes=np.ones((count, 2)),
        offsets=np.cumsum([0, *map(len, labels)]),
        boxes=np.zeros((sum(map(len, labels)), 4), dtype=np.float32),
        labels=np.array([label for own in labels for label in own], dtype=np.int64),
        segmentations=None,
    )


@given(LABELS, st.booleans(), st.floats(0.001, 1))
def test_factors_equal_a_loop_over_images(labels, keep_empty, threshold):
    arrays = arrays_of(labels)
    used = [image for image, own in enumerate(labels) if own or keep_empty]
    counts = count_classes(arrays, 4)
    factors = class_repeat_factors(counts.images, len(used), threshold)
    by_class = {}
    for label in range(1, 5):
        having = sum(label in labels[image] for image in used)
        assert (counts.images[label - 1], counts.boxes[label - 1]) == (having, sum(own.count(label) for own in labels))
        by_class[label] = max(1, math.sqrt(threshold / (having / len(used)))) if having else 1
        assert factors[label - 1] == pytest.approx(by_class[label])
    wanted = [max([1, *(by_class[label] for label in labels[image])]) for image in used]
    assert image_repeat_factors(arrays, used, factors).tolist() == pytest.approx(wanted)
