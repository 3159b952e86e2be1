"""Geometry of sampling locations, against loops, the operator and the geometry of resizing and convolutions."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from dcn import DeformConv2d, deform_conv2d
from engine.insight.capture import SamplingRecord, capture_sampling
from engine.insight.sampling_locations import Frame, SampledLayer, nested_points, sampled_layers, sampling_locations
from models.resize import KINDS, Resize

PAIR = st.tuples(st.integers(1, 3), st.integers(1, 3))
PLACES_CASE = {"kernel": PAIR, "stride": PAIR, "padding": PAIR, "dilation": PAIR, "groups": st.integers(1, 3)}


@given(**PLACES_CASE, seed=st.integers(0, 99))
def test_locations_are_those_of_a_loop(kernel, stride, padding, dilation, groups, seed):
    kh, kw = kernel
    offset = torch.randn(2, 2 * groups * kh * kw, 3, 4, generator=torch.Generator().manual_seed(seed))
    locations = sampling_locations(offset, kernel, stride, padding, dilation)
    assert locations.shape == (2, groups, kh * kw, 3, 4, 2)
    for b, g, ky, kx, row, column in itertools.product(*map(range, (2, groups, kh, kw, 3, 4))):
        point = ky * kw + kx
        dy, dx = offset[b, 2 * (g * kh * kw + point) : 2 * (g * kh * kw + point) + 2, row, column]
        y = row * stride[0] - padding[0] + ky * dilation[0] + dy
        x = column * stride[1] - padding[1] + kx * dilation[1] + dx
        assert locations[b, g, point, row, column].tolist() == pytest.approx([y.item(), x.item()], abs=1e-5)


@pytest.mark.parametrize(("stride", "dilation"), [((1, 1), (1, 2)), ((2, 1), (1, 1)), ((1, 2), (2, 1))])
def test_locations_are_those_the_operator_reads(stride, dilation):
    # an input that holds its own coordinates: a kernel with weight at one point reads its location
    height, width, kernel = 12, 17, (3, 2)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    own = torch.stack([y, x]).double()[None]
    generator = torch.Generator().manual_seed(0)
    out = functional.conv2d(own[:, :1], torch.zeros(1, 1, *kernel).double(), None, stride, 0, dilation).shape[2:]
    offset = torch.rand(1, 12, *out, generator=generator, dtype=torch.float64)
    locations = sampling_locations(offset, kernel, stride, (0, 0), dilation)[0, 0]
    inside = ((locations >= 0) & (locations <= torch.tensor([height - 1, width - 1]))).all(-1)
    assert inside.float().mean() > 0.7
    for point in range(6):
        weight = torch.zeros(2, 2, 6, dtype=torch.float64)
        weight[0, 0, point] = weight[1, 1, point] = 1
        read = deform_conv2d(own, offset, weight.unflatten(2, kernel), stride=stride, dilation=dilation)[0]
        seen = inside[point]
        torch.testing.assert_close(read.movedim(0, -1)[seen], locations[point][seen])


def prepared(height, width, transform):
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([y, x, torch.zeros_like(x)]).float()
    return image, transform([image])[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("height", "width"), [(80, 120), (37, 51), (150, 40), (64, 64)])
def test_locations_of_the_network_and_of_the_image(kind, height, width):
    # an image that holds its own coordinates: after the detector's resize each pixel holds its source coordinates
    transform = Resize(kind, (64,), 200).transform([0.0] * 3, [1.0] * 3).eval()
    image, images = prepared(height, width, transform)
    frame = Frame.of(image, images, transform.margins((height, width)))
    assert frame.image == (height, width)
    assert (frame.origin != (0, 0)) == (kind == "letterbox" and height != width)
    rows, columns = frame.resized
    locations = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).double() + torch.tensor(frame.origin)
    of_image = frame.to_image(locations)
    inside = ((of_image >= 0) & (of_image <= torch.tensor([height - 1, width - 1]))).all(-1)
    read = frame.cut(images.tensors)[0, :2].flatten(1).T.double()
    torch.testing.assert_close(of_image[inside], read[inside], atol=1e-3, rtol=0)
    torch.testing.assert_close(frame.to_network(of_image), locations)
    left, right, bottom, top = frame.extent(frame.resized)
    if frame.resized == frame.padded:
        assert (left, right, bottom, top) == pytest.approx((-0.5, width - 0.5, height - 0.5, -0.5))


@pytest.mark.parametrize("stride", [4, 8, 16, 32])
def test_extent_of_a_map(stride):
    frame = Frame((50, 70), (100, 140), (128, 160))
    size = (128 // stride, 160 // stride)
    assert frame.stride(size).tolist() == [stride, stride]
    left, right, bottom, top = frame.extent(size)
    # pixel i of a map is at i * stride of the network's input, which is twice as large as the image
    for index in range(size[1]):
        middle = left + (index + 0.5) * (right - left) / size[1]
        assert middle == pytest.approx((index * stride + 0.5) / 2 - 0.5)
    for index in range(size[0]):
        middle = top + (index + 0.5) * (bottom - top) / size[0]
        assert middle == pytest.approx((index * stride + 0.5) / 2 - 0.5)


@pytest.mark.parametrize("layer_stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("stride", [4, 8, 16, 32])
def test_a_hand_placed_offset(stride, dilation, layer_stride):
    # the network's input is twice the image; `stride` is that of the layer's input
    frame = Frame((256, 320), (512, 640), (512, 640))
    layer = DeformConv2d(4, 4, 3, stride=layer_stride, padding=dilation, dilation=dilation)
    out = (512 // stride // layer_stride, 640 // stride // layer_stride)
    offset, mask = torch.zeros(1, 18, *out), torch.rand(1, 9, *out)
    offset[0, 2 * 5 : 2 * 5 + 2] = torch.tensor([3.0, -2.0])[:, None, None]  # of the point right of the middle
    seen = {"conv": SamplingRecord(offset, mask, (512 // stride, 640 // stride))}
    (sampled,) = sampled_layers(torch.nn.ModuleDict({"conv": layer}), seen, frame)
    (regular,) = sampled_layers(torch.nn.ModuleDict({"conv": layer}), seen, frame, regular=True)
    row, column = 4, 5
    y, x = frame.to_image(sampled.locations)[5, row, column].tolist()
    assert y == pytest.approx(((row * layer_stride + 3) * stride + 0.5) / 2 - 0.5)
    assert x == pytest.approx(((column * layer_stride + dilation - 2) * stride + 0.5) / 2 - 0.5)
    torch.testing.assert_close(sampled.weights, mask[0].double())
    assert (regular.weights == 1).all()
    assert sampled.stride.tolist() == [stride * layer_stride] * 2
    # the middle point is not moved, and is at the layer's output pixel
    middle = torch.tensor([row, column]) * stride * layer_stride
    assert sampled.locations[4, row, column].tolist() == sampled.centre(torch.tensor([row, column])).tolist()
    assert sampled.locations[4, row, column].tolist() == middle.tolist()
    assert sampled.at(middle + 0.4 * stride * layer_stride).tolist() == [row, column]
    assert sampled.at(torch.tensor([-99.0, 9e9])).tolist() == [0, out[1] - 1]
    moved = (sampled.locations - regular.locations)[5, row, column].tolist()
    assert moved == [3 * stride, -2 * stride]


def test_masks_of_the_regular_grid_are_those_of_the_start():
    frame = Frame((32, 64), (32, 64), (32, 64))
    for scale in (1.0, 2.0):
        layer = DeformConv2d(2, 2, (3, 1), padding=(1, 0), mask_scale=scale)
        seen = {"conv": SamplingRecord(torch.rand(1, 6, 8, 16), torch.rand(1, 3, 8, 16), (8, 16))}
        (regular,) = sampled_layers(torch.nn.ModuleDict({"conv": layer}), seen, frame, regular=True)
        assert (regular.weights == scale / 2).all()
    layer = DeformConv2d(2, 2, (3, 1), padding=(1, 0), modulation=False)
    seen = {"conv": SamplingRecord(torch.rand(1, 6, 8, 16), None, (8, 16))}
    (sampled,) = sampled_layers(torch.nn.ModuleDict({"conv": layer}), seen, frame)
    assert (sampled.weights == 1).all()


def random_layer(name, stride, size, generator, points=9, spread=20.0):
    rows, columns = size
    grid = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), -1).double() * stride
    locations = grid + spread * torch.randn(points, rows, columns, 2, generator=generator, dtype=torch.float64)
    weights = 2 * torch.rand(points, rows, columns, generator=generator, dtype=torch.float64)
    return SampledLayer(name, torch.tensor([stride] * 2).double(), torch.zeros(2).double(), locations, weights)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("spread", [2.0, 40.0])
def test_nested_points_as_a_recursion_finds_them(depth, spread):
    generator = torch.Generator().manual_seed(depth)
    layers = [
        random_layer(f"layer{n}", stride, (160 // stride, 256 // stride), generator, spread=spread)
        for n, stride in enumerate((8, 16, 32))
    ][-depth:]

    def follow(level, y, x, weight):
        layer = layers[level]
        stride = layer.stride[0].item()
        row, column = round(y / stride), round(x / stride)
        if not (0 <= row < layer.locations.shape[1] and 0 <= column < layer.locations.shape[2]):
            return []
        points = [
            (*layer.locations[k, row, column].tolist(), weight * layer.weights[k, row, column].item()) for k in range(9)
        ]
        return points if level == 0 else [point for p in points for point in follow(level - 1, *p)]

    expected = [(y, x, weight ** (1 / depth)) for y, x, weight in follow(depth - 1, 70.0, 130.0, 1.0)]
    locations, weights = nested_points(layers, torch.tensor([70.0, 130.0]).double())
    found = sorted(torch.cat([locations, weights[:, None]], 1).tolist())
    torch.testing.assert_close(torch.tensor(found), torch.tensor(sorted(map(list, expected))))
    if spread == 2.0:
        assert len(locations) == 9**depth
    elif depth > 1:
        assert len(locations) < 9**depth


def test_layers_of_a_network_come_in_the_order_in_which_they_ran():
    network = torch.nn.Sequential(DeformConv2d(3, 4, 3, stride=2, padding=1), DeformConv2d(4, 2, 3, padding=1))
    with capture_sampling(network) as seen, torch.no_grad():
        network(torch.rand(1, 3, 32, 64))
    first, second = sampled_layers(network, seen, Frame((16, 32), (32, 64), (32, 64)))
    assert (first.name, second.name) == ("0", "1")
    assert first.stride.tolist() == second.stride.tolist() == [2, 2]
    assert first.locations.shape == (9, 16, 32, 2)
    torch.testing.assert_close(first.locations[:, 3, 5], second.locations[:, 3, 5] * 0.5 + torch.tensor([3.0, 5.0]))


def test_resized_conv_centres_are_where_a_convolution_sees_an_impulse():
    # three convolutions of stride 2 and a padding of half their kernel, as in a ResNet
    inputs = torch.zeros(1, 1, 64, 96, requires_grad=True)
    maps = inputs
    for kernel in (7, 3, 3):
        maps = functional.conv2d(maps, torch.ones(1, 1, kernel, kernel), stride=2, padding=kernel // 2)
    (gradient,) = torch.autograd.grad(maps[0, 0, 4, 6], inputs)
    frame = Frame((64, 96), (64, 96), (64, 96))
    stride = frame.stride(maps.shape[2:])
    for axis, index in ((0, 4), (1, 6)):
        mass = gradient[0, 0].sum(1 - axis)
        middle = (mass * torch.arange(len(mass))).sum() / mass.sum()
        assert middle.item() == pytest.approx((index * stride[axis]).item(), abs=1e-3)
