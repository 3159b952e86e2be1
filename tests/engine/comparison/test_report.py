"""The report: one HTML file with everything in it."""

import copy
import dataclasses
import math
import re
import warnings

import pytest

from data.shown import escaped
from engine.comparison.compare import compare_runs
from engine.comparison.differences import Difference
from engine.comparison.report import (
    cost_rows,
    interval,
    mean_and_spread,
    ratio,
    render_report,
    report_parts,
    signed,
    templates,
    with_interval,
)
from engine.comparison.result import Costs
from engine.display.tables import percent
from tests.html_pages import Page


@pytest.fixture(scope="module")
def html(comparison):
    return render_report(comparison)


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def test_every_metric_is_reported(comparison, page):
    for group in comparison.groups.values():
        for key in ("AP", "AP75", "APm", "AR10", "AP bar"):
            assert percent(group.mean(key)) in page.text
    plain, dcn = comparison.groups["plain"], comparison.groups["dcn"]
    for thresholds in (*plain.thresholds, *dcn.thresholds):
        if not math.isnan(thresholds["per_class_score_threshold"]["bar"]):
            figures = [percent(thresholds[f"per_class_{name}"]["bar"]) for name in ("precision", "recall", "F1")]
            assert "P {}, R {}, F1 {}".format(*figures) in page.text
    found = comparison.differences["dcn"]["AP75"]
    row = f"AP75 IoU 0.75 {percent(plain.mean('AP75'))} ± {percent(plain.spread('AP75'))} "
    row += f"{percent(dcn.mean('AP75'))} ± {percent(dcn.spread('AP75'))} "
    assert f"{row}{signed(found.value)} ({interval(found.low, found.high)})" in page.text
    assert f"{percent(comparison.groups['slow'].mean('AP75'))} " in page.text
    assert "APl" not in page.text  # there is nothing large
    for sentence in comparison.conclusions.values():
        assert sentence in page.text
    for run in (run for group in comparison.groups.values() for run in group.runs):
        assert str(run.folder) in page.text
    assert "832,035" in page.text
    assert "groups with a single run (slow) have an interval over images only" in page.text
    assert "model.backbone.dcn_v2_stages [] [2] []" in page.text
    assert "train.lr 0.005 0.005 0.001" in page.text
    assert "resampled 150 times with replacement" in page.text
    assert "Inference was not timed." in page.text
    assert "read from an earlier evaluation" in page.text
    assert comparison.settings["device"] in page.text


def test_bold_is_what_exceeds_its_uncertainty(comparison, html):
    sure = sum(
        found.exceeds_uncertainty
        for differences in comparison.differences.values()
        for key, found in differences.items()
        if key not in ("APl", "ARl")
    )
    assert html.count('<small class="sure"') == sure > 0
    assert html.count('<span class="mark full">') == sure
    assert html.count('<span class="mark">') > 0


def test_plots_and_images(comparison, html, page):
    # two of differences, two of learning, two of precision, one for each class
    assert html.count("<svg ") == 6 + 5
    pictures = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 3 * len(comparison.largest_differences["dcn"]) > 0  # both, and the truth
    assert all(source.startswith("data:image/jpeg;base64,/9j/") for source in pictures)
    one = comparison.largest_differences["dcn"][0]
    words = "fewer" if one.fewer_errors > 0 else "more"
    assert f"{abs(one.fewer_errors)} {words} error" in page.text
    assert f"plain: {one.base['true_positive']} true positive" in page.text
    assert f"ground truth: {one.base['true_positive'] + one.base['missed']} objects" in page.text
    assert f"{one.other['missed']} missed" in page.text if one.other["missed"] else True
    assert "Both have the same number of errors on every image." in page.text  # of slow and plain


def test_ids_are_unique(page):
    ids = page.values("id")
    assert len(ids) == len({*ids})


