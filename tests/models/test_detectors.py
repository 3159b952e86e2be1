"""Every detector follows the contract, starts as the plain one, and has losses that are means over images.

`models/detector.py` contains the contract. Detectors of the table are tested without changes here.
"""

import re

import pytest
import torch

from dcn import DeformConv2d

# Names of the losses in TensorBoard and metrics.jsonl of earlier runs.
TWO_STAGE = {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
CASCADE = {"loss_objectness", "loss_rpn_box_reg"} | {
    f"loss_{kind}_{stage}" for kind in ("classifier", "box_reg") for stage in (1, 2, 3)
}
ONE_STAGE = {"loss_classification", "loss_bbox_regression"}
LOSSES = {
    "faster_rcnn": TWO_STAGE,
    "mask_rcnn": TWO_STAGE | {"loss_mask"},
    "cascade_rcnn": CASCADE,
    "cascade_mask_rcnn": CASCADE | {"loss_mask"},
    "retinanet": ONE_STAGE,
    "fcos": ONE_STAGE | {"loss_bbox_ctrness"},
}
# Options, in addition to none, with which losses must not depend on the split of a batch. `NOT_FULL` samples more
# than there is: an image has 3024 anchors and at most 300 proposals.
NOT_FULL = {"box_batch_size_per_image": 400, "rpn_batch_size_per_image": 4000}
VARIANTS = {
    "faster_rcnn": ({}, NOT_FULL),
    "mask_rcnn": ({}, NOT_FULL),
    "cascade_rcnn": ({"roi_aligned": True}, NOT_FULL),
    "fcos": ({"num_dcn_convs": 2},),
}


def deformable(model) -> list[DeformConv2d]:
    return [module for module in model.modules() if isinstance(module, DeformConv2d)]


def test_losses_in_train_mode(detector, spec, make, head_dcn):
    losses = make.build(detector, **head_dcn).train()(*make.two_images(masks=spec.has_masks))
    assert set(losses) == LOSSES.get(detector, {*losses})
    assert all(loss.dim() == 0 and loss.isfinite() and loss.requires_grad for loss in losses.values())
    assert all(name.startswith("loss_") for name in losses), "others are not logged to TensorBoard"


def test_first_losses_are_golden(detector, spec, make, head_dcn, golden, formula_weights, float64_labels):
    """In float64, and before any decision that depends on the network's outputs: the same on every processor."""
    model = formula_weights(make.tiny(detector, **head_dcn))
    images, targets = make.four_images(masks=spec.has_masks)
    make.give_proposals(model, targets, images[0].shape[1:])
    losses = model(images, targets)
    # a later stage of a cascade depends on the boxes of the previous stage: these losses are tested by hand
    first = {name: loss for name, loss in losses.items() if not name.endswith(("_2", "_3"))}
    sum(first.values()).backward()
    gradients = [p.grad.square().sum() for p in model.parameters() if p.grad is not None]
    found = {name: loss.item() for name, loss in first.items()} | {"grad_norm": sum(gradients).sqrt().item()}
    assert found == pytest.approx(golden("losses", detector, found), rel=1e-9)


def test_starts_as_the_plain_detector(detector, spec, make, head_dcn):
    """With the same seed, weights are equal and, in float64, losses are equal: two runs differ only by training."""
    images, targets = make.two_images(masks=spec.has_masks)
    losses, states, drawn = [], [], []
    for stages, options in (((), {}), ((2, 3, 4), head_dcn)):
        model = make.build(detector, stages=stages, **options).double().train()
        drawn.append(torch.rand(3))
        states.append(model.state_dict())
        torch.manual_seed(1)  # of the proposals that are sampled
        found = model([image.double() for image in images], [t | {"boxes": t["boxes"].double()} for t in targets])
        losses.append(torch.stack(list(found.values())))
    assert all(torch.equal(states[1][key], value) for key, value in states[0].items())
    assert all(".conv_offset." in key and not value.any() for key, value in states[1].items() if key not in states[0])
    assert len(states[1]) - len(states[0]) == 2 * len(deformable(model))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-9, atol=0)
    assert torch.equal(*drawn), "modules built afterwards would differ"


