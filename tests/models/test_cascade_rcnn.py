"""Cascade R-CNN has three consecutive box heads, compared with loops over the stages."""

import math

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import batched_nms, box_iou, roi_align

WEIGHTS = [(10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15)]
SIZE = (96, 128)
CASCADES = ["cascade_rcnn", "cascade_mask_rcnn"]


def untrained(make, detector: str = "cascade_rcnn", **options) -> nn.Module:
    """Build a tiny detector whose boxes move by up to half their size, differently in each stage."""
    model = make.tiny(detector, min_size=SIZE[0], max_size=SIZE[1], **options)
    for stage, predictor in enumerate(model.roi_heads.box_predictor):
        nn.init.normal_(predictor.bbox_pred.weight, std=0.3)
        nn.init.normal_(predictor.bbox_pred.bias, std=1 + stage)
        nn.init.normal_(predictor.cls_score.weight, std=0.3)
    return model


def pool(maps: dict[str, Tensor], boxes: Tensor, side: int = 7) -> Tensor:
    """Return the features of the boxes of one image, from P2 or P3 by size."""
    out = []
    for box in boxes:
        size = float((box[2] - box[0]) * (box[3] - box[1])) ** 0.5
        level = 3 if size > 112 - 1e-4 else 2
        out.append(roi_align(maps[f"p{level}"], [box[None]], side, 2.0**-level, sampling_ratio=2)[0])
    return torch.stack(out)


