"""The page of errors: one file with everything in it."""

import base64
import dataclasses
import io

import pytest
import torch
from PIL import Image

from data import ImageError
from engine.errors.page import headline, render_errors
from engine.errors.worst import shown_suspects, worst_errors
from engine.evaluation.tide import ERROR_KINDS
from tests.html_pages import Page


def read(place):
    if place == 3:
        raise ImageError("no such file")
    return torch.full((3, 80, 100), 40 * place, dtype=torch.uint8)


def page(analysis, **options):
    return render_errors(analysis, **({"title": "Errors of <i>", "about": "9 detections", "worst": 5} | options))


def test_everything_is_in_the_page(analysis):
    html = page(analysis, read=read)
    found = Page(html)
    assert "://" not in html
    assert not [attributes for tag, attributes in found.tags if tag in ("script", "iframe")]
    images = [attributes["src"] for tag, attributes in found.tags if tag == "img"]
    # class, localization, both, duplicate, missed; a label of another class and one that nothing finds
    assert len(images) == 7
    for source in images:
        head, content = source.split(",")
        assert head == "data:image/jpeg;base64"
        assert Image.open(io.BytesIO(base64.b64decode(content))).format == "JPEG"
    assert found.text.count("The image cannot be read.") == 2  # one error, one suspect
    for text in (
        "<b>&cat 0.90 · truth: dog\\x1b · IoU 0.95",
        "dog\\x1b 0.80 · truth: dog\\x1b · IoU 0.33",
        "<b>&cat 0.40 · truth: <b>&cat · IoU 0.90",
        "dog\\x1b 0.70 · no object · highest IoU 0.00 <i>far.jpg, 2 more in this image",
        "not detected · truth: <b>&cat · highest IoU 0.00",
        "Errors of <i>",
        headline(analysis),
    ):
        assert text in found.text, text
    for kind in ERROR_KINDS:
        assert {"href": f"#{kind}"} in [attributes for tag, attributes in found.tags if tag == "a"]
        assert kind in [attributes.get("id") for tag, attributes in found.tags if tag == "section"]


def test_figures_of_each_class(analysis):
    text = Page(page(analysis)).text
    row = analysis.as_json()["per_class"]["dog\x1b"]
    assert f"dog\\x1b{100 * row['AP50']:.1f}3 3 " in text
    assert "The images are not available. Only the figures are listed." in text


def test_the_worst_come_first_and_are_bounded(analysis):
    (first,) = worst_errors(analysis, "background", 1, None)
    assert (first.score, first.more, first.image) == (0.7, 2, None)
    assert [one.file_name for one in worst_errors(analysis, "missed", 9, None)] == ["1.jpg"]
    nothing = shown_suspects(analysis, "nothing_found", 9, None)
    assert [(one.predicted, one.more) for one in nothing] == [(None, 1)]  # one for each image
    assert nothing[0].iou == pytest.approx(1 / 3)


def test_headlines(analysis):
    kind = max(analysis.costs.kinds, key=analysis.costs.kinds.get)
    rise = 100 * (analysis.costs.ap + analysis.costs.kinds[kind])
    assert f'costs most is "{kind}"' in headline(analysis)
    assert f"AP50 is {rise:.1f}. Usual remedies: " in headline(analysis)
    perfect = analysis.costs._replace(kinds=dict.fromkeys(ERROR_KINDS, 0.0), ap=1.0)
    assert headline(dataclasses.replace(analysis, costs=perfect)).endswith("No kind of errors costs AP.")
    undefined = analysis.costs._replace(ap=float("nan"))
    assert "has no objects" in headline(dataclasses.replace(analysis, costs=undefined))