def test_gradient_reaches_every_parameter(detector, spec, make, head_dcn):
    model = make.build(detector, **head_dcn).train()
    sum(model(*make.two_images(masks=spec.has_masks)).values()).backward()
    predictors = [module.conv_offset for module in deformable(model)]
    assert len(predictors) == 6 + (2 if head_dcn else 0)
    for predictor in predictors:
        offset, mask = predictor.weight.grad.split([18, 9])
        assert offset.abs().max() > 0
        assert mask.abs().max() > 0
        assert predictor.bias.grad.abs().max() > 0
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def test_every_parameter_has_a_gradient_without_any_box(detector, spec, make, head_dcn):
    model = make.build(detector, **head_dcn).train()
    images, (_, empty) = make.two_images(masks=spec.has_masks)
    sum(model(images[1:], [empty]).values()).backward()
    assert not [
        name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]


def test_the_interface_that_other_modules_use(spec, detector, make):
    options = spec.options()
    assert 0 <= options.score_threshold < 1
    assert options.detections_per_image >= 1
    assert 0 < getattr(options, "nms_threshold", 0.5) < 1
    model = make.tiny(detector)
    names = [*model.state_dict()]
    assert all(any(re.fullmatch(pattern, name) for name in names) for pattern in spec.class_rows)
    assert all(
        any(re.search(pattern, name) for name in names) for pattern in {**spec.lr_factors, **spec.weight_decay_factors}
    )
    assert [*model.backbone.body(torch.rand(1, 3, 64, 64).double())] == [*model.backbone.body.return_layers.values()]


def test_losses_are_means_over_images_or_divided_by_the_boxes_of_the_step(detector, spec, make, float64_labels):
    model = make.tiny(detector)
    images, targets = make.four_images(masks=spec.has_masks)
    one, other = (model(images, [target | {"step_boxes": boxes} for target in targets]) for boxes in (1.0, 4.0))
    for name, loss in one.items():
        assert any(loss.item() == pytest.approx(share * other[name].item(), rel=1e-12) for share in (1, 4)), name


def test_background_in_ignored_regions_does_not_count(detector, spec, make, float64_labels):
    model = make.tiny(detector)
    images, targets = make.four_images(masks=spec.has_masks)
    everywhere, nowhere = torch.tensor([[-1e4, -1e4, 1e4, 1e4]]), torch.tensor([[0.1, 0.1, 0.11, 0.11]])
    plain = model(images, targets)
    assert plain == model(images, [target | {"ignored": nowhere} for target in targets])
    assert plain == model(images, [target | {"ignored": nowhere[:0]} for target in targets])
    objects = model(images, [target | {"ignored": everywhere} for target in targets])
    changed = {name for name, loss in plain.items() if objects[name] != loss}
    assert changed
    assert changed <= {name for name in plain if "class" in name or "objectness" in name}, "objects count as before"
    assert all(0 < objects[name] < plain[name] for name in changed)
    empty = images[1:2], [targets[1] | {"ignored": everywhere}]
    assert all(loss == 0 for loss in model(*empty).values())
    sum(model(*empty).values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("size", [(1, 1), (17, 300), (200, 9)])
def test_images_of_any_size(detector, make, size):
    (found,) = make.build(detector, score_threshold=0.0).eval()([torch.rand(3, *size)])
    assert (found["boxes"] <= torch.tensor([*size[::-1]] * 2)).all()


def test_detections_in_eval_mode(detector, spec, make, head_dcn):
    images = [image.repeat(1, 3, 2) for image in make.two_images()[0]]  # 192 x 160 and 270 x 128
    model = make.build(detector, score_threshold=0.0, detections_per_image=40, **head_dcn).eval()
    with torch.no_grad():
        detections = model(images)
    assert len(detections) == 2
    for image, found in zip(images, detections, strict=True):
        assert set(found) == {"boxes", "labels", "scores"} | ({"masks"} if spec.has_masks else set())
        assert tuple(found["boxes"].shape) == (40, 4)
        height, width = image.shape[-2:]
        assert (found["boxes"] >= 0).all()
        assert (found["boxes"] <= torch.tensor([width, height] * 2)).all()
        assert found["boxes"].max() > 96, "boxes are pixels of the input image, not of the resized one"
        assert found["labels"].dtype == torch.int64
        assert set(found["labels"].tolist()) <= {1, 2, 3}
        assert ((found["scores"] >= 0) & (found["scores"] <= 1)).all()
        assert found["scores"].equal(found["scores"].sort(descending=True).values)
        if spec.has_masks:
            assert tuple(found["masks"].shape) == (40, 1, height, width)
            assert ((found["masks"] >= 0) & (found["masks"] <= 1)).all()


def test_sizes_and_thresholds_arrive(detector, make):
    images, _ = make.two_images()
    for threshold, count in ((0.0, 30), (0.999, 0)):
        model = make.build(detector, score_threshold=threshold, detections_per_image=30).eval()
        assert (model.transform.min_size, model.transform.max_size) == ((64,), 96)
        with torch.no_grad():
            assert [len(found["boxes"]) for found in model(images)] == [count, count]


def test_images_are_scaled_only_in_evaluation(detector, spec, make, head_dcn):
    images, targets = make.two_images()
    larger = [image.repeat(1, 3, 2) for image in images]  # 192 x 160 and 270 x 128
    if spec.has_masks:
        shapes = [(len(target["boxes"]), *image.shape[1:]) for target, image in zip(targets, larger, strict=True)]
        targets = [t | {"masks": torch.ones(shape).byte()} for t, shape in zip(targets, shapes, strict=True)]
    model = make.build(detector)
    seen = []
    model.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape[-2:])))
    model.train()(larger, targets)
    model.eval()(larger)
    # padded to multiples of 32; scaled to 64 on the shorter side, or 96 on the longer one, or to a square of 64
    assert seen == [(288, 160), (64, 64) if spec.resize == "stretch" else (96, 64)]


