"""Faster R-CNN: options, and losses that are means over images; see also test_detectors.py."""

import copy

import pytest
import torch
from torchvision.models.detection import FasterRCNN

from models import resnet
from models.sampling import ImageSampler
from tests.detectors import assemble


def test_options_arrive(make):
    model = make.build(
        "faster_rcnn",
        num_classes=5,
        anchor_sizes=[8, 16, 32, 64, 128],
        aspect_ratios=[1.0, 3.0],
        roi_canonical_size=56,
        box_head_channels=48,
        rpn_pre_nms_top_n_train=31,
        rpn_post_nms_top_n_train=29,
        rpn_pre_nms_top_n_test=17,
        rpn_post_nms_top_n_test=13,
        rpn_batch_size_per_image=64,
        box_batch_size_per_image=24,
        score_threshold=0.3,
        nms_threshold=0.6,
        detections_per_image=9,
    )
    rpn, heads, transform = model.rpn, model.roi_heads, model.transform
    assert (transform.min_size, transform.max_size) == ((64,), 96)
    assert rpn.anchor_generator.sizes == ((8,), (16,), (32,), (64,), (128,))
    assert rpn.anchor_generator.aspect_ratios == ((1.0, 3.0),) * 5
    assert rpn._pre_nms_top_n == {"training": 31, "testing": 17}
    assert rpn._post_nms_top_n == {"training": 29, "testing": 13}
    assert rpn.sampler.batch_size_per_image == 64
    assert heads.sampler.batch_size_per_image == 24
    assert (heads.score_thresh, heads.nms_thresh, heads.detections_per_img) == (0.3, 0.6, 9)
    assert heads.box_head.fc7.out_features == 48
    # the background is one output more
    assert heads.box_predictor.cls_score.out_features == 6
    assert heads.box_predictor.bbox_pred.out_features == 24


@pytest.mark.parametrize("canonical", [128, 56])
def test_boxes_of_the_canonical_size_are_pooled_from_level_4(canonical, make):
    model = make.build("faster_rcnn", roi_canonical_size=canonical).eval()
    pool = model.roi_heads.box_roi_pool
    sides = [canonical / 2, canonical, canonical * 2]  # slightly above, against rounding
    boxes = [torch.tensor([[0.0, 0, side + 0.1, side + 0.1] for side in sides])]
    with torch.no_grad():
        assert pool(model.backbone(torch.zeros(1, 3, 256, 256)), boxes, [(256, 256)]).shape == (3, 16, 7, 7)
    assert [[*pool.strides][index] for index in pool.map_levels(boxes)] == ["p3", "p4", "p5"]


@pytest.mark.parametrize("sizes", [[32, 64, 128, 256], [32, 64, 128, 256, 512, 1024], []])
def test_wrong_number_of_anchor_sizes(sizes, make):
    with pytest.raises(ValueError, match=rf"each of the 5 levels p2, p3, p4, p5, pool, got {len(sizes)}: \["):
        make.build("faster_rcnn", anchor_sizes=sizes)


def test_anchor_sizes_match_the_levels_of_the_pyramid():
    body, fpn = resnet("resnet18"), {"levels": [3, 4], "out_channels": 16}
    with pytest.raises(ValueError, match="each of the 3 levels p3, p4, pool, got 5"):
        assemble("faster_rcnn", body, fpn=fpn)
    assert len(assemble("faster_rcnn", body, fpn=fpn, anchor_sizes=[16, 32, 64]).rpn.anchor_generator.sizes) == 3


# an image has 3024 anchors and at most 300 proposals
FEW = {"box_batch_size_per_image": 400, "rpn_batch_size_per_image": 4000}


@pytest.mark.parametrize("options", [{}, FEW], ids=["full samples", "samples not full"])
def test_options_with_full_and_partial_samples(options, make):
    """Options of the tests that split a batch in test_detectors.py."""
    model = make.tiny("faster_rcnn", **options)
    drawn = watch_samples(model)
    model(*make.four_images())
    for part in (model.rpn, model.roi_heads):
        full = 4 * part.sampler.batch_size_per_image
        assert (sum(int(mask.sum()) for mask in drawn[part.sampler]) < full) == bool(options)


def watch_samples(model):
    """Return the masks that each sampler draws, by sampler."""
    drawn = {}

    class Watched:
        def __init__(self, sampler):
            self.sampler, self.batch_size_per_image = sampler, sampler.batch_size_per_image

        def __call__(self, labels, targets):
            drawn[self] = self.sampler(labels, targets)
            return drawn[self]

        def mean_over_images(self, loss, labels):
            return self.sampler.mean_over_images(loss, labels)

    for part in (model.rpn, model.roi_heads):
        part.sampler = Watched(part.sampler)
    return drawn


def test_the_same_with_an_image_of_which_nothing_is_drawn(make, float64_labels):
    """Without box and proposal torchvision's mean is undefined."""
    model = make.tiny("faster_rcnn")
    model.rpn.min_size = 1e6
    images, targets = make.four_images()
    make.assert_equal_however_split(model, images[:2], targets[:2], [(1, 1)])
    losses = model(images[1:2], targets[1:2])
    assert losses["loss_classifier"].item() == losses["loss_box_reg"].item() == 0
    assert losses["loss_objectness"].item() > 0


