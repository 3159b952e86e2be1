"""Anchors: torchvision's, and exact ones that equal the formulas of other frameworks."""

import math

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from models.anchors import Float32Anchors, make_anchors
from models.fpn import map_strides

SIZES, RATIOS = ((32,), (64,)), ((0.5, 1.0),) * 2
STRIDES = {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64, "p7": 128}
RETINA_SIZES = [[size * 2 ** (step / 3) for step in range(3)] for size in (32, 64, 128, 256, 512)]
# sizes of padded images; the maps of several levels are not the image divided by the stride
IMAGES = [(800, 1344), (832, 1088), (96, 160), (32, 32), (1333, 800)]


def maps_of(image: tuple[int, int], levels: list[str]) -> tuple[ImageList, list[torch.Tensor]]:
    """Return a batch of one image, and maps of the sizes that strided convolutions give them."""
    maps, size = {}, image
    for level in STRIDES:
        size = tuple(math.ceil(side / (4 if level == "p2" else 2)) for side in size)
        maps[level] = torch.zeros(1, 2, *size)
    return ImageList(torch.zeros(1, 3, *image), [image]), [maps[level] for level in levels]


def by_size(maps, strides, sizes, ratios):
    """detectron2's and PaddleDetection's anchors: an offset of 0, anchors of a location by size, then by ratio."""
    anchors = []
    for level, stride, own in zip(maps, strides, sizes, strict=True):
        for row in range(level.shape[2]):
            for column in range(level.shape[3]):
                for size in own:
                    for ratio in ratios:
                        width = math.sqrt(size**2 / ratio)
                        height = ratio * width
                        x, y = column * stride, row * stride
                        anchors.append([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
    return anchors


def by_ratio(maps, strides, base_scale, octaves, ratios):
    """mmdetection's anchors: base size = stride, a centre offset of 0, by ratio, then by scale."""
    anchors = []
    for level, stride in zip(maps, strides, strict=True):
        for row in range(level.shape[2]):
            for column in range(level.shape[3]):
                for ratio in ratios:
                    for octave in range(octaves):
                        scale = base_scale * 2 ** (octave / octaves)
                        width, height = stride * scale / math.sqrt(ratio), stride * scale * math.sqrt(ratio)
                        x, y = column * stride, row * stride
                        anchors.append([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
    return anchors


def ratio_first(anchors: list[list[float]], sizes: int, ratios: int) -> torch.Tensor:
    """Reorder the anchors of each location from size-major to ratio-major order."""
    return torch.tensor(anchors).view(-1, sizes, ratios, 4).transpose(1, 2).reshape(-1, 4)


@pytest.mark.parametrize("image", IMAGES, ids=str)
def test_exact_anchors_of_the_rpn_are_those_of_other_frameworks(image):
    ratios, levels = [0.5, 1.0, 2.0], ["p2", "p3", "p4", "p5", "p6"]
    images, maps = maps_of((image[0] // 4, image[1] // 4), levels)
    strides, sizes = [STRIDES[level] for level in levels], [[32], [64], [128], [256], [512]]
    (found,) = make_anchors("exact", sizes, ratios, strides)(images, maps)
    expected = {
        "detectron2": ratio_first(by_size(maps, strides, sizes, ratios), 1, 3),
        "mmdetection": torch.tensor(by_ratio(maps, strides, 8, 1, ratios)),
    }
    for anchors in expected.values():
        torch.testing.assert_close(found, anchors, rtol=0, atol=1e-4)


@pytest.mark.parametrize("image", IMAGES, ids=str)
def test_exact_anchors_of_retinanet_are_those_of_other_frameworks(image):
    ratios, levels = [0.5, 1.0, 2.0], ["p5", "p6", "p7"]
    images, maps = maps_of(image, levels)
    strides, sizes = [STRIDES[level] for level in levels], RETINA_SIZES[2:]
    (found,) = make_anchors("exact", sizes, ratios, strides)(images, maps)
    expected = {
        "detectron2": ratio_first(by_size(maps, strides, sizes, ratios), 3, 3),
        "mmdetection": torch.tensor(by_ratio(maps, strides, 4, 3, ratios)),
    }
    for anchors in expected.values():
        torch.testing.assert_close(found, anchors, rtol=0, atol=2e-4)


def test_p7_of_torchvision_is_far_from_the_exact_position():
    """The map of P7 has 7 x 11 locations: 800 // 7 = 114 and 1344 // 11 = 122 instead of 128."""
    images, maps = maps_of((800, 1344), ["p7"])
    sizes, ratios = [[512]], [1.0]
    exact, rounded = (make_anchors(kind, sizes, ratios, [128])(images, maps)[0] for kind in ("exact", "torchvision"))
    assert maps[0].shape[2:] == (7, 11)
    assert (exact - rounded)[-1].abs().tolist() == [60, 84, 60, 84]


def test_torchvisions_anchors_have_whole_pixels():
    images, maps = maps_of((800, 1344), ["p3", "p6"])
    (found,) = make_anchors("torchvision", [[32, 40.3], [64, 80.6]], [0.5, 2.0], [8, 64])(images, maps)
    (expected,) = AnchorGenerator(((32, 40), (64, 80)), ((0.5, 2.0),) * 2)(images, maps)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", ["exact", "torchvision"])
def test_anchors_of_half_precision_maps(kind):
    images = ImageList(torch.zeros(2, 3, 800, 1312), [(800, 1300), (790, 1312)])
    maps = [torch.zeros(2, 4, 100, 164), torch.zeros(2, 4, 50, 82)]
    expected = make_anchors(kind, SIZES, RATIOS[0], [8, 16])(images, maps)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        found = make_anchors(kind, SIZES, RATIOS[0], [8, 16])(images, [level.to(dtype) for level in maps])
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert make_anchors(kind, SIZES, RATIOS[0], [8, 16])(images, [m.double() for m in maps])[0].dtype == torch.float64


def test_torchvisions_generator_is_inexact_in_half_precision():
    images = ImageList(torch.zeros(1, 3, 800, 1312), [(800, 1312)])
    maps = [torch.zeros(1, 4, 100, 164).bfloat16(), torch.zeros(1, 4, 50, 82).bfloat16()]
    coarse, fine = (kind(SIZES, RATIOS)(images, maps)[0] for kind in (AnchorGenerator, Float32Anchors))
    assert (coarse.float() - fine).abs().max() >= 2, "torchvision's anchors are several pixels off"


def test_unknown_kind():
    with pytest.raises(ValueError, match="unknown anchors 'whole', known: exact, torchvision"):
        make_anchors("whole", SIZES, RATIOS[0], [8, 16])


@pytest.mark.parametrize("detector", ["faster_rcnn", "mask_rcnn", "cascade_rcnn", "cascade_mask_rcnn", "retinanet"])
def test_the_levels_of_a_detector_have_fixed_strides(make, detector):
    """An image of 96 x 64 pixels has maps of 24, 12, 6, 3 and 2 rows."""
    model = make.build(detector, anchors="exact", aspect_ratios=[1.0]).eval()
    generator = model.anchor_generator if detector == "retinanet" else model.rpn.anchor_generator
    assert generator.strides == [*map_strides(model.backbone).values()] == [4, 8, 16, 32, 64]
    seen = []
    generator.register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    with torch.no_grad():
        model([torch.rand(3, 96, 64)])
    centre = (seen[0][-1, :2] + seen[0][-1, 2:]) / 2
    assert centre.tolist() == [0, 64]  # the last location of the last level, which has 2 rows and 1 column


def test_the_kind_changes_losses_and_gradients(make, formula_weights):
    """Both kinds give gradients to the same parameters, and other losses."""
    found = {}
    for kind in ("exact", "torchvision"):
        model = formula_weights(make.tiny("retinanet", anchors=kind))
        losses = model(*make.four_images())
        sum(losses.values()).backward()
        gradients = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        found[kind] = (losses["loss_bbox_regression"].item(), gradients)
    assert found["exact"][0] != pytest.approx(found["torchvision"][0], rel=1e-4)
    assert found["exact"][1] == found["torchvision"][1]


@pytest.mark.parametrize("kind", ["exact", "torchvision"])
def test_detectors_without_data_have_anchors(kind):
    """A network on the "meta" device counts parameters; its anchors are real, as torchvision's are."""
    with torch.device("meta"):
        anchors = make_anchors(kind, SIZES, RATIOS[0], [8, 16])
    assert [level.device.type for level in anchors.cell_anchors] == ["cpu", "cpu"]
