"""Training and validation loss that part."""

import pytest

from engine.training.overfitting import LossTrend


@pytest.mark.parametrize(
    ("losses", "noted"),
    [
        ([(5, 5), (4, 6), (3, 7), (2, 8), (1, 9), (0.5, 10)], [3]),
        ([(5, 5), (4, 6), (3, 7), (2, 7), (1, 8), (0.9, 9), (0.8, 10)], [6]),
        ([(5, 5), (4, 4), (3, 3), (2, 2), (1, 1)], []),
        ([(5, 5), (6, 6), (7, 7), (8, 8)], []),
        ([(5, 5), (4, float("nan")), (3, 7), (2, 8), (1, 9)], []),
        ([], []),
    ],
)
def test_a_note_after_three_evaluations_in_a_row(losses, noted):
    trend, found = LossTrend(), []
    for index, (train, val) in enumerate(losses):
        trend = LossTrend(**trend._asdict()).after(train, val)
        if trend.note:
            found.append(index)
    assert found == noted


def test_the_note_has_the_losses():
    trend = LossTrend()
    for train, val in [(3, 1.5), (2.5, 2.0), (2.0, 2.25), (1.0, 2.5)]:
        trend = trend.after(train, val)
    assert trend.note.startswith(
        "validation loss rose in 3 evaluations in a row, from 1.500 to 2.500, while training loss fell to 1.000: "
    )
