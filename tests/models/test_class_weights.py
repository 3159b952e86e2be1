"""Weights of classes multiply the classification loss of each sample, in every detector that has them."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from models import set_class_weights
from models.one_stage import weighted_focal_loss
from models.roi_heads import Samples
from tests import another_detector

CLASSIFIED = ("loss_classif",)


def losses_of(make, detector, spec, weights, formula_weights):
    """Return the losses of a network of formula weights, in float64, with weights of its classes."""
    model = formula_weights(make.tiny(detector))
    if weights is not None:
        set_class_weights(model, weights)
    images, targets = make.four_images(masks=spec.has_masks)
    make.give_proposals(model, targets, images[0].shape[1:])
    return model(images, targets)


def test_weights_change_the_classification_loss_alone(detector, spec, make, formula_weights, float64_labels):
    if detector == another_detector.NAME:
        with pytest.raises(ValueError, match="class_weights must be null: the losses of this detector"):
            set_class_weights(make.tiny(detector), [1, 1, 1])
        return
    plain, ones, second, double = (
        losses_of(make, detector, spec, weights, formula_weights) for weights in (None, [1, 1, 1], [1, 2, 1], [2, 2, 2])
    )
    weighted = {name for name in plain if name.startswith(CLASSIFIED)}
    assert len(weighted) == (3 if "cascade" in detector else 1)
    for name, loss in plain.items():
        torch.testing.assert_close(ones[name], loss, rtol=1e-9, atol=0)
        if name not in weighted:
            assert second[name] == ones[name] == double[name]
            continue
        assert ones[name] <= second[name] <= double[name] < 2 * ones[name], "only the background keeps its weight"
    assert sum(second[name] for name in weighted) > sum(ones[name] for name in weighted)


@pytest.mark.parametrize("detector", ["faster_rcnn", "cascade_rcnn", "retinanet", "fcos"], indirect=True)
def test_weighted_losses_do_not_depend_on_the_split(detector, make):
    model = make.tiny(detector)
    set_class_weights(model, [0.25, 3, 7])
    assert not [name for name in model.state_dict() if "class_weights" in name]
    images, targets = make.four_images()
    make.assert_equal_however_split(model, images, targets, [(1, 3)])


def test_two_stage_loss_equals_a_loop(make):
    heads = make.tiny("faster_rcnn").roi_heads
    heads.class_weights = torch.tensor([1, 0.5, 3, 9], dtype=torch.float64)
    draw = torch.Generator().manual_seed(1)
    logits = torch.randn(7, 4, generator=draw, dtype=torch.float64)
    labels = torch.tensor([0, 2, 1, 2, 0, 3, 0])
    boxes = torch.tensor([[1.0, 2, 30, 40]], dtype=torch.float64).repeat(7, 1)
    samples = Samples([boxes], [torch.zeros(7, dtype=torch.int64)], [labels])
    targets = [{"boxes": boxes[:1], "labels": torch.tensor([1])}]
    found, _ = heads.sample_losses(logits, torch.zeros(7, 16, dtype=torch.float64), samples, targets, heads.box_coder)
    each = [heads.class_weights[label] * cross_entropy(row, label) for row, label in zip(logits, labels, strict=True)]
    assert found.item() == pytest.approx(sum(each).item() / heads.sampler.batch_size_per_image)


def test_focal_loss_equals_a_loop():
    draw = torch.Generator().manual_seed(2)
    logits = torch.randn(6, 4, generator=draw, dtype=torch.float64)
    weights = torch.tensor([1, 0.5, 3, 9], dtype=torch.float64)
    matched, labels = torch.tensor([-1, 1, -2, 0, 1, -1]), torch.tensor([3, 2])
    total = 0.0
    for row, index in zip(logits.sigmoid(), matched.tolist(), strict=True):
        if index == -2:
            continue
        label = labels[index].item() if index >= 0 else 0
        for column, p in enumerate(row):
            is_object = label == column and label > 0
            loss = -0.25 * (1 - p) ** 2 * p.log() if is_object else -0.75 * p**2 * (1 - p).log()
            total += weights[label].item() * loss.item()
    found = weighted_focal_loss(logits, {"labels": labels}, matched, weights)
    assert found.item() == pytest.approx(total / 3)