def run_stage(model: nn.Module, stage: int, maps: dict[str, Tensor], boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits, box deltas and the refined boxes, clipped to the image."""
    logits, codes = model.roi_heads.box_predictor[stage](model.roi_heads.box_head[stage](pool(maps, boxes)))
    moved = BoxCoder(WEIGHTS[stage]).decode_single(codes, boxes)
    limits = torch.tensor([SIZE[1], SIZE[0]] * 2)
    return logits, codes, moved.clamp(min=0).minimum(limits)


def detect_by_hand(model: nn.Module, maps: dict[str, Tensor], boxes: Tensor, threshold: float) -> dict[str, Tensor]:
    probabilities = []
    for stage in range(3):
        logits, _, boxes = run_stage(model, stage, maps, boxes)
        probabilities.append(logits.exp() / logits.exp().sum(1, keepdim=True))
    scores = sum(probabilities) / 3
    found = [
        (boxes[index], label, scores[index, label])
        for index in range(len(boxes))
        for label in range(1, scores.shape[1])
        if scores[index, label] > threshold and (boxes[index, 2:] - boxes[index, :2] >= 1e-2).all()
    ]
    rows = {
        "boxes": torch.stack([box for box, _, _ in found]),
        "labels": torch.tensor([label for _, label, _ in found]),
        "scores": torch.stack([score for _, _, score in found]),
    }
    keep = batched_nms(rows["boxes"], rows["scores"], rows["labels"], 0.5)[:10]
    return {name: values[keep] for name, values in rows.items()}


@pytest.mark.parametrize("detector", CASCADES)
def test_detections_match_a_loop_over_the_stages(make, detector):
    model = untrained(
        make,
        detector,
        score_threshold=0.3,
        detections_per_image=10,
        rpn_pre_nms_top_n_test=40,
        rpn_post_nms_top_n_test=40,
    ).eval()
    images, _ = make.four_images(SIZE)
    proposals = []
    model.rpn.register_forward_hook(lambda module, inputs, out: proposals.extend(out[0]))
    with torch.no_grad():
        found = model(images)
        batch, _ = model.transform(images)
        for index, ours in enumerate(found):
            maps = model.backbone(batch.tensors[index : index + 1])
            expected = detect_by_hand(model, maps, proposals[index], threshold=0.3)
            assert len(expected["boxes"]) == 10
            if detector == "cascade_mask_rcnn":
                heads = model.roi_heads
                logits = heads.mask_predictor(heads.mask_head(pool(maps, expected["boxes"], 14)))
                masks = torch.stack([row[label] for row, label in zip(logits, expected["labels"], strict=True)])
                expected["masks"] = paste_masks_in_image(masks.sigmoid()[:, None], expected["boxes"], SIZE)
            assert ours.keys() == expected.keys()
            for name, values in ours.items():
                torch.testing.assert_close(values, expected[name], rtol=1e-9, atol=1e-9)


def losses_by_hand(logits: Tensor, codes: Tensor, boxes: Tensor, target: dict, stage: int) -> tuple[float, float]:
    """Return the sums of the cross entropy of all boxes, and of the smooth L1 loss of positive boxes."""
    iou = box_iou(boxes, target["boxes"])
    classifier, box_reg = 0.0, 0.0
    for index, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        best = int(iou[index].argmax()) if len(target["boxes"]) else None
        positive = best is not None and iou[index, best] >= (0.5, 0.6, 0.7)[stage]
        label = int(target["labels"][best]) if positive else 0
        classifier -= logits[index].log_softmax(0)[label].item()
        if positive:
            a1, b1, a2, b2 = target["boxes"][best].tolist()
            w, h = x2 - x1, y2 - y1
            truth = [(a1 + a2 - x1 - x2) / 2 / w, (b1 + b2 - y1 - y2) / 2 / h]
            truth += [math.log((a2 - a1) / w), math.log((b2 - b1) / h)]
            for weight, code, value in zip(WEIGHTS[stage], codes[index].tolist(), truth, strict=True):
                error = abs(code - weight * value)
                box_reg += 4.5 * error**2 if error < 1 / 9 else error - 1 / 18
    return classifier, box_reg


# all of the 32 samples of an image drawn; not all
@pytest.mark.parametrize("full", [32, 400])
def test_losses_match_a_loop_over_the_stages(make, full):
    weights = [1.0, 0.75, 0.5]
    model = untrained(make, stage_loss_weights=weights, box_batch_size_per_image=full)
    for predictor in model.roi_heads.box_predictor:  # slightly, so that some boxes still match their objects
        predictor.bbox_pred.weight.data /= 10
        predictor.bbox_pred.bias.data /= 10
    images, targets = make.four_images(SIZE)
    seen = []
    model.roi_heads.box_roi_pool.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    losses = model(images, targets)
    batch, _ = model.transform(images, targets)
    expected = dict.fromkeys((name for name in losses if name[-1].isdigit()), 0.0)
    positives = [0, 0, 0]
    with torch.no_grad():
        for index, target in enumerate(targets):
            boxes = seen[0][index]
            assert len(boxes) == 32 if full == 32 else len(boxes) < 400
            maps = model.backbone(batch.tensors[index : index + 1])
            for stage in range(3):
                torch.testing.assert_close(seen[stage][index], boxes, rtol=0, atol=1e-9)
                logits, codes, moved = run_stage(model, stage, maps, boxes)
                classifier, box_reg = losses_by_hand(logits, codes, boxes, target, stage)
                expected[f"loss_classifier_{stage + 1}"] += weights[stage] * classifier / full / 4
                expected[f"loss_box_reg_{stage + 1}"] += weights[stage] * box_reg / full / 4
                positives[stage] += box_reg > 0
                boxes = moved
    assert min(positives) > 0, "each stage must have positives"
    assert {name: losses[name].item() for name in expected} == pytest.approx(expected, rel=1e-9)


def test_the_next_stage_has_no_gradient_through_the_boxes(make):
    model = untrained(make)
    losses = model(*make.four_images(SIZE))
    (losses["loss_box_reg_2"] + losses["loss_classifier_2"]).backward()
    grads = [[parameter.grad for parameter in head.parameters()] for head in model.roi_heads.box_predictor]
    assert grads[0] == grads[2] == [None] * 4
    assert all(grad.any() for grad in grads[1])


def test_ground_truth_is_added_only_to_the_first_proposals(make):
    model = untrained(make, box_batch_size_per_image=400)
    images, targets = make.four_images(SIZE)
    seen = []
    model.roi_heads.box_roi_pool.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    model(images, targets)
    for stage, boxes in enumerate(seen):
        for own, target in zip(boxes, targets, strict=True):
            among = (own[:, None] == target["boxes"]).all(2).any(0)
            assert among.all() if stage == 0 else not among.any()


def test_boxes_that_lose_their_size_are_background(make):
    model = untrained(make)
    nn.init.constant_(model.roi_heads.box_predictor[0].bbox_pred.bias, 1e4)  # outside of the image, and far too large
    nn.init.zeros_(model.roi_heads.box_predictor[0].bbox_pred.weight)
    seen = []
    model.roi_heads.box_roi_pool.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    losses = model(*make.four_images(SIZE))
    assert all(loss.isfinite() for loss in losses.values())
    sizes = torch.cat(seen[1])[:, 2:] - torch.cat(seen[1])[:, :2]
    assert not sizes.any()
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    with torch.no_grad():
        assert all(
            values.isfinite().all() for found in model.eval()(make.four_images(SIZE)[0]) for values in found.values()
        )


def test_images_without_objects_or_proposals(make):
    images, targets = make.four_images(SIZE, masks=True)
    model = untrained(make, "cascade_mask_rcnn")
    for least in (1e-3, 1e6):  # pixels of a proposal's side
        model.rpn.min_size = least
        losses = model.train()([images[1]] * 2, [targets[1]] * 2)
        assert all(loss.isfinite() for loss in losses.values())
        assert [losses[f"loss_box_reg_{stage}"].item() for stage in (1, 2, 3)] == [0, 0, 0]
        assert [losses[f"loss_classifier_{stage}"].item() > 0 for stage in (1, 2, 3)] == [least < 1] * 3
        assert losses["loss_mask"].item() == 0
        sum(losses.values()).backward()
    with torch.no_grad():
        found = model.eval()(images)
    assert [len(image["boxes"]) for image in found] == [0] * 4
    assert {tuple(image["masks"].shape) for image in found} == {(0, 1, *SIZE)}


def test_masks_are_trained_on_the_samples_of_the_first_stage(make):
    model = untrained(make, "cascade_mask_rcnn")
    images, targets = make.four_images(SIZE, masks=True)
    heads, seen = model.roi_heads, {"box": [], "mask": []}
    heads.box_roi_pool.register_forward_pre_hook(lambda module, inputs: seen["box"].append(inputs[1]))
    heads.mask_roi_pool.register_forward_pre_hook(lambda module, inputs: seen["mask"].append(inputs[1]))
    model(images, targets)
    (masked,) = seen["mask"]
    for first, boxes, target in zip(seen["box"][0], masked, targets, strict=True):
        positive = (box_iou(first, target["boxes"]) >= 0.5).any(1)
        assert torch.equal(first[positive], boxes)


@pytest.mark.parametrize("detector", CASCADES)
def test_state_dict_keys(make, detector):
    state = make.build(detector, num_classes=5, box_head_channels=24).state_dict()
    plain = make.build("mask_rcnn" if "mask" in detector else "faster_rcnn").state_dict()
    parts = ("roi_heads.box_head.", "roi_heads.box_predictor.")
    assert {key for key in state if not key.startswith(parts)} == {key for key in plain if not key.startswith(parts)}
    shapes = {key.removeprefix("roi_heads."): tuple(state[key].shape) for key in state if key.startswith(parts)}
    expected = {}
    for stage in range(3):
        expected |= {f"box_head.{stage}.fc6.weight": (24, 16 * 49), f"box_head.{stage}.fc6.bias": (24,)}
        expected |= {f"box_head.{stage}.fc7.weight": (24, 24), f"box_head.{stage}.fc7.bias": (24,)}
        expected |= {f"box_predictor.{stage}.cls_score.weight": (6, 24), f"box_predictor.{stage}.cls_score.bias": (6,)}
        expected |= {f"box_predictor.{stage}.bbox_pred.weight": (4, 24), f"box_predictor.{stage}.bbox_pred.bias": (4,)}
    assert shapes == expected


@pytest.mark.parametrize("detector", CASCADES)
@pytest.mark.parametrize("weights", [[1.0, 0.5], [1.0] * 4])
def test_wrong_number_of_weights(make, detector, weights):
    with pytest.raises(ValueError, match=rf"`stage_loss_weights` must have 3 weights, .*, got {len(weights)}: \[1.0, "):
        make.build(detector, stage_loss_weights=weights)