def of_torchvision(model, images, targets):
    """Return the losses of the same samples with torchvision's means."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageSampler, "mean_over_images", lambda self, loss, labels: loss)
        return model(images, targets)


def test_losses_are_those_of_torchvision_over_full_samples(make, float64_labels):
    """They are bit-identical if samples are full, and otherwise differ by the fraction of samples drawn."""
    images, targets = make.four_images()
    model = make.tiny("faster_rcnn")
    assert model(images, targets) == of_torchvision(model, images, targets)

    model = make.tiny("faster_rcnn", **FEW)
    drawn = {}

    def count(module, inputs, output):
        drawn["box"] = len(output[0])  # logits of the sampled proposals

    model.roi_heads.box_predictor.register_forward_hook(count)
    ours, theirs = model(images, targets), of_torchvision(model, images, targets)
    for name in ("loss_classifier", "loss_box_reg"):
        assert ours[name].item() == pytest.approx(theirs[name].item() * drawn["box"] / 1600, rel=1e-12)
    assert 0 < drawn["box"] < 1600
    ratios = [(ours[name] / theirs[name]).item() for name in ("loss_objectness", "loss_rpn_box_reg")]
    assert ratios[0] == pytest.approx(ratios[1], rel=1e-12)
    # fewer than the anchors, of which those between the thresholds are ignored
    assert 0.5 < ratios[0] < 3024 / 4000


def smooth_l1(errors: torch.Tensor, beta: float) -> torch.Tensor:
    """Sum of the smooth L1 loss by its definition; 0 is plain L1, as in detectron2, mmdetection and PaddleDetection."""
    errors = errors.abs().flatten()
    return sum(0.5 * e**2 / beta if beta and e < beta else e - 0.5 * beta for e in errors)


@pytest.mark.parametrize("beta", [0.0, 1 / 9, 0.5], ids=str)
@pytest.mark.parametrize("detector", ["faster_rcnn", "cascade_rcnn"])
def test_box_losses_are_smooth_l1_of_the_option(make, detector, beta, monkeypatch):
    """The losses and their gradients equal the formula on the box deltas that the heads predict."""
    betas = {"rpn_smooth_l1_beta": beta, "box_smooth_l1_beta": beta}
    model = make.tiny(detector, **betas, rpn_batch_size_per_image=64, box_batch_size_per_image=16)
    images, targets = make.four_images()
    seen = {}
    rpn_loss, box_loss = model.rpn.compute_loss, model.roi_heads.sample_losses

    def keep_rpn(objectness, deltas, labels, regression_targets):
        seen["rpn"] = deltas, torch.cat(labels), torch.cat(regression_targets)
        return rpn_loss(objectness, deltas, labels, regression_targets)

    def keep_box(logits, deltas, samples, given, coder):
        if "box" not in seen:  # the first stage of a cascade
            gt = [
                t["boxes"][m] if len(t["boxes"]) else b
                for b, m, t in zip(samples.boxes, samples.matched, given, strict=True)
            ]
            seen["box"] = deltas, torch.cat(samples.labels), torch.cat(coder.encode(gt, samples.boxes))
        return box_loss(logits, deltas, samples, given, coder)

    monkeypatch.setattr(model.rpn, "compute_loss", keep_rpn)
    monkeypatch.setattr(model.roi_heads, "sample_losses", keep_box)
    losses = model(images, targets)
    name = "loss_box_reg_1" if detector == "cascade_rcnn" else "loss_box_reg"
    for part, key, count in (("rpn", "loss_rpn_box_reg", 64), ("box", name, 16)):
        deltas, labels, encoded = seen[part]
        positive = labels >= 1
        own = deltas[positive]
        if part == "box":
            own = torch.stack([row.view(-1, 4)[label] for row, label in zip(own, labels[positive], strict=True)])
        expected = smooth_l1(own - encoded[positive], beta) / (4 * count)
        assert positive.sum() > 3
        assert losses[key].item() == pytest.approx(expected.item(), rel=1e-9)
        gradients = [torch.autograd.grad(loss, deltas, retain_graph=True)[0] for loss in (losses[key], expected)]
        torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-15)


def test_the_two_samples_of_an_image_are_independent(make):
    model = make.tiny("faster_rcnn")
    twins = [copy.copy(model.rpn.sampler), copy.copy(model.roi_heads.sampler)]
    for twin in twins:
        twin.batch_size_per_image, twin.positive_fraction = 32, 0.5
    _, targets = make.four_images()
    one, other = (twin([torch.zeros(500)] * 4, targets) for twin in twins)
    assert all(not torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_new_seed_is_a_new_sample(make):
    model = make.tiny("faster_rcnn")
    images, targets = make.four_images()
    expected = model(images, targets)["loss_objectness"]
    assert model(images, targets)["loss_objectness"] == expected
    assert model(images, [t | {"seed": t["seed"] + 1} for t in targets])["loss_objectness"] != expected


def test_targets_without_seeds_follow_the_global_state(make):
    model = make.tiny("faster_rcnn")
    images, targets = make.four_images()
    targets = [{key: value for key, value in target.items() if key != "seed"} for target in targets]
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(model(images, targets)["loss_objectness"].item())
    assert found[0] == found[1] != found[2]


def test_state_dict_keys_are_those_of_torchvision():
    ours = assemble("faster_rcnn", resnet("resnet18"))
    assert ours.state_dict().keys() == FasterRCNN(ours.backbone, 4, box_roi_pool=None).state_dict().keys()
