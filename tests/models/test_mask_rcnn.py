"""Mask R-CNN equals torchvision's, with a mask loss that is a mean over images."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign, box_iou, roi_align

from models.sampling import ImageSampler

MASK_SIDE = 28


def theirs(model: nn.Module) -> MaskRCNN:
    """Return torchvision's detector with the weights of one of `make.tiny`, on the same pyramid."""

    def pool(side: int) -> MultiScaleRoIAlign:
        return MultiScaleRoIAlign(["p2", "p3"], side, sampling_ratio=2)

    box_head = model.roi_heads.box_head
    built = MaskRCNN(
        copy.deepcopy(model.backbone),
        min_size=100,
        max_size=150,
        rpn_anchor_generator=model.rpn.anchor_generator,
        rpn_pre_nms_top_n_train=100,
        rpn_post_nms_top_n_train=100,
        rpn_batch_size_per_image=64,
        box_roi_pool=pool(7),
        box_head=copy.deepcopy(box_head),
        box_predictor=copy.deepcopy(model.roi_heads.box_predictor),
        box_batch_size_per_image=32,
        box_score_thresh=0.2,
        box_detections_per_img=30,
        mask_roi_pool=pool(14),
        mask_head=MaskRCNNHeads(16, [16] * 4, 1),
        mask_predictor=MaskRCNNPredictor(16, 16, 4),
        _skip_resize=True,
    ).double()
    built.load_state_dict(model.state_dict())  # strict: the same keys
    return built


@pytest.fixture
def model(make) -> nn.Module:
    options = {"min_size": 100, "max_size": 150, "score_threshold": 0.2, "detections_per_image": 30}
    return make.tiny("mask_rcnn", **options)


def test_detections_and_masks_are_those_of_torchvision(model, make):
    images = [
        image.repeat(1, 1, 2) for image in make.four_images()[0]
    ]  # scaled down, with masks pasted at the original size
    with torch.no_grad():
        found, expected = model.eval()(images), theirs(model).eval()(images)
    for ours, other, image in zip(found, expected, images, strict=True):
        assert list(ours) == ["boxes", "labels", "scores", "masks"]
        assert all(torch.equal(value, other[name]) for name, value in ours.items())
        assert len(ours["boxes"]) == 30
        assert tuple(ours["masks"].shape) == (30, 1, *image.shape[-2:])
        assert ours["masks"].amax((1, 2, 3)).min() > 0.2


def drawing_as(sampler: ImageSampler, target: dict) -> Callable:
    """Return a sampler with torchvision's signature, for one image with full samples."""

    def draw(labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        (mask,) = sampler(labels, [target])
        assert mask.sum() == sampler.batch_size_per_image
        return [mask & (labels[0] >= 1)], [mask & (labels[0] == 0)]

    return draw


def test_losses_of_one_image_are_those_of_torchvision(model, make, float64_labels):
    images, targets = make.four_images(masks=True)
    other = theirs(model).train()
    for index in (0, 2, 3):
        expected = model(images[index : index + 1], targets[index : index + 1])
        for part in ("rpn", "roi_heads"):  # which draw the same samples
            getattr(other, part).fg_bg_sampler = drawing_as(getattr(model, part).sampler, targets[index])
        found = other(images[index : index + 1], targets[index : index + 1])
        assert found == expected
        assert found["loss_mask"] > 0


def watch_masks(model: nn.Module) -> dict[str, list]:
    """Return the boxes of the mask head and its logits, of all passes."""
    seen = {"boxes": [], "logits": []}
    model.roi_heads.mask_roi_pool.register_forward_pre_hook(lambda module, inputs: seen["boxes"].append(inputs[1]))
    model.roi_heads.mask_predictor.register_forward_hook(lambda module, inputs, out: seen["logits"].append(out))
    return seen


def by_formula(logits: Tensor, boxes: Tensor, target: dict[str, Tensor]) -> Tensor:
    """Return the mean over boxes and pixels of the binary cross entropy with the mask of the best matching object."""
    best = box_iou(boxes, target["boxes"]).argmax(1)
    cut = [
        roi_align(target["masks"][index][None, None].double(), [box[None]], MASK_SIDE)[0, 0]
        for index, box in zip(best, boxes, strict=True)
    ]
    own = torch.stack([row[label] for row, label in zip(logits, target["labels"][best], strict=True)])
    truth = torch.stack(cut)
    return -(truth * logsigmoid(own) + (1 - truth) * logsigmoid(-own)).mean()


def test_loss_of_masks_by_formula(model, make):
    images, targets = make.four_images(masks=True)
    seen = watch_masks(model)
    loss = model(images, targets)["loss_mask"]
    (boxes,), (logits,) = seen.values()
    counts = [len(own) for own in boxes]
    assert counts[1] == 0, "an image without objects"
    assert len({*counts}) > 2, "otherwise the mean over all samples would be the same"
    for own, target in zip(boxes, targets, strict=True):
        assert (box_iou(own, target["boxes"]) >= 0.5).any(1).all()
    terms = [
        by_formula(own_logits, own_boxes, target) if len(own_boxes) else 0
        for own_logits, own_boxes, target in zip(logits.split(counts), boxes, targets, strict=True)
    ]
    assert loss.item() == pytest.approx(sum(terms).item() / 4, rel=1e-12)


def test_images_without_objects(model, make):
    images, targets = make.four_images(masks=True)
    losses = model([images[1]] * 2, [targets[1]] * 2)
    assert losses["loss_mask"].item() == 0
    sum(losses.values()).backward()
    heads = model.roi_heads
    for parameter in (*heads.mask_head.parameters(), *heads.mask_predictor.parameters()):
        assert parameter.grad is not None, "distributed training waits for each parameter"
        assert not parameter.grad.any()


def test_targets_need_masks(model, make):
    with pytest.raises(ValueError, match="masks"):
        model(*make.four_images())


@pytest.mark.parametrize("detector", ["mask_rcnn", "cascade_mask_rcnn"])
def test_options_of_masks_arrive(make, detector):
    heads = make.build(detector, mask_head_channels=24, roi_canonical_size=56, roi_aligned=True).roi_heads
    assert heads.mask_predictor.conv5_mask.in_channels == 24
    for pool in (heads.box_roi_pool, heads.mask_roi_pool):
        assert (pool.aligned, pool.sampling_ratio, pool.map_levels.s0) == (True, 0, 56)
    heads = make.build(detector, roi_sampling_ratio=3).roi_heads
    for pool in (heads.box_roi_pool, heads.mask_roi_pool):
        assert (pool.aligned, pool.sampling_ratio, pool.map_levels.s0) == (False, 3, 224)
    assert heads.mask_predictor.mask_fcn_logits.in_channels == 256
