"""Rendered figures: dots, maps and arrows at the right pixels, for all kinds of networks and images."""

import colorsys
import copy
import math

import pytest
import torch
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from scipy import ndimage
from torch import nn

from dcn import DeformConv2d
from engine.building.model import build_model
from engine.config.loading import load_config
from engine.insight import maps, sampling_points
from engine.insight.canvas import WIDEST, colour_bar, panels, render, show_image
from engine.insight.capture import SamplingRecord
from engine.insight.figures import box_centres, dcn_figures
from engine.insight.maps import draw_masks, draw_offsets, draw_receptive_fields
from engine.insight.receptive import ReceptiveField
from engine.insight.sampling_locations import Frame, sampled_layers
from engine.insight.sampling_points import draw_sampling_points

CPU = torch.device("cpu")
ALL = {"receptive_field", "sampling_points", "masks", "offsets"}
# colour of the dots with the largest weight, and of nothing else
BRIGHTEST = torch.tensor(colormaps["plasma"](1.0)[:3]).mul(255).round()


def sampled(stride, dilation, offset, mask=None, *, frame, layer_stride=1):
    """A layer that samples by `offset` `(18,)` everywhere, and the same on the regular grid."""
    layer = DeformConv2d(4, 4, 3, stride=layer_stride, padding=dilation, dilation=dilation)
    out = [size // stride // layer_stride for size in frame.padded]
    seen = {
        "layer3.0.conv2": SamplingRecord(
            offset[None, :, None, None].expand(1, 18, *out),
            torch.zeros(1, 9, *out) if mask is None else mask[None],
            tuple(size // stride for size in frame.padded),
        )
    }
    model = nn.ModuleDict({"layer3": nn.ModuleDict({"0": nn.ModuleDict({"conv2": layer})})})
    return sampled_layers(model, seen, frame), sampled_layers(model, seen, frame, regular=True)


def box_of(found):
    rows, columns = (found.any(axis).nonzero().flatten() for axis in (1, 0))
    return rows[0].item(), rows[-1].item() + 1, columns[0].item(), columns[-1].item() + 1


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("stride", [4, 8, 16, 32])
def test_a_hand_placed_offset_is_drawn_at_its_pixel(stride, dilation):
    # the network's input is twice the image, and padded
    padded = 24 * stride, 32 * stride
    height, width = padded[0] // 2 - 4, padded[1] // 2 - 10
    frame = Frame((height, width), (2 * height, 2 * width), padded)
    offset, mask = torch.zeros(18), torch.zeros(9, 24, 32)
    offset[2 * 5 : 2 * 5 + 2] = torch.tensor([3.0, -2.0])  # of the point right of the middle
    mask[5] = 2.0
    layers, regular = sampled(stride, dilation, offset, mask, frame=frame)
    row, column = 9, 13
    pixel = ((column * stride + 0.5) / 2 - 0.5, (row * stride + 0.5) / 2 - 0.5)
    image = torch.tensor([0, 0, 255], dtype=torch.uint8)[:, None, None].expand(3, height, width)
    rendered = draw_sampling_points(image, [pixel], layers, regular, frame, has_masks=False)

    # of the two panels the right one; the image is where it is blue, which is pale here
    half = rendered[:, :, rendered.shape[2] // 2 :].int()
    top, bottom, left, right = box_of(half[2] - half[0] > 60)
    dots = ((half - BRIGHTEST[:, None, None]).abs() <= 8).all(0).nonzero().float()
    assert 10 < len(dots) < 200
    drawn_y, drawn_x = dots.mean(0).tolist()
    y = ((row + 3) * stride + 0.5) / 2 - 0.5
    x = ((column + dilation - 2) * stride + 0.5) / 2 - 0.5
    # a pixel's middle is half a pixel from its edge, in the image as in the figure
    assert drawn_y + 0.5 == pytest.approx(top + (y + 0.5) / height * (bottom - top), abs=1.0)
    assert drawn_x + 0.5 == pytest.approx(left + (x + 0.5) / width * (right - left), abs=1.0)


@pytest.mark.parametrize("size", [(96, 128), (960, 1280)])
def test_dots_do_not_overlap(size):
    """On small and large images a dot is narrower than the distance to its neighbours."""
    frame = Frame(size, size, size)
    layers, regular = sampled(16, 1, torch.zeros(18), torch.ones(9, *(side // 16 for side in size)), frame=frame)
    image = torch.tensor([0, 0, 255], dtype=torch.uint8)[:, None, None].expand(3, *size)
    rendered = draw_sampling_points(image, [(size[1] // 2, size[0] // 2)], layers, regular, frame, has_masks=False)
    half = rendered[:, :, : rendered.shape[2] // 2].int()
    dots = ((half - BRIGHTEST[:, None, None]).abs() <= 40).all(0)
    labels, count = ndimage.label(dots.numpy())
    assert count == 9
    locations = torch.tensor(ndimage.center_of_mass(dots.numpy(), labels, range(1, 10)))
    widest = 2 * (max(ndimage.sum_labels(dots.numpy(), labels, range(1, 10))) / math.pi) ** 0.5
    assert 1 <= widest < 0.8 * torch.pdist(locations).min()


@pytest.mark.parametrize("height", [130, 200, 300])
@pytest.mark.parametrize("label", ["mask (nested: geometric mean of the masks on the way)", "short"])
def test_the_meaning_of_colours_is_within_the_figure(height, label):
    """Also next to a single low panel."""
    image = torch.zeros(3, height, 300, dtype=torch.uint8)
    figure, axes = panels(image, 1, 4, bars=[3])
    colour_bar(figure, axes[:, -1], label, "viridis", Normalize())
    FigureCanvasAgg(figure).draw()
    label = figure.axes[-1].yaxis.label.get_window_extent()
    assert figure.bbox.contains(label.x0, label.y0)
    assert figure.bbox.contains(label.x1, label.y1)


def test_what_counts_most_is_on_top():
    frame = Frame((96, 128), (96, 128), (96, 128))
    offset, mask = torch.zeros(18), torch.zeros(9, 12, 16)
    mask[0] = 2.0
    # all points come to where the first is: one pixel up and left of the middle
    grid = torch.cartesian_prod(torch.arange(3), torch.arange(3)).flatten()
    offset -= grid
    layers, regular = sampled(8, 1, offset, mask, frame=frame)
    image = torch.zeros(3, 96, 128, dtype=torch.uint8)
    rendered = draw_sampling_points(image, [(64, 48)], layers, regular, frame, has_masks=False)
    half = rendered[:, :, rendered.shape[2] // 2 :]
    assert ((half - BRIGHTEST[:, None, None]).abs() <= 8).all(0).sum() > 10


def test_rows_of_sampling_points_name_their_pixel(monkeypatch):
    monkeypatch.setattr(sampling_points, "render", lambda figure: figure)
    frame = Frame((96, 128), (96, 128), (96, 128))
    layers, regular = sampled(16, 1, torch.zeros(18), frame=frame)
    image = torch.zeros(3, 96, 128, dtype=torch.uint8)
    figure = draw_sampling_points(image, [(64, 48), (9.6, 80)], layers, regular, frame, has_masks=False)
    titles = [axes.get_title().splitlines()[0] for axes in figure.axes]
    assert titles == [
        *("regular grid, 9 points for (64, 48)", "learned offsets, 9 points"),
        *("regular grid, 9 points for (10, 80)", "learned offsets, 9 points"),
    ]


@pytest.fixture
def figures(monkeypatch):
    """The figures that `maps` draws, instead of pixels."""
    monkeypatch.setattr(maps, "render", lambda figure: figure)


def test_masks_lie_over_the_image(figures):
    frame = Frame((100, 140), (200, 280), (224, 288))
    mask = torch.ones(9, 14, 18)
    mask[:, 5, 7] = torch.arange(9.0) / 4
    layers, _ = sampled(16, 1, torch.zeros(18), mask, frame=frame)
    axes = draw_masks(torch.zeros(3, 100, 140, dtype=torch.uint8), layers, frame, start=1.0).axes[1]
    assert axes.get_title().splitlines() == ["layer3: mean mask (1 at the start)", "layer3.0.conv2, stride 16"]
    shown = axes.images[1]
    values = shown.get_array()
    assert values.shape == (15, 19)  # the last row and column are there twice
    assert values[5, 7] == pytest.approx(1.0)
    assert (values[14] == values[13]).all()
    left, right, bottom, top = shown.get_extent()
    assert left + 7.5 * (right - left) / 19 == pytest.approx((7 * 16 + 0.5) / 2 - 0.5)
    assert top + 5.5 * (bottom - top) / 15 == pytest.approx((5 * 16 + 0.5) / 2 - 0.5)
    # all of the image, and nothing else, is in the panel
    assert axes.images[0].get_extent() == [-0.5, 139.5, 99.5, -0.5]
    assert (*axes.get_xlim(), *axes.get_ylim()) == (-0.5, 139.5, 99.5, -0.5)
    assert right > 139.5
    assert bottom > 99.5


def test_masks_vary_in_colour(figures):
    frame = Frame((64, 64), (64, 64), (64, 64))
    mask = torch.rand(9, 8, 8, generator=torch.Generator().manual_seed(0))
    layers, _ = sampled(8, 1, torch.zeros(18), mask, frame=frame)
    figure = draw_masks(torch.zeros(3, 64, 64, dtype=torch.uint8), layers, frame, start=1.0)
    shown = figure.axes[1].images[1]
    torch.testing.assert_close(torch.tensor(shown.get_array().data)[:8, :8], mask.double().mean(0))
    low, high = shown.norm.vmin, shown.norm.vmax
    assert mask.mean(0).min() <= low < high <= mask.mean(0).max()


@pytest.mark.parametrize(("dy", "dx", "hue"), [(0.0, 3.0, 0.0), (-3.0, 0.0, 0.25), (0.0, -3.0, 0.5), (3.0, 0.0, 0.75)])
def test_offsets_point_where_they_move(figures, dy, dx, hue):
    frame = Frame((100, 140), (200, 280), (224, 288))
    offset = torch.tensor([dy, dx]).repeat(9)
    offset[:4] += torch.tensor([4.0, 8.0, -4.0, -8.0])  # the mean stays
    layers, regular = sampled(8, 1, offset, frame=frame, layer_stride=2)
    axes = draw_offsets(torch.zeros(3, 100, 140, dtype=torch.uint8), layers, regular, frame).axes[1]
    # 3 pixels of the layer's input are 24 of the network's and 12 of the image
    assert axes.get_title().splitlines()[0] == "layer3: mean offset, up to 12 image px"
    colours = torch.from_numpy(axes.images[1].get_array())
    assert colours.shape == (15, 19, 4)
    assert (colours[..., 3] == 1).all()
    assert colours[3, 4, :3].tolist() == pytest.approx(colorsys.hsv_to_rgb(hue, 0.9, 0.95), abs=1e-6)
    (arrows,) = axes.collections
    assert float(arrows.U[0]) == pytest.approx(dx * 4)
    assert float(arrows.V[0]) == pytest.approx(dy * 4)
    assert axes.get_title().endswith("arrows to scale")
    locations = {(round(x, 3), round(y, 3)) for x, y in arrows.get_offsets().tolist()}
    grid = {((column * 16 + 0.5) / 2 - 0.5, (row * 16 + 0.5) / 2 - 0.5) for row in range(14) for column in range(18)}
    assert locations <= grid
    # y goes down, as that of the image does
    assert axes.get_ylim()[0] > axes.get_ylim()[1]


def test_small_offsets_have_enlarged_arrows(figures):
    frame = Frame((128, 160), (128, 160), (128, 160))
    layers, regular = sampled(16, 1, torch.tensor([0.03, 0.04]).repeat(9), frame=frame)
    axes = draw_offsets(torch.zeros(3, 128, 160, dtype=torch.uint8), layers, regular, frame).axes[1]
    assert axes.get_title().splitlines() == [
        "layer3: mean offset, up to 0.8 image px",
        "layer3.0.conv2, stride 16, arrows enlarged 16x",
    ]
    assert float(axes.collections[0].U[0]) == pytest.approx(16 * 0.04 * 16)


def test_receptive_fields_have_their_radii_in_the_title(figures):
    frame = Frame((60, 80), (120, 160), (128, 160))
    gradient = torch.rand(120, 160).double()
    gradient[40, 60] = 5.0
    field = ReceptiveField(gradient, torch.tensor([20.0, 30.0]), "layer4", 32.0, {0.5: 7.2, 0.9: 21.0}, frame)
    image = torch.zeros(3, 60, 80, dtype=torch.uint8)
    figure = draw_receptive_fields(image, {"plain": [field, field], "deformable": [field, field]})
    axes = figure.axes[0]
    assert axes.get_title().splitlines() == ["plain", "unit at (30, 20): 50% in 7 px, 90% in 21 px"]
    assert figure.axes[3].get_title() == "unit at (30, 20): 50% in 7 px, 90% in 21 px"
    assert " ".join(figure.axes[-1].get_ylabel().split()).startswith(
        "gradient of a unit of layer4 (stride 32) relative to its"
    )
    assert axes.images[1].get_extent() == [-0.5, 79.5, 59.5, -0.5]
    shade = axes.images[1].get_array()
    assert tuple(shade[40, 60]) == pytest.approx(colormaps["inferno"](1.0))
    assert {circle.radius for circle in axes.patches} == {7.2, 21.0}
    assert {tuple(circle.center) for circle in axes.patches} == {(30.0, 20.0)}
    alone = draw_receptive_fields(image, {"plain": [field, field, field]})
    assert len({round(axes.get_position().y0, 2) for axes in alone.axes[:3]}) == 1


@pytest.mark.parametrize("margin", [0, 6])
def test_an_image_fills_its_panel(margin):
    image = torch.randint(256, (3, 30, 48), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    figure, axes = panels(image, 2, 1, margin=margin)
    show_image(axes[1, 0], image)
    axes[1, 0].spines[:].set_visible(False)
    axes[0, 0].set_visible(False)
    rendered = render(figure)
    assert rendered.dtype == torch.uint8
    assert not figure.axes  # its memory is free
    # the longer side of the panel, 48 pixels of the image and the margins, is 480 of the figure
    pixel = 480 / (48 + 2 * margin)
    left, top = 10 + margin * pixel, rendered.shape[1] - 10 - (30 + margin) * pixel
    rows = (top + (torch.arange(30) + 0.5) * pixel).long()
    columns = (left + (torch.arange(48) + 0.5) * pixel).long()
    assert torch.equal(rendered[:, rows][:, :, columns], image)


@pytest.fixture
def make(tiny_config):
    def build(*overrides, head=()):
        config = load_config(tiny_config, [*(f"model.backbone.{text}" for text in overrides), *head])
        torch.manual_seed(0)
        model, _ = build_model(config.model, config.data, 5)
        for module in model.modules():
            if isinstance(module, DeformConv2d):
                nn.init.normal_(module.conv_offset.bias, std=0.5)
        return model

    return build


IMAGE = torch.randint(256, (3, 64, 90), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], {"receptive_field"}),
        (["dcn_v2_stages=[1,2]"], ALL),
        (["dcn_v2_stages=[2]", "modulation=false"], ALL - {"masks"}),
        (["dcn_v2_stages=[2]", "offset_groups=2", "mask_scale=1.0"], ALL),
    ],
)
def test_figures_of_each_kind_of_network(make, overrides, expected):
    model = make(*overrides).train().requires_grad_(False)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    figures = dcn_figures(model, IMAGE, [(40, 30)], device=CPU)
    assert figures.keys() == expected
    for rendered in figures.values():
        assert rendered.dtype == torch.uint8
        assert rendered.shape[0] == 3
        assert rendered.shape[2] <= WIDEST
        assert rendered.is_contiguous()
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(("overrides", "expected"), [([], {"receptive_field"}), (["dcn_v2_stages=[2]"], ALL)])
def test_a_deformable_head_is_not_drawn(make, overrides, expected, monkeypatch):
    """Layers of a head run in parallel: no trace leads through them."""
    drawn = []

    def record(image, pixels, layers, regular, frame, **options):
        drawn.append([layer.name for layer in layers])
        return image

    monkeypatch.setattr("engine.insight.figures.draw_sampling_points", record)
    head = ["model.detector=fcos", "model.fpn.out_channels=64", "model.fcos.num_dcn_convs=1"]
    model = make(*overrides, head=head)
    assert dcn_figures(model, IMAGE, [(40, 30)], device=CPU).keys() == expected
    assert drawn == ([["layer2.0.conv2", "layer2.1.conv2"]] if overrides else [])


def test_figures_are_deterministic(make):
    model = make("dcn_v2_stages=[2]")
    figures, again = (dcn_figures(model, IMAGE, [(0, 63), (40, 30)], device=CPU) for _ in range(2))
    assert all(torch.equal(rendered, again[kind]) for kind, rendered in figures.items())


def test_what_is_drawn_beside_is_named(make, monkeypatch):
    shown = []

    def record(image, columns):
        shown.append({name: [field.gradient for field in fields] for name, fields in columns.items()})
        return image

    monkeypatch.setattr("engine.insight.figures.draw_receptive_fields", record)
    model, plain = make("dcn_v2_stages=[2]"), make()
    options = {"device": CPU, "name": "mine"}
    dcn_figures(model, IMAGE, [(40, 30)], **options)
    dcn_figures(model, IMAGE, [(40, 30)], baseline=plain, baseline_name="theirs", **options)
    dcn_figures(plain, IMAGE, [(40, 30)], **options)
    flat, learned = "mine: same weights, regular grid", "mine: learned offsets"
    assert [list(columns) for columns in shown] == [[flat, learned], ["theirs", "mine"], ["mine"]]
    assert torch.equal(shown[0][learned][0], shown[1]["mine"][0])
    # both start from the same seed, and masks of the start are 1: on the regular grid they are the same network
    torch.testing.assert_close(shown[0][flat][0], shown[2]["mine"][0], atol=1e-5, rtol=1e-3)
    assert torch.equal(shown[1]["theirs"][0], shown[2]["mine"][0])
    assert not torch.allclose(shown[0][flat][0], shown[0][learned][0])


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_titles_have_the_initial_mask(make, monkeypatch, scale):
    starts = []
    monkeypatch.setattr(
        "engine.insight.figures.draw_masks", lambda image, layers, frame, *, start: starts.append(start)
    )
    dcn_figures(make("dcn_v2_stages=[2]", f"mask_scale={scale}"), IMAGE, [(40, 30)], device=CPU)
    assert starts == [scale / 2]


@pytest.mark.parametrize("size", [(20, 300), (300, 20), (1, 1), (500, 700)])
def test_figures_of_images_of_any_size_before_any_training(tiny_config, size):
    config = load_config(tiny_config, ["model.backbone.dcn_v2_stages=[2]"])
    model, _ = build_model(config.model, config.data, 5)
    image = torch.zeros(3, *size, dtype=torch.uint8)
    figures = dcn_figures(model, image, [(size[1] - 1, size[0] - 1)], device=CPU)
    assert figures.keys() == ALL
    assert all(rendered.shape[2] <= WIDEST for rendered in figures.values())


def test_box_centres():
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [2.0, 4.0, 6.0, 7.0], [0.0, 0.0, 9.0, 9.0]])
    image = torch.zeros(3, 9, 14)
    assert box_centres(boxes, 2, image) == [(0.0, 0.0), (3.5, 5.0)]
    assert box_centres(torch.zeros(0, 4), 2, image) == [(6.5, 4.0)]  # between two columns, on the middle row


@pytest.mark.parametrize("size", [1e3, 1e6, 1e30, math.inf, math.nan])
@pytest.mark.parametrize("options", [("dcn_v2_stages=[2]",), ("dcn_v2_stages=[2]", "modulation=false")])
def test_a_network_that_diverged_can_be_drawn(make, size, options):
    model = make(*options)
    for module in model.modules():
        if isinstance(module, DeformConv2d):
            nn.init.constant_(module.conv_offset.bias, size)
    figures = dcn_figures(model, IMAGE, [(40, 30), (0, 0)], device=CPU, name="a $\\frac$ \x1b\n b")
    assert {"receptive_field", "sampling_points", "offsets"} <= figures.keys()
    for parameter in model.parameters():
        parameter.data.fill_(size)
    assert dcn_figures(model, IMAGE, box_centres(torch.full((1, 4), math.nan), 1, IMAGE), device=CPU).keys()
