"""Every detector obeys torchvision's contract, and its losses are means over images; Faster R-CNN takes its options."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torchvision.models.detection import FasterRCNN, rpn

from dcn import DeformConv2d
from models import DETECTORS, faster_rcnn, resnet, resnet_fpn

SMALL = {"min_size": 64, "max_size": 96}
LOSSES = {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}


def build(detector: str = "faster_rcnn", num_classes: int = 3, **options) -> nn.Module:
    torch.manual_seed(0)
    pyramid = resnet_fpn(resnet("resnet18", dcn_v2_stages=[2, 3, 4], norm="gn"), channels=16)
    return DETECTORS[detector](pyramid, num_classes, **SMALL | options)


def batch() -> tuple[list[torch.Tensor], list[dict]]:
    """Two images of different sizes; one target has the highest class, the other no box."""
    boxes = torch.tensor([[8.0, 10, 40, 50], [30, 20, 70, 60]])
    targets = [
        {"boxes": boxes, "labels": torch.tensor([1, 3]), "image_id": 1},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "image_id": 2},
    ]
    return [torch.rand(3, 64, 80), torch.rand(3, 90, 64)], targets


@pytest.mark.parametrize("detector", DETECTORS)
def test_losses_in_train_mode(detector):
    losses = build(detector).train()(*batch())
    assert losses
    assert detector != "faster_rcnn" or set(losses) == LOSSES
    assert all(loss.dim() == 0 and loss.isfinite() and loss.requires_grad for loss in losses.values())


@pytest.mark.parametrize("detector", DETECTORS)
def test_starts_as_the_plain_detector(detector):
    """Same seed: equal weights and, in float64, equal losses, so that two runs differ by what is learned alone."""
    images, targets = batch()
    losses, states = [], []
    for stages in ([], [2, 3, 4]):
        torch.manual_seed(0)
        pyramid = resnet_fpn(resnet("resnet18", dcn_v2_stages=stages, norm="gn"), channels=16)
        model = DETECTORS[detector](pyramid, 3, **SMALL).double().train()
        states.append(model.state_dict())
        torch.manual_seed(1)  # of the proposals that are sampled
        found = model([image.double() for image in images], [t | {"boxes": t["boxes"].double()} for t in targets])
        losses.append(torch.stack(list(found.values())))
    assert all(torch.equal(states[1][key], value) for key, value in states[0].items())
    assert all(not value.any() for key, value in states[1].items() if key not in states[0])
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-9, atol=0)


@pytest.mark.parametrize("detector", DETECTORS)
def test_gradient_reaches_every_parameter(detector):
    model = build(detector).train()
    sum(model(*batch()).values()).backward()
    predictors = [module.conv_offset for module in model.modules() if isinstance(module, DeformConv2d)]
    assert len(predictors) == 6
    for predictor in predictors:
        offset, mask = predictor.weight.grad.split([18, 9])
        assert offset.abs().max() > 0
        assert mask.abs().max() > 0
        assert predictor.bias.grad.abs().max() > 0
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("detector", DETECTORS)
def test_detections_in_eval_mode(detector):
    images, _ = batch()
    model = build(detector, score_threshold=0.0, detections_per_image=7).eval()
    with torch.no_grad():
        detections = model(images)
    assert len(detections) == 2
    for image, found in zip(images, detections, strict=True):
        assert set(found) == {"boxes", "labels", "scores"}
        assert tuple(found["boxes"].shape) == (7, 4)
        height, width = image.shape[-2:]
        assert (found["boxes"] >= 0).all()
        assert (found["boxes"] <= torch.tensor([width, height] * 2)).all()
        assert found["boxes"].max() > 64, "boxes are pixels of the image given, not of the network's"
        assert found["labels"].dtype == torch.int64
        assert set(found["labels"].tolist()) <= {1, 2, 3}
        assert ((found["scores"] >= 0) & (found["scores"] <= 1)).all()


def test_options_arrive():
    model = build(
        num_classes=5,
        anchor_sizes=[8, 16, 32, 64, 128],
        aspect_ratios=[1.0, 3.0],
        roi_canonical_size=56,
        box_head_channels=48,
        rpn_proposals_train=31,
        rpn_proposals_test=17,
        rpn_batch_size=64,
        box_batch_size=24,
        score_threshold=0.3,
        nms_threshold=0.6,
        detections_per_image=9,
    )
    rpn, heads, transform = model.rpn, model.roi_heads, model.transform
    assert (transform.min_size, transform.max_size) == ((64,), 96)
    assert rpn.anchor_generator.sizes == ((8,), (16,), (32,), (64,), (128,))
    assert rpn.anchor_generator.aspect_ratios == ((1.0, 3.0),) * 5
    assert rpn._pre_nms_top_n == rpn._post_nms_top_n == {"training": 31, "testing": 17}
    assert rpn.fg_bg_sampler.batch_size_per_image == 64
    assert heads.fg_bg_sampler.batch_size_per_image == 24
    assert (heads.score_thresh, heads.nms_thresh, heads.detections_per_img) == (0.3, 0.6, 9)
    assert heads.box_head.fc7.out_features == 48
    # the background is one output more
    assert heads.box_predictor.cls_score.out_features == 6
    assert heads.box_predictor.bbox_pred.out_features == 24


def test_images_are_scaled_in_evaluation_alone():
    images, targets = batch()
    model = build()
    seen = []
    model.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape[-2:])))
    larger = [image.repeat(1, 3, 2) for image in images]  # 192 x 160 and 270 x 128
    model.train()(larger, targets)
    model.eval()(larger)
    # padded to multiples of 32; scaled to 64 on the shorter side, or 96 on the longer one
    assert seen == [(288, 160), (96, 64)]


@pytest.mark.parametrize("canonical", [128, 56])
def test_boxes_of_the_canonical_size_are_pooled_from_level_4(canonical):
    model = build(roi_canonical_size=canonical).eval()
    pool = model.roi_heads.box_roi_pool
    sides = [canonical / 2, canonical, canonical * 2]  # a hair above, against rounding
    boxes = [torch.tensor([[0.0, 0, side + 0.1, side + 0.1] for side in sides])]
    with torch.no_grad():
        assert pool(model.backbone(torch.zeros(1, 3, 256, 256)), boxes, [(256, 256)]).shape == (3, 16, 7, 7)
    assert [pool.featmap_names[index] for index in pool.map_levels(boxes)] == ["p3", "p4", "p5"]


@pytest.mark.parametrize("sizes", [[32, 64, 128, 256], [32, 64, 128, 256, 512, 1024], []])
def test_wrong_number_of_anchor_sizes(sizes):
    with pytest.raises(ValueError, match=rf"each of the 5 maps p2, p3, p4, p5, pool, got {len(sizes)}: \["):
        build(anchor_sizes=sizes)


def test_anchor_sizes_count_the_levels_of_the_pyramid():
    pyramid = resnet_fpn(resnet("resnet18"), levels=[3, 4], channels=16)
    with pytest.raises(ValueError, match="each of the 3 maps p3, p4, pool, got 5"):
        faster_rcnn(pyramid, 3)
    assert len(faster_rcnn(pyramid, 3, anchor_sizes=[16, 32, 64]).rpn.anchor_generator.sizes) == 3


@pytest.mark.parametrize("num_classes", [0, -1])
def test_no_classes(num_classes):
    with pytest.raises(ValueError, match=f"`num_classes` must be at least 1, got {num_classes}"):
        build(num_classes=num_classes)


def tiny(detector: str, norm: str = "frozen_bn", **options) -> nn.Module:
    """A detector in float64 with sizes in hundreds of pixels, whose offsets are not whole numbers."""
    torch.manual_seed(0)
    pyramid = resnet_fpn(resnet("resnet18", dcn_v2_stages=[2], norm=norm), levels=[2, 3], channels=16)
    sizes = {"anchor_sizes": [16, 32, 64], "box_head_channels": 32, "rpn_proposals_train": 100}
    sizes |= {"rpn_batch_size": 64, "box_batch_size": 32}
    model = DETECTORS[detector](pyramid, 3, **sizes | options)
    for module in model.modules():
        if isinstance(module, DeformConv2d):
            nn.init.normal_(module.conv_offset.weight, std=0.01)
    return model.double().train()


def seeded_batch(size: tuple[int, int] = (96, 128)) -> tuple[list[torch.Tensor], list[dict]]:
    """Four images with 2, 0, 4 and 5 boxes."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    scale = torch.tensor(size[::-1])
    targets = []
    for index, count in enumerate((2, 0, 4, 5)):
        corners = draw(count, 2) * scale / 2
        boxes = torch.cat([corners, corners + (0.15 + 0.3 * draw(count, 2)) * scale], 1)
        labels = torch.randint(1, 4, (count,), generator=generator)
        targets.append({"boxes": boxes, "labels": labels, "seed": 10**17 + 7919 * index})
    return [draw(3, *size) for _ in targets], targets


