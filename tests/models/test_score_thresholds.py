"""Score thresholds of single classes, from a checkpoint or by name, and their effect on detections."""

import math

import pytest
import torch

from models.predictor import Predictor
from models.score_thresholds import best_thresholds, label_thresholds, lowest_threshold

NAMES = ["cat", "dog", "owl"]


def checkpoint(**changes) -> dict:
    metrics = {"score_threshold": 0.4, "per_class_score_threshold": {"dog": 0.7, "cat": 0.25, "owl": math.nan}}
    return {"class_names": NAMES, "metrics": metrics, "last_eval_step": 9, "step": 9, "ema": None} | changes


def test_best_thresholds_are_in_the_order_of_the_labels():
    # the owl has the threshold of all classes
    assert label_thresholds("best", checkpoint(), "raw", "last.pt") == [0.25, 0.7, 0.4]
    assert label_thresholds({"owl": 0, "dog": 1, "cat": 0.5}, checkpoint(), "raw", "last.pt") == [0.5, 1.0, 0.0]
    assert label_thresholds(0.3, checkpoint(), "raw", "last.pt") is None
    assert lowest_threshold(0.3, None) == 0.3
    assert 0.2499 < lowest_threshold("best", [0.25, 0.7, 0.4]) < 0.25


@pytest.mark.parametrize(
    ("changes", "weights", "said"),
    [
        ({"metrics": None}, "raw", "no evaluation, or an evaluation of a version that did not look for thresholds"),
        ({"metrics": {"AP": 0.1}}, "raw", "python tools/eval.py last.pt --json figures.json"),
        ({"step": 12}, "raw", "belong to step 9, and the weights to step 12"),
        ({"ema": {}}, "raw", "averaged weights. Evaluate it with `python tools/eval.py last.pt --weights raw --json"),
        ({"metrics": {"score_threshold": math.nan, "per_class_score_threshold": {}}}, "raw", "no detection of the"),
    ],
)
def test_thresholds_of_other_weights_are_not_used(changes, weights, said):
    with pytest.raises(ValueError, match=r"last\.pt has no best score thresholds for these weights") as error:
        best_thresholds(checkpoint(**changes), weights, "last.pt")
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("good", "must be a number, 'best', or a score by class name, got 'good'"),
        ({"cat": 0.5}, "2 are missing, first 'dog'"),
        ({"cat": 0.5, "dog": 1.5, "owl": 0.5}, "must be from 0 to 1, got 1.5"),
        ({"cat": 0.5, "dog": math.nan, "owl": 0.5}, "must be from 0 to 1, got nan"),
    ],
)
def test_thresholds_that_are_not_valid(asked, said):
    with pytest.raises(ValueError, match="threshold") as error:
        label_thresholds(asked, checkpoint(), "raw", "last.pt")
    assert said in str(error.value)


class Fixed(torch.nn.Module):
    """A detector with patches of masks, as for `paste_masks=False`."""

    def forward(self, images):
        scores = torch.tensor([0.9, 0.7, 0.69, 0.3, 0.25, 0.2])
        labels = torch.tensor([1, 2, 2, 3, 1, 1])
        boxes, number = torch.arange(24.0).view(6, 4), torch.arange(6)
        patches = number.view(6, 1, 1, 1).expand(6, 1, 2, 2).float()
        found = {"boxes": boxes, "labels": labels, "scores": scores, "mask_patches": patches, "mask_boxes": boxes}
        return [found | {"mask_flipped": number > 2, "mask_size": torch.tensor([5, 7])} for _ in images]


def test_a_predictor_keeps_the_detections_from_the_threshold_of_their_class_on():
    image = torch.zeros(3, 5, 7, dtype=torch.uint8)
    found = Predictor(Fixed(), NAMES, score_thresholds=[0.25, 0.7, 0.4])(image, paste_masks=False)
    assert found["names"] == ["cat", "dog", "cat"]
    assert found["scores"].tolist() == pytest.approx([0.9, 0.7, 0.25])
    assert found["boxes"][:, 0].tolist() == [0, 4, 16]
    assert found["mask_patches"][:, 0, 0, 0].tolist() == [0, 1, 4]
    assert found["mask_flipped"].tolist() == [False, False, True]
    assert found["mask_size"].tolist() == [5, 7]
    assert len(Predictor(Fixed(), NAMES)(image, paste_masks=False)["scores"]) == 6
