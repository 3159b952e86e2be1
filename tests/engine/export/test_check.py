"""What is said of two sets of detections, and that it is the largest difference of all batches that counts."""

import pytest
import torch

from engine.export import (
    BOX_TOLERANCE,
    MASK_TOLERANCE,
    SCORE_TOLERANCE,
    DetectionDifference,
    build_graph,
    check_program,
    compare_detections,
)
from engine.export.suppression import suppress
from models.transform import DetectorTransform

NONE = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0)}


def some(count: int = 5) -> dict[str, torch.Tensor]:
    boxes = torch.arange(count)[:, None] * 10.0 + torch.tensor([0.0, 1, 20, 31])
    return {"boxes": boxes, "labels": torch.arange(count) % 2 + 1, "scores": torch.linspace(0.9, 0.5, count)}


def test_order_does_not_matter():
    ours, order = some(), torch.tensor([3, 0, 4, 1, 2])
    assert compare_detections(ours, {key: value[order] for key, value in ours.items()}) == DetectionDifference(
        5, 0, 0.0, 0.0
    )


def test_largest_differences():
    ours, theirs = some(), some()
    theirs["boxes"][2, 1] += 0.25
    theirs["scores"][4] -= 0.005
    found = compare_detections(ours, theirs)
    assert (found.detections, found.unmatched, found.box) == (5, 0, 0.25)
    assert abs(found.score - 0.005) < 1e-6


def test_masks():
    """Rows of 3 x 4 parts; they count as the rest does, and one that is far away makes a detection another one."""
    masks = torch.linspace(0, 1, 5 * 3 * 4).reshape(5, 3, 4)
    ours, theirs, order = some() | {"masks": masks}, some() | {"masks": masks.clone()}, torch.tensor([3, 0, 4, 1, 2])
    assert compare_detections(ours, {key: value[order] for key, value in ours.items()}) == DetectionDifference(
        5, 0, 0.0, 0.0, 0.0
    )
    theirs["masks"][1, 2, 0] += 0.0625
    theirs["masks"][3, 0, 1] -= 0.03125
    found = compare_detections(ours, theirs)
    assert (found.unmatched, found.box, found.score) == (0, 0.0, 0.0)
    assert abs(found.mask - 0.0625) < 1e-6
    for value in (0.2, torch.nan):
        theirs["masks"][1, 2, 0] = masks[1, 2, 0] + value
        found = compare_detections(ours, theirs)
        assert found.unmatched == 2
        assert abs(found.mask - 0.03125) < 1e-6
    nothing = NONE | {"masks": torch.zeros(0, 3, 4)}
    assert compare_detections(ours, nothing) == DetectionDifference(5, 5, 0.0, 0.0, 0.0)
    assert compare_detections(nothing, ours) == DetectionDifference(0, 5, 0.0, 0.0, 0.0)
    assert compare_detections(nothing, nothing) == DetectionDifference(0, 0, 0.0, 0.0, 0.0)


def test_detections_alone():
    ours = some()
    one_less = {key: value[1:] for key, value in ours.items()}
    assert compare_detections(ours, one_less).unmatched == compare_detections(one_less, ours).unmatched == 1
    other_class = ours | {"labels": ours["labels"].flip(0) % 2 + 1}
    assert compare_detections(ours, other_class).unmatched == 10
    assert compare_detections(ours, NONE) == DetectionDifference(5, 5, 0.0, 0.0)
    assert compare_detections(NONE, ours) == DetectionDifference(0, 5, 0.0, 0.0)
    assert compare_detections(NONE, NONE) == DetectionDifference(0, 0, 0.0, 0.0)


def test_what_is_small():
    assert DetectionDifference(200, 2, BOX_TOLERANCE, SCORE_TOLERANCE).is_small
    assert DetectionDifference(0, 0, 0.0, 0.0).is_small
    assert not DetectionDifference(200, 3, 0.0, 0.0).is_small
    assert not DetectionDifference(200, 0, 1.01 * BOX_TOLERANCE, 0.0).is_small
    assert not DetectionDifference(200, 0, 0.0, 1.01 * SCORE_TOLERANCE).is_small
    assert DetectionDifference(200, 0, 0.0, 0.0, MASK_TOLERANCE).is_small
    assert not DetectionDifference(200, 0, 0.0, 0.0, 1.01 * MASK_TOLERANCE).is_small


class Stub(torch.nn.Module):
    """Finds one object, as large as the image that it is given, with the brightness as its score."""

    def __init__(self):
        super().__init__()
        self.transform = DetectorTransform(32, 48, [0.0] * 3, [1.0] * 3)

    def forward(self, images):
        return [
            {
                "boxes": torch.tensor([[0.0, 0, image.shape[2], image.shape[1]]]),
                "labels": torch.tensor([1]),
                "scores": image[0, 0, :1],
            }
            for image in images
        ]


def test_images_are_resized_for_the_program_and_flipped_for_a_batch():
    seen = []

    def run(images):
        seen.append(images)
        height, width = images.shape[2:]
        boxes = torch.tensor([[[0.0, 0, width, height], [0, 0, 0, 0]]]).expand(len(images), 2, 4)
        scores = torch.stack([images[:, 0, 0, 0], torch.zeros(len(images))], 1)
        labels, counts = torch.tensor([[1, 0]]).expand(len(images), 2), torch.ones(len(images), dtype=torch.int64)
        return {"boxes": boxes, "labels": labels, "scores": scores, "num_detections": counts}

    dark_right = torch.linspace(0.8, 0.2, 120).expand(3, 80, 120)
    rows = check_program(Stub().eval(), run, [("a", dark_right)])
    assert [tuple(images.shape) for images in seen] == [(1, 3, 32, 48), (2, 3, 32, 48)]
    assert torch.equal(seen[1][0], seen[0][0])
    torch.testing.assert_close(seen[1][1], seen[0][0].flip(-1))
    assert [(row.name, row.size, row.images) for row in rows] == [("a", (32, 48), 1), ("a", (32, 48), 2)]
    assert [row.difference.detections for row in rows] == [1, 2]
    assert all(row.difference.unmatched == 0 and row.difference.box < 1e-4 for row in rows)


@pytest.mark.parametrize("name", ["mask_rcnn", "cascade_mask_rcnn"])
def test_masks_of_a_program_are_compared(name, make_detector, pictures):
    """Also of pictures that the detector resizes, where pasted masks would have other sizes; in float64."""
    model, pictures = make_detector(name), [picture.double() for picture in pictures]
    graph = build_graph(name, model, suppress).double()
    model.double()
    large = torch.nn.functional.interpolate(pictures[1][None], (121, 96), mode="bilinear")[0]
    before = len(model.roi_heads._forward_hooks)
    rows = check_program(model, graph, [("as it is", pictures[0]), ("large", large)])
    assert [row.size for row in rows] == [(64, 90)] * 2 + [(80, 64)] * 2
    assert all(row.difference.is_small and row.difference.detections >= 10 for row in rows), rows
    assert all(row.difference.mask < 1e-9 for row in rows)
    assert len(model.roi_heads._forward_hooks) == before
    # the last change is a small one, of the last image of a batch alone
    last = torch.tensor([0.0, 0.002], dtype=torch.float64)
    for change in (
        lambda masks: masks.flip(-1),
        lambda masks: masks.mT,
        lambda masks: masks + last[-len(masks) :, None, None, None],
    ):

        def run(images, change=change):
            found = graph(images)
            return found | {"masks": change(found["masks"])}

        assert not any(row.difference.is_small for row in check_program(model, run, [("", large)]))