def test_nothing_is_loaded_from_anywhere(html, page):
    sources = page.values("src", "href", "xlink:href", "srcset", "data", "action")
    assert sources
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert not [tag for tag, _ in page.tags if tag in ("script", "iframe", "object", "base")]
    assert all(place.startswith("#") for place in re.findall(r"url\(['\"]?([^)]*)", html))
    assert "@import" not in html
    assert "://" not in html


def renamed(comparison, old, new):
    """The same comparison with a class of another name."""

    def rename(found):
        return {key.replace(f"AP {old}", f"AP {new}"): value for key, value in found.items()}

    groups = {
        name: dataclasses.replace(
            group,
            metrics=[rename(found) for found in group.metrics],
            curves={
                iou: [{new if key == old else key: value for key, value in run.items()} for run in runs]
                for iou, runs in group.curves.items()
            },
        )
        for name, group in comparison.groups.items()
    }
    return dataclasses.replace(
        comparison,
        groups=groups,
        class_names=[new if name == old else name for name in comparison.class_names],
        differences={name: rename(found) for name, found in comparison.differences.items()},
    )


EVIL = '</style></table><script>alert("&")</script><img src="http://evil/x.png" onerror=alert(1)>'


def test_names_are_data(comparison):
    changed = renamed(comparison, "tee", EVIL)
    groups = {EVIL if name == "dcn" else name: group for name, group in changed.groups.items()}
    changed = dataclasses.replace(
        changed,
        groups=groups,
        options={EVIL: [EVIL, '"<b>"', "3"]},
        **{
            part: {EVIL if name == "dcn" else name: value for name, value in getattr(changed, part).items()}
            for part in ("differences", "conclusions", "largest_differences", "shown_runs")
        },
        settings=changed.settings | {"annotations": EVIL, "device": EVIL},
    )
    html = render_report(changed)
    page = Page(html)
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert all(source.startswith(("data:", "#")) for source in page.values("src", "href", "xlink:href"))
    assert not page.values("onerror")
    assert page.text.count(EVIL) > 6


