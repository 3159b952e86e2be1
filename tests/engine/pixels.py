"""Images to draw on, and what to look for in what was drawn."""

import torch

from engine.display.drawing import MASK_ALPHA

# of an object with the box (20, 40, 60, 70) and a mask of its left half, at four times the size: x, y within the mask,
# and within the box beside it, off its lines and the name
MASKED, BESIDE = (120, 220), (200, 220)


def sample(height, width, boxes, labels):
    image = torch.full((3, height, width), 40, dtype=torch.uint8)
    return image, {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.tensor(labels, dtype=torch.int64)}


def is_colour(picture, x, y, colour):
    return tuple(picture[:, y, x].tolist()) == colour


def is_drawn(picture, box, colour):
    """Whether the sides and the lower corners of a box have a colour; names may hide the top."""
    left, _, right, bottom = box
    middle_x, middle_y = (left + right) // 2, (box[1] + bottom) // 2
    places = [(left, bottom), (right, bottom), (middle_x, bottom), (left, middle_y), (right, middle_y)]
    return all(is_colour(picture, x, y, colour) for x, y in places)


def count(picture, colour):
    return (picture == torch.tensor(colour)[:, None, None]).all(0).sum().item()


def mask_of(left, top, right, bottom, height=80, width=120):
    mask = torch.zeros(height, width)
    mask[top:bottom, left:right] = 1
    return mask


def tinted(colour, ground=40):
    return tuple(round((1 - MASK_ALPHA) * ground + MASK_ALPHA * part) for part in colour)


# within the box, off its lines and the name: the left part is of the object
