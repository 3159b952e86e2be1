"""HTML pages and their SVG plots, parsed for tests."""

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

VOID = {"meta", "link", "br", "img", "path", "use", "rect"}
SVG = "{http://www.w3.org/2000/svg}"


class Page(HTMLParser):
    """Text and tags of a page; fails where elements do not close as they opened."""

    def __init__(self, html):
        super().__init__()
        self.text, self.tags, self.open = "", [], []
        self.feed(html)
        assert self.open == []
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text += data

    def values(self, *names):
        return [value for _, attributes in self.tags for name, value in attributes.items() if name in names]


def parse(svg: str) -> ElementTree.Element:
    """The element as in a page, where these need not be declared."""
    spaces = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
    assert svg.startswith("<svg ")
    return ElementTree.fromstring(svg.replace("<svg ", spaces, 1))


def texts(svg: str) -> list[str]:
    return [element.text for element in parse(svg).iter(f"{SVG}text")]


def lines(svg: str, colour: str) -> list[str]:
    """Widths of the lines of a colour."""
    found = [element.get("style") for element in parse(svg).iter(f"{SVG}path") if element.get("clip-path")]
    return [re.search(r"stroke-width: ([\d.]+)", style).group(1) for style in found if f"stroke: {colour}" in style]
