"""Pictures of detections: truth to the left, detections to the right, at the right pixels."""

import pytest
import torch
from torch import nn

from engine.drawing import GAP, SHORT_SIDE, class_colour, draw_detections

CPU = torch.device("cpu")
NAMES = ["cat", "dog", "hen"]


class Detector(nn.Module):
    def __init__(self, boxes, labels, scores):
        super().__init__()
        self.output = {
            "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor(labels, dtype=torch.int64),
            "scores": torch.tensor(scores, dtype=torch.float32),
        }

    def forward(self, images):
        assert not self.training
        assert images[0].dtype == torch.float32
        assert images[0].max() <= 1
        return [self.output]


def sample(height, width, boxes, labels):
    image = torch.full((3, height, width), 40, dtype=torch.uint8)
    return image, {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.tensor(labels, dtype=torch.int64)}


def is_colour(picture, x, y, label):
    return tuple(picture[:, y, x].tolist()) == class_colour(label - 1, len(NAMES))


def is_drawn(picture, box, label):
    """Whether the sides and the lower corners of a box have the colour of its class; its name may hide the top."""
    left, _, right, bottom = box
    middle_x, middle_y = (left + right) // 2, (box[1] + bottom) // 2
    places = [(left, bottom), (right, bottom), (middle_x, bottom), (left, middle_y), (right, middle_y)]
    return all(is_colour(picture, x, y, label) for x, y in places)


def test_both_panels():
    # 80 high, so everything is drawn 4 times as large
    dataset = [sample(80, 120, [[20.0, 40.0, 60.0, 70.0]], [2])]
    model = Detector([[30.0, 20.0, 80.0, 60.0], [1.0, 1.0, 9.0, 9.0]], [3, 1], [0.9, 0.1]).train()
    picture = draw_detections(model, dataset, NAMES, device=CPU)
    assert picture.dtype == torch.uint8
    assert picture.shape == (3, SHORT_SIDE + GAP, 2 * (480 + GAP))
    left, right = picture[:, :, : 480 + GAP], picture[:, :, 480 + GAP :]
    assert is_drawn(left, (80, 160, 240, 280), 2)
    assert is_drawn(right, (120, 80, 320, 240), 3)
    assert not is_drawn(left, (120, 80, 320, 240), 3)
    assert not is_drawn(right, (80, 160, 240, 280), 2)
    # between the sides the image is untouched, and the detection below the threshold is not drawn
    assert left[:, 250, 160].tolist() == [40, 40, 40]
    assert not any(is_colour(right, x, y, 1) for x in range(50) for y in range(50))
    assert (picture[:, SHORT_SIDE:] == 255).all()
    assert (left[:, :, 480:] == 255).all()
    assert model.training


def test_an_image_a_row_and_nothing_found():
    dataset = [sample(80, 120, [[20.0, 40.0, 60.0, 70.0]], [2]), sample(160, 80, [], []), sample(64, 64, [], [])]
    model = Detector([], [], []).eval()
    picture = draw_detections(model, dataset[:2], NAMES, device=CPU)
    assert picture.shape == (3, (320 + GAP) + (640 + GAP), 2 * (480 + GAP))
    assert is_drawn(picture, (80, 160, 240, 280), 2)
    assert (picture[:, 320 + GAP : -GAP, :320] == 40).all()
    assert (picture[:, 320 + GAP :, 2 * (320 + GAP) :] == 255).all()
    assert not model.training


def test_the_mode_is_restored_after_an_error():
    model = Detector([], [], []).train()
    with pytest.raises(IndexError):
        draw_detections(model, [sample(64, 64, [[1.0, 1.0, 9.0, 9.0]], [4])], NAMES, device=CPU)
    assert model.training


def test_classes_have_colours_of_their_own():
    assert len({class_colour(index, 80) for index in range(80)}) == 80
    assert class_colour(0, 1) == (255, 64, 64)
