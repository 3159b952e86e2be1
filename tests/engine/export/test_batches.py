"""Parts of the graphs against loops over images."""

import pytest
import torch
from torch import nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import remove_small_boxes

from engine.export.batches import ABSENT, gather_rows, is_large, prepare, split_by_label, top_detections, topk_per_level
from engine.export.two_stage import pool_rois, to_rois
from models.roi_pool import PyramidRoIAlign


def test_prepare_is_the_transform_without_resizing():
    images = torch.rand(2, 3, 65, 96)
    transform = GeneralizedRCNNTransform(65, 200, [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]).eval()
    expected, _ = transform(list(images))
    found = prepare(images, transform)
    assert found.shape == (2, 3, 96, 96)
    torch.testing.assert_close(found, expected.tensors)


def test_top_of_levels():
    scores = torch.rand(2, 3 + 7)
    tops, places = topk_per_level(scores, [3, 7], 4)
    for i in range(2):
        first, second = sorted(scores[i, :3].tolist())[::-1], sorted(scores[i, 3:].tolist())[::-1]
        assert tops[i].tolist() == [*first, -torch.inf, *second[:4]]
        for j in (0, 1, 2, 4, 5, 6, 7):
            assert scores[i, places[i, j]] == tops[i, j]
    assert places[:, 3].max() < 3  # there is none, but what is read there must exist


def test_pick():
    values, order = torch.rand(2, 5, 4), torch.tensor([[3, 0], [1, 1]])
    expected = torch.stack([values[i][order[i]] for i in range(2)])
    assert torch.equal(gather_rows(values, order), expected)
    assert torch.equal(gather_rows(values[..., 0], order), expected[..., 0])


def test_split_by_label():
    scores, labels = torch.tensor([[0.1, 0.2, 0.3]]), torch.tensor([[2, 0, 2]])
    expected = [[ABSENT, 0.2, ABSENT], [ABSENT] * 3, [0.1, ABSENT, 0.3]]
    assert torch.equal(split_by_label(scores, labels, 3), torch.tensor([expected]))


def test_is_large():
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 1.9], [0, 0, 1.9, 5], [3, 3, 5, 9]])
    assert torch.where(is_large(boxes, 2.0))[0].tolist() == remove_small_boxes(boxes, 2.0).tolist() == [0, 3]


def test_best_fills_up():
    boxes = torch.arange(24.0).reshape(2, 3, 4) + 1
    scores = torch.tensor([[0.1, ABSENT, 0.3], [ABSENT] * 3])
    found = top_detections(boxes, scores, torch.tensor([[5, 6, 7]] * 2), 4)
    assert found["num_detections"].tolist() == [2, 0]
    assert torch.equal(found["scores"], torch.tensor([[0.3, 0.1, 0, 0], [0.0] * 4]))
    assert found["labels"].tolist() == [[7, 5, 0, 0], [0] * 4]
    assert torch.equal(found["boxes"][0, :2], boxes[0, [2, 0]])
    assert not found["boxes"][0, 2:].any()
    assert not found["boxes"][1].any()


@pytest.mark.parametrize("aligned", [False, True])
def test_pool_is_the_pooling_of_lists(aligned):
    random = torch.Generator().manual_seed(0)
    maps = {f"p{level}": torch.rand(2, 3, 96 >> level, 128 >> level, generator=random) for level in (2, 3, 4)}
    maps["pool"] = nn.functional.max_pool2d(maps["p4"], 1, 2)
    pooler = PyramidRoIAlign(["p2", "p3", "p4"], 5, canonical_size=30, aligned=aligned)
    corners = torch.rand(2, 30, 2, generator=random) * 60
    boxes = torch.cat([corners, corners + torch.rand(2, 30, 2, generator=random) * 60], 2)
    boxes[0, 0, 2:] = boxes[0, 0, :2]  # has no size
    expected = pooler(maps, list(boxes), [(96, 128)] * 2)
    assert len(pooler.map_levels(list(boxes)).unique()) == 3
    torch.testing.assert_close(pool_rois(pooler, maps, to_rois(boxes)), expected)
