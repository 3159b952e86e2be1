"""What is said of two sets of detections, and that it is the largest difference of all batches that counts."""

import torch
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from engine.export import BOX_TOLERANCE, SCORE_TOLERANCE, Difference, compare, run_beside

NONE = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0)}


def some(count: int = 5) -> dict[str, torch.Tensor]:
    boxes = torch.arange(count)[:, None] * 10.0 + torch.tensor([0.0, 1, 20, 31])
    return {"boxes": boxes, "labels": torch.arange(count) % 2 + 1, "scores": torch.linspace(0.9, 0.5, count)}


def test_order_does_not_matter():
    ours, order = some(), torch.tensor([3, 0, 4, 1, 2])
    assert compare(ours, {key: value[order] for key, value in ours.items()}) == Difference(5, 0, 0.0, 0.0)


def test_largest_differences():
    ours, theirs = some(), some()
    theirs["boxes"][2, 1] += 0.25
    theirs["scores"][4] -= 0.005
    found = compare(ours, theirs)
    assert (found.detections, found.alone, found.box) == (5, 0, 0.25)
    assert abs(found.score - 0.005) < 1e-6


def test_detections_alone():
    ours = some()
    one_less = {key: value[1:] for key, value in ours.items()}
    assert compare(ours, one_less).alone == compare(one_less, ours).alone == 1
    other_class = ours | {"labels": ours["labels"].flip(0) % 2 + 1}
    assert compare(ours, other_class).alone == 10
    assert compare(ours, NONE) == Difference(5, 5, 0.0, 0.0)
    assert compare(NONE, ours) == Difference(0, 5, 0.0, 0.0)
    assert compare(NONE, NONE) == Difference(0, 0, 0.0, 0.0)


def test_what_is_small():
    assert Difference(200, 2, BOX_TOLERANCE, SCORE_TOLERANCE).is_small
    assert Difference(0, 0, 0.0, 0.0).is_small
    assert not Difference(200, 3, 0.0, 0.0).is_small
    assert not Difference(200, 0, 1.01 * BOX_TOLERANCE, 0.0).is_small
    assert not Difference(200, 0, 0.0, 1.01 * SCORE_TOLERANCE).is_small


class Stub(torch.nn.Module):
    """Finds one object, as large as the image that it is given, with the brightness as its score."""

    def __init__(self):
        super().__init__()
        self.transform = GeneralizedRCNNTransform(32, 48, [0.0] * 3, [1.0] * 3)

    def forward(self, images):
        return [
            {
                "boxes": torch.tensor([[0.0, 0, image.shape[2], image.shape[1]]]),
                "labels": torch.tensor([1]),
                "scores": image[0, 0, :1],
            }
            for image in images
        ]


def test_pictures_are_resized_for_the_program_and_mirrored_for_a_batch():
    seen = []

    def run(images):
        seen.append(tuple(images.shape))
        height, width = images.shape[2:]
        boxes = torch.tensor([[[0.0, 0, width, height], [0, 0, 0, 0]]]).expand(len(images), 2, 4)
        scores = torch.stack([images[:, 0, 0, 0], torch.zeros(len(images))], 1)
        labels, counts = torch.tensor([[1, 0]]).expand(len(images), 2), torch.ones(len(images), dtype=torch.int64)
        return {"boxes": boxes, "labels": labels, "scores": scores, "num_detections": counts}

    dark_right = torch.linspace(0.8, 0.2, 120).expand(3, 80, 120)
    rows = run_beside(Stub().eval(), run, [("a", dark_right)])
    assert seen == [(1, 3, 32, 48), (2, 3, 32, 48)]
    assert [(row.name, row.size, row.images) for row in rows] == [("a", (32, 48), 1), ("a", (32, 48), 2)]
    assert [row.difference.detections for row in rows] == [1, 2]
    assert all(row.difference.alone == 0 and row.difference.box < 1e-4 for row in rows)