def losses_and_gradients(model, images, targets, split) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Sums over the parts of a batch, each weighted by its share of the images."""
    model.zero_grad()
    losses = {}
    for part in torch.arange(len(images)).split(split):
        found = model([images[i] for i in part], [targets[i] for i in part])
        share = len(part) / len(images)
        sum(share * loss for loss in found.values()).backward()
        losses = {name: losses.get(name, 0) + share * loss.detach() for name, loss in found.items()}
    return losses, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal_however_split(model, images, targets, splits) -> None:
    losses, gradients = losses_and_gradients(model, images, targets, [len(images)])
    assert all(loss.isfinite() for loss in losses.values())
    for split in splits:
        torch.manual_seed(sum(split[1:]))  # the global state is none of its business
        parts, part_gradients = losses_and_gradients(model, images, targets, split)
        torch.testing.assert_close(parts, losses, rtol=1e-10, atol=0)
        assert part_gradients.keys() == gradients.keys()
        for name, gradient in gradients.items():
            scale = gradient.abs().max().item()
            torch.testing.assert_close(part_gradients[name], gradient, rtol=0, atol=1e-10 * scale, msg=name)


@pytest.fixture
def float64_labels(monkeypatch):
    """torchvision's RPN has float32 labels, which would make that loss one of 7 digits."""

    def loss(logits, labels):
        return binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))

    monkeypatch.setattr(rpn.F, "binary_cross_entropy_with_logits", loss)


