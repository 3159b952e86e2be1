"""FCOS compared with torchvision and formulas, and its deformable head; see also test_detectors.py."""

import math

import pytest
import torch
from torchvision.models.detection import FCOS, fcos_resnet50_fpn

from dcn import DeformConv2d
from models import resnet
from models.fpn import map_strides
from tests.detectors import assemble

BOXES = torch.tensor([[10.0, 20, 75, 90], [60, 30, 130, 70]])
LABELS = torch.tensor([2, 3])


def ours(**options) -> torch.nn.Module:
    fpn = {"levels": [3, 4, 5], "extra_levels": "p6p7"}
    return assemble("fcos", resnet("resnet50", norm="bn"), fpn=fpn, min_size=96, max_size=160, **options).double()


def dcn_names(model) -> list[str]:
    return [name for name, module in model.head.named_modules() if isinstance(module, DeformConv2d)]


@pytest.fixture(scope="module")
def theirs():
    """Return torchvision's detector with a head that has detections, but none of class 0, as after training."""
    torch.manual_seed(0)
    model = fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4, min_size=96, max_size=160)
    head = model.head.classification_head
    torch.nn.init.normal_(head.cls_logits.weight, std=0.1)
    with torch.no_grad():
        head.cls_logits.bias[:] = torch.tensor([-30.0, -2, -2, -2])
        model.head.regression_head.bbox_reg.bias[:] = 2
    return model.double()


@pytest.mark.parametrize("options", [{}, {"num_dcn_convs": 3}, {"num_dcn_convs": 4, "dcn_backend": "reference"}])
def test_torchvisions_state_gives_its_detections_and_losses(theirs, options):
    model = ours(**options)
    missing = model.load_state_dict(theirs.state_dict(), strict=not options).missing_keys
    assert all(".conv_offset." in key for key in missing)
    random = torch.Generator().manual_seed(0)
    image, fitting = (torch.rand(3, *size, generator=random, dtype=torch.float64) for size in ((120, 150), (96, 160)))
    with torch.no_grad():
        (found,), (expected,) = model.eval()([image]), theirs.eval()([image])
    assert len(expected["boxes"]) > 5
    assert found.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-9 if options else 0, atol=0)

    # our detector does not resize training images, so both get an image that needs neither resizing nor padding
    target = {"boxes": BOXES.double(), "labels": LABELS}
    losses, expected = model.train()([fitting], [target]), theirs.train()([fitting], [target])
    assert {f"loss_{name}": loss.item() for name, loss in expected.items()} == pytest.approx(
        {name: loss.item() for name, loss in losses.items()}, rel=1e-9 if options else 0
    )


def test_losses_are_torchvisions_of_each_image(make):
    """They are not the losses of the batch, in which images with more positive locations have a higher weight."""
    model = make.tiny("fcos")
    images, targets = make.four_images()
    losses = model(images, targets)
    single = []
    for image, target in zip(images, targets, strict=True):
        prepared = model.transform([image])[0]
        features = [*model.backbone(prepared.tensors).values()]
        outputs = model.head(features)
        counts = [map_.shape[2] * map_.shape[3] for map_ in features]
        anchors = model.anchor_generator(prepared, features)
        # torchvision's head instead of ours, on the same outputs
        head, model.head = model.head, PlainHead(model.head)
        single.append(FCOS.compute_loss(model, [target], outputs, anchors, counts))
        model.head = head
    for name, loss in losses.items():
        expected = [one[name.removeprefix("loss_")].item() for one in single]
        assert loss.item() == pytest.approx(sum(expected) / 4, rel=1e-9)
        assert len({round(value, 6) for value in expected}) >= 3


class PlainHead(torch.nn.Module):
    """The loss of torchvision's head, without our override."""

    def __init__(self, head) -> None:
        super().__init__()
        self.inner = head

    def compute_loss(self, *arguments):
        return super(type(self.inner), self.inner).compute_loss(*arguments)