@pytest.mark.parametrize("kind", ["stretch", "letterbox"])
def test_images_may_be_squares(detector, spec, make, kind):
    """The network gets squares, and detections of all parts of an image are in its coordinates."""
    model = make.build(detector, resize=kind, score_threshold=0.0).eval()
    seen = []
    hook = model.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape)))
    images = [torch.rand(3, 60, 200), torch.rand(3, 150, 100)]
    with torch.no_grad():
        detections = model(images)
    assert seen == [(2, 3, 64, 64)]
    for image, found in zip(images, detections, strict=True):
        height, width = image.shape[-2:]
        boxes = found["boxes"]
        assert boxes.min() >= 0
        far_x, far_y = boxes[:, 0::2].max().item(), boxes[:, 1::2].max().item()
        assert 0.9 * width < far_x <= width
        assert 0.9 * height < far_y <= height
        if spec.has_masks:
            assert tuple(found["masks"].shape) == (len(boxes), 1, height, width)
    hook.remove()
    images, targets = make.four_images((64, 64), masks=spec.has_masks)
    losses = make.tiny(detector, resize=kind)(images, targets)
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_boxes_keep_their_pixels_in_mixed_precision(detector, spec, make, dtype):
    """In bfloat16 they would be multiples of 4 pixels from 512 on, and in float16 of half a pixel."""
    narrow = {"mask_head_channels": 16} if spec.has_masks else {}
    model = make.build(detector, score_threshold=0.0, max_size=1333, **narrow).eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        (found,) = model([torch.rand(3, 64, 1280)])
    assert found["boxes"].dtype == found["scores"].dtype == torch.float32
    columns = found["boxes"][:, 0::2].flatten()
    far = columns[(columns > 520) & (columns < 1270)]
    assert len(far) > 10
    assert (far % 0.5 != 0).double().mean() > 0.1, "a new FCOS has many sides of length 0"


@pytest.mark.parametrize("norm", ["frozen_bn", "gn"])
def test_the_same_however_a_batch_is_split(detector, spec, make, norm, float64_labels, head_dcn):
    for options in VARIANTS.get(detector, ({},)):
        model = make.tiny(detector, norm, **options)
        images, targets = make.four_images(masks=spec.has_masks)
        batch = images, [target | {"step_boxes": 11 / 4} for target in targets]
        make.assert_equal_however_split(model, *batch, [(2, 2), (1, 3), (1, 1, 1, 1)])


@pytest.mark.parametrize("num_classes", [0, -1])
def test_no_classes(detector, make, num_classes):
    with pytest.raises(ValueError, match=f"`num_classes` must be at least 1, got {num_classes}"):
        make.build(detector, num_classes=num_classes)


def test_training_needs_targets(detector, make):
    with pytest.raises(AssertionError, match="targets should not be none"):
        make.build(detector).train()(make.two_images()[0])
