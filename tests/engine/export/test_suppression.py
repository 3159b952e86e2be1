"""Suppression of many sets at once against torchvision's of one class of one set after the other."""

import pytest
import torch
from torch import nn
from torch.export import Dim, export
from torchvision.ops import nms

from engine.export.suppression import suppress


def one_by_one(boxes, scores, iou_threshold, score_threshold):
    keep = torch.zeros(scores.shape, dtype=torch.bool)
    for i in range(scores.shape[0]):
        for j in range(scores.shape[1]):
            (taking_part,) = torch.where(scores[i, j] > score_threshold)
            kept = nms(boxes[i, taking_part], scores[i, j, taking_part], iou_threshold)
            keep[i, j, taking_part[kept]] = True
    return keep


@pytest.mark.parametrize(("sets", "classes", "candidates"), [(3, 2, 50), (1, 1, 40), (2, 80, 30)])
def test_equals_one_by_one(sets, classes, candidates):
    random = torch.Generator().manual_seed(0)
    corners = torch.rand(sets, candidates, 2, generator=random) * 100
    boxes = torch.cat([corners, corners + torch.rand(sets, candidates, 2, generator=random) * 60 + 1], 2)
    scores = torch.rand(sets, classes, candidates, generator=random)
    keep = suppress(boxes, scores, 0.4, 0.2)
    assert torch.equal(keep, one_by_one(boxes, scores, 0.4, 0.2))
    assert 0 < keep.sum() < (scores > 0.2).sum()


def test_overlaps_are_exact_far_from_the_first_class():
    """Two boxes of IoU 0.5 less a millionth are both kept in each of 200 classes of 8 sets."""
    first, second = [0.0, 0, 1333, 10], [1333 / 3 * (1 + 3e-6), 0.0, 1333 * 4 / 3 * (1 + 1e-6), 10]
    boxes = torch.tensor([first, second]).expand(8, 2, 4)
    scores = torch.tensor([0.9, 0.8]).expand(8, 200, 2)
    assert one_by_one(boxes[:1], scores[:1, :1], 0.5, 0.0).all()
    assert suppress(boxes, scores, 0.5, 0.0).all()
    assert not suppress(boxes, scores, 0.499, 0.0)[..., 1].any()


def test_nothing_takes_part():
    assert not suppress(torch.rand(2, 5, 4), torch.zeros(2, 3, 5), 0.5, 0.0).any()


class Suppress(nn.Module):
    def forward(self, boxes, scores):
        return suppress(boxes, scores, 0.5, 0.1)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # within torchvision
def test_an_exported_program_keeps_any_number():
    """As of an empty picture, in which nothing or one thing is found."""
    boxes = torch.arange(2 * 7 * 4.0).reshape(2, 7, 4)
    sizes = {0: Dim("sets", min=1), 1: None}, {0: Dim("sets", min=1), 2: None}
    program = export(Suppress(), (boxes, torch.ones(2, 3, 7)), dynamic_shapes=sizes).module()
    for number in range(4):
        scores = torch.zeros(1, 3, 7)
        scores[0, 1, :number] = 0.5
        assert torch.equal(program(boxes[:1], scores), scores > 0)