def test_losses_by_hand(make):
    """One box on maps of strides 4, 8 and 16: positive locations, focal loss, centerness and GIoU."""
    model = make.tiny("fcos")
    box = (21.0, 18.0, 61.0, 50.0)  # farthest sides 20 to 40: the map of stride 8 detects sides up to 64
    target = {"boxes": torch.tensor([box], dtype=torch.float64), "labels": torch.tensor([2])}
    outputs = {}
    model.head.register_forward_hook(lambda module, inputs, output: outputs.update(output))
    losses = model([torch.rand(3, 96, 128, dtype=torch.float64)], [target])
    logits, codes, centre = (outputs[key][0] for key in ("cls_logits", "bbox_regression", "bbox_ctrness"))
    focal, giou, bce, count, place = 0.0, 0.0, 0.0, 0, 0
    middle = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    levels = ((4, 0, 32), (8, 32, 64), (16, 64, math.inf))
    for stride, least, most in levels:
        for row in range(96 // stride):
            for column in range(128 // stride):
                x, y = column * stride, row * stride
                sides = [x - box[0], y - box[1], box[2] - x, box[3] - y]
                near = max(abs(x - middle[0]), abs(y - middle[1])) < 1.5 * stride
                detects = near and min(sides) > 0 and least < max(sides) < most
                p = logits[place].sigmoid()
                for label in range(4):
                    q = p[label].item()
                    wanted = detects and label == 2
                    focal -= 0.25 * (1 - q) ** 2 * math.log(q) if wanted else 0.75 * q**2 * math.log(1 - q)
                if detects:
                    count += 1
                    left, top, right, bottom = (stride * codes[place]).tolist()
                    giou += 1 - generalized_iou((x - left, y - top, x + right, y + bottom), box)
                    ratios = [min(pair) / max(pair) for pair in (sides[0::2], sides[1::2])]
                    truth = math.sqrt(ratios[0] * ratios[1])
                    q = centre[place].sigmoid().item()
                    bce -= truth * math.log(q) + (1 - truth) * math.log(1 - q)
                place += 1
    assert place == len(logits)
    assert count > 3
    assert losses["loss_classification"].item() == pytest.approx(focal / count, rel=1e-6)
    assert losses["loss_bbox_regression"].item() == pytest.approx(giou / count, rel=1e-6)
    assert losses["loss_bbox_ctrness"].item() == pytest.approx(bce / count, rel=1e-6)


def generalized_iou(a, b) -> float:
    """https://arxiv.org/abs/1902.09630."""
    area = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (a, b)]
    inner = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    union = sum(area) - inner
    return inner / union - (hull - union) / hull


def test_class_0_is_never_detected(make):
    model = make.build("fcos", score_threshold=0.0).eval()
    with torch.no_grad():
        model.head.classification_head.cls_logits.bias[0] = 20
        for found in model(make.two_images()[0]):
            assert len(found["labels"]) == 100
            assert found["labels"].min() == 1
            assert found["scores"].max() < 0.5


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_the_last_convolutions_of_both_towers_are_deformable(make, count):
    model = make.build("fcos", num_dcn_convs=count)
    convs = [0, 3, 6, 9][4 - count :]
    assert dcn_names(model) == [f"{part}_head.conv.{i}" for part in ("classification", "regression") for i in convs]
    plain = make.build("fcos").state_dict()
    assert plain.keys() == {key for key in model.state_dict() if "head" not in key or ".conv_offset." not in key}


def test_options_arrive(make):
    model = make.build(
        "fcos",
        num_classes=5,
        center_sampling_radius=2.5,
        score_threshold=0.3,
        nms_threshold=0.7,
        topk_candidates=33,
        detections_per_image=9,
        num_dcn_convs=1,
        modulation=False,
        offset_groups=4,
        mask_scale=1.5,
        dcn_backend="reference",
    )
    assert model.center_sampling_radius == 2.5
    assert (model.score_thresh, model.nms_thresh, model.topk_candidates, model.detections_per_img) == (0.3, 0.7, 33, 9)
    assert model.head.classification_head.cls_logits.out_channels == 6
    for name in dcn_names(model):
        layer = model.head.get_submodule(name)
        assert (layer.modulation, layer.offset_groups, layer.mask_scale, layer.backend) == (False, 4, 1.5, "reference")


def test_defaults_are_those_of_torchvision(theirs):
    model = ours()
    for name in ("center_sampling_radius", "score_thresh", "nms_thresh", "topk_candidates", "detections_per_img"):
        assert getattr(model, name) == getattr(theirs, name)
    assert model.anchor_generator.sizes == theirs.anchor_generator.sizes


def test_ranges_follow_the_strides_of_the_pyramid(make):
    model = assemble("fcos", resnet("resnet18"), fpn={"levels": [2, 3, 4], "out_channels": 64})
    assert model.anchor_generator.sizes == ((4,), (8,), (16,), (32,))
    assert [*map_strides(model.backbone).values()] == [4, 8, 16, 32]


@pytest.mark.parametrize("channels", [16, 32, 48, 100])
def test_invalid_pyramid_channels_for_the_group_norms(channels):
    message = f"`?.*multiple of 32 and at least 64, .*, got {channels}"
    with pytest.raises(ValueError, match=message):
        assemble("fcos", resnet("resnet18"), fpn={"out_channels": channels})


def test_the_smallest_map_is_one_pixel():
    """Group norm of one image with one pixel works with the smallest valid number of channels."""
    fpn = {"levels": [3, 4, 5], "out_channels": 64, "extra_levels": "p6p7"}
    model = assemble("fcos", resnet("resnet18", norm="gn"), fpn=fpn, min_size=64, max_size=64).train()
    assert model([torch.rand(3, 64, 64)], [{"boxes": BOXES[:1] / 2, "labels": LABELS[:1]}])


@pytest.mark.parametrize("count", [-1, 5])
def test_invalid_number_of_deformable_convolutions(make, count):
    with pytest.raises(
        ValueError, match=f"`num_dcn_convs` must be from 0 to 4, the convolutions of a tower, got {count}"
    ):
        make.build("fcos", num_dcn_convs=count)