@pytest.mark.parametrize("name", ["nut\x1b[2J\x00\x08\n\ufffe\x9b\udcff", "$\\frac$ 漢字"])
def test_names_of_any_characters_are_valid_html(comparison, name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        html = render_report(renamed(comparison, "tee", name))
    assert not {char for char in html if not (char.isprintable() or char in "\n\t")}
    assert html.encode()
    assert escaped(name, keep="\n") in html.replace("\\n", "\n")


def test_a_single_run(folders):
    found = compare_runs(folders[4:], device="cpu", num_images=2, timed_images=0)
    page = Page(render_report(found))
    assert "slow" in page.text
    assert "difference" not in page.text
    assert "±" not in page.text
    assert "The runs differ only in the seed." in page.text


def test_a_page_of_several_comparisons(comparison):
    environment = templates()
    parts = [report_parts(comparison, prefix=f"part{index}-") for index in (1, 2)]
    body = environment.get_template("comparison.html.j2")
    ids = [{*Page(body.render(part)).values("id")} for part in parts]
    assert ids[0]
    assert ids[0].isdisjoint(ids[1])
    page = environment.from_string('{% extends "page.html.j2" %}{% block content %}<p>{{ text }}</p>{% endblock %}')
    assert "<p>&lt;b&gt;</p>" in page.render(text="<b>")


COSTS = Costs(12_300, 2_000_000_000, 0, 0.25, 0.125, 1.5, 0.02, 0.5)


def test_costs():
    other = dataclasses.replace(
        COSTS, parameters=24_600, flops=3_000_000_000, deformable_flops=650_000_000, inference_s=None
    )
    rows = {name: cells for name, _, cells in cost_rows([COSTS, other])}
    assert rows == {
        "parameters": [("12,300", ""), ("24,600", "2.00x")],
        "GFLOPs": [("2.00", ""), ("3.00", "1.50x")],
        "GFLOPs, deformable": [("0.00", ""), ("0.65", "")],
        "training step, s": [("0.250", ""), ("0.250", "1.00x")],
        "data wait": [("12.5%", ""), ("12.5%", "")],
        "training memory, GiB": [("1.50", ""), ("1.50", "1.00x")],
        "inference, ms": [("20.0", ""), ("-", "")],
        "inference, images/s": [("50.0", ""), ("-", "")],
        "inference memory, MiB": [("512", ""), ("512", "1.00x")],
    }
    on_cpu = cost_rows(2 * [dataclasses.replace(COSTS, inference_gib=None)])
    assert [name for name, _, _ in on_cpu] == [*rows][:-1]


def test_costs_lead_the_headline(comparison):
    changed = copy.copy(comparison.groups)
    changed["plain"] = dataclasses.replace(changed["plain"], costs=COSTS)
    changed["dcn"] = dataclasses.replace(changed["dcn"], costs=dataclasses.replace(COSTS, inference_s=0.029))
    page = Page(render_report(dataclasses.replace(comparison, groups=changed)))
    assert (
        "Cost relative to plain: parameters 1.00x, FLOPs 1.00x, training step 1.00x, inference time 1.45x" in page.text
    )


def test_mean_and_spread(comparison):
    dcn = comparison.groups["dcn"]
    one, two = dcn.values("AP75")
    assert mean_and_spread(dcn, "AP75") == f"{50 * (one + two):.1f} ± {100 * abs(one - two) / 2**0.5:.1f}"
    assert mean_and_spread(comparison.groups["slow"], "AP75") == percent(comparison.groups["slow"].mean("AP75"))
    assert mean_and_spread(dcn, "APl") == "-"


def test_numbers():
    nan = float("nan")
    assert with_interval(Difference(0.012, 0.004, 0.021, -0.5, 0.5, None, None)) == "+1.2 (+0.4 to +2.1) *"
    assert with_interval(Difference(0.012, -0.004, 0.021, 0.1, 0.5, None, None)) == "+1.2 (-0.4 to +2.1)"
    assert with_interval(Difference(*[nan] * 5, None, None)) == "-"
    assert [signed(value) for value in (0.0123, -0.0123, 0.0001, -0.0001, nan, None)] == (
        ["+1.2", "-1.2", "+0.0", "+0.0", "-", "-"]
    )
    assert interval(-0.01, 0.05) == "-1.0 to +5.0"
    assert interval(None, None) == interval(nan, nan) == "-"
    assert (ratio(3, 2), ratio(None, 2), ratio(3, None), ratio(3, 0)) == ("1.50x", "", "", "")


def test_masks(mask_comparison, comparison):
    html = render_report(mask_comparison)
    page = Page(html)
    found = mask_comparison.differences["shifted"]["mask_AP75"]
    good, shifted = (percent(mask_comparison.groups[name].mean("mask_AP75")) for name in ("good", "shifted"))
    assert (
        f"mask AP75 IoU 0.75 {good} {shifted} {signed(found.value)} ({interval(found.low, found.high)}) - " in page.text
    )
    assert f"mask AP75{signed(found.value)} {interval(found.images_low, found.images_high)} - - " in page.text
    assert "mask APl" not in page.text  # there is nothing large
    assert "with the IoU of masks instead of boxes" in page.text
    # two of differences and one of masks, three of learning, two of precision, one for each class
    assert html.count("<svg ") == 8 + 5
    assert mask_comparison.conclusions["shifted"] in page.text
    folders = {name: group.runs[0].folder for name, group in mask_comparison.groups.items()}
    good, boxes = (
        next(part for part in html.split("</tr>") if f'<th scope="row">{folders[name]}</th>' in part)
        for name in ("good", "boxes")
    )
    assert good.count("<td>") == boxes.count("<td>")
    assert f"<td>{percent(mask_comparison.groups['good'].mean('mask_AP75'))}</td>" in good
    assert (good.count("<td>-</td>"), boxes.count("<td>-</td>")) == (0, 4)  # AP, AP50, AP75, APs
    assert "mask" not in Page(render_report(comparison)).text
