"""The frame of all HTML pages."""

import base64
import io

import torch
from PIL import Image

from engine.pages.page import embedded_jpeg, page_templates


def test_a_folder_has_pages_in_the_common_frame(tmp_path):
    (tmp_path / "own.html.j2").write_text(
        '{% extends "page.html.j2" %}{% block title %}{{ text }}{% endblock %}'
        "{% block content %}<p>{{ text }} {{ 0.25 | percent }}</p>{% endblock %}"
    )
    html = page_templates(tmp_path).get_template("own.html.j2").render(text="<b>\x1b")
    assert "<title>&lt;b&gt;\\x1b</title>" in html
    assert "<p>&lt;b&gt;\\x1b 25.0</p>" in html
    assert "://" not in html


def test_images_are_inside_the_page():
    image = torch.full((3, 20, 31), 77, dtype=torch.uint8)
    head, content = embedded_jpeg(image).split(",")
    assert head == "data:image/jpeg;base64"
    read = Image.open(io.BytesIO(base64.b64decode(content)))
    assert (read.format, read.size, read.getpixel((30, 19))) == ("JPEG", (31, 20), (77, 77, 77))