# an image has 3024 anchors and at most 300 proposals
FEW = {"box_batch_size": 400, "rpn_batch_size": 4000}


@pytest.mark.parametrize("options", [{}, FEW], ids=["full samples", "samples not full"])
@pytest.mark.parametrize("norm", ["frozen_bn", "gn"])
@pytest.mark.parametrize("detector", DETECTORS)
def test_the_same_however_a_batch_is_split(detector, norm, options, float64_labels):
    model = tiny(detector, norm, **options)
    assert_equal_however_split(model, *seeded_batch(), [(2, 2), (1, 3), (1, 1, 1, 1)])
    if detector == "faster_rcnn":
        samplers = (model.rpn.fg_bg_sampler, model.roi_heads.fg_bg_sampler)
        assert [bool(sampler.missing) for sampler in samplers] == [bool(options)] * 2


def test_the_same_with_an_image_of_which_nothing_is_drawn(float64_labels):
    """No box and no proposal: torchvision alone would make a mean over nothing of it."""
    model = tiny("faster_rcnn")
    model.rpn.min_size = 1e6
    images, targets = seeded_batch()
    assert_equal_however_split(model, images[:2], targets[:2], [(1, 1)])
    losses = model(images[1:2], targets[1:2])
    assert losses["loss_classifier"].item() == losses["loss_box_reg"].item() == 0
    assert losses["loss_objectness"].item() > 0


def test_losses_are_those_of_torchvision_over_full_samples(float64_labels):
    """To the bit where samples are full, else by the ratio of what was drawn to what should have been."""
    images, targets = seeded_batch()
    model = tiny("faster_rcnn")
    assert model(images, targets) == FasterRCNN.forward(model, images, targets)

    model = tiny("faster_rcnn", **FEW)
    drawn = {}

    def count(module, inputs, output):
        drawn["box"] = len(output[0])  # logits of the sampled proposals

    model.roi_heads.box_predictor.register_forward_hook(count)
    ours, theirs = model(images, targets), FasterRCNN.forward(model, images, targets)
    for name in ("loss_classifier", "loss_box_reg"):
        assert ours[name].item() == pytest.approx(theirs[name].item() * drawn["box"] / 1600, rel=1e-12)
    assert 0 < drawn["box"] < 1600
    ratios = [(ours[name] / theirs[name]).item() for name in ("loss_objectness", "loss_rpn_box_reg")]
    assert ratios[0] == pytest.approx(ratios[1], rel=1e-12)
    # fewer than the anchors, of which those between the thresholds are ignored
    assert 0.5 < ratios[0] < 3024 / 4000


def test_the_two_samples_of_an_image_are_drawn_apart():
    model = tiny("faster_rcnn")
    rpn_sampler, box_sampler = model.rpn.fg_bg_sampler, model.roi_heads.fg_bg_sampler
    model(*seeded_batch())
    assert rpn_sampler.seeds == box_sampler.seeds == [10**17 + 7919 * index for index in range(4)]
    twins = [copy.copy(rpn_sampler), copy.copy(box_sampler)]
    for twin in twins:
        twin.batch_size_per_image, twin.positive_fraction = 32, 0.5
    one, other = (twin([torch.zeros(500)] * 4)[1] for twin in twins)
    assert all(not torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_new_seed_is_a_new_sample():
    model = tiny("faster_rcnn")
    images, targets = seeded_batch()
    expected = model(images, targets)["loss_objectness"]
    assert model(images, targets)["loss_objectness"] == expected
    assert model(images, [t | {"seed": t["seed"] + 1} for t in targets])["loss_objectness"] != expected


def test_targets_without_seeds_follow_the_global_state():
    model = tiny("faster_rcnn")
    images, targets = seeded_batch()
    targets = [{key: value for key, value in target.items() if key != "seed"} for target in targets]
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(model(images, targets)["loss_objectness"].item())
    assert found[0] == found[1] != found[2]


def test_state_dict_keys_are_those_of_torchvision():
    pyramid = resnet_fpn(resnet("resnet18"), channels=16)
    assert faster_rcnn(pyramid, 3).state_dict().keys() == FasterRCNN(pyramid, 4, box_roi_pool=None).state_dict().keys()


def test_training_needs_targets():
    with pytest.raises(AssertionError, match="targets should not be none"):
        build().train()(batch()[0])
