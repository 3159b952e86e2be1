"""The files of inputs, and their unique names."""

import re
from pathlib import Path

import pytest

from data.media_files import MediaFile, MediaFileError, find_media_files

FILES = [
    "trip/a.jpg",
    "trip/B.PNG",
    "trip/day 2/a.jpg",
    "trip/day 2/clip.MOV",
    "trip/notes.txt",
    "trip/.hidden.jpg",
    "trip/.cache/c.jpg",
    "trip/out/a.jpg",
    "other/a.jpg",
    "odd[1].jpg",
    "scan",
]


@pytest.fixture
def place(tmp_path, monkeypatch):
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "trip/folder.jpg").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*inputs, out="trip/out"):
    return [source.name for source in find_media_files(inputs, exclude=Path(out))]


def test_a_folder_includes_all_its_files(place):
    found = find_media_files(["trip"], exclude=Path("trip/out"))
    assert found == [
        MediaFile(place / "trip/B.PNG", "B.PNG", False),
        MediaFile(place / "trip/a.jpg", "a.jpg", False),
        MediaFile(place / "trip/day 2/a.jpg", "day 2/a.jpg", False),
        MediaFile(place / "trip/day 2/clip.MOV", "day 2/clip.MOV", True),
    ]
    assert names("trip", out="elsewhere") == ["B.PNG", "a.jpg", "day 2/a.jpg", "day 2/clip.MOV", "out/a.jpg"]
    assert names(str(place / "trip/")) == names("trip")


def test_a_file_may_have_any_name(place):
    assert names("scan") == ["scan"]
    assert names("odd[1].jpg") == ["odd[1].jpg"]
    assert names("trip/.hidden.jpg", "trip/out/a.jpg") == [".hidden.jpg", "out/a.jpg"]


def test_a_pattern_is_named_from_its_fixed_part(place):
    assert names("trip/*.jpg") == ["a.jpg"]
    assert names("trip/**/a.*") == ["a.jpg", "day 2/a.jpg"]
    assert names("*/a.jpg") == ["other/a.jpg", "trip/a.jpg"]
    assert names("t*") == ["trip/B.PNG", "trip/a.jpg", "trip/day 2/a.jpg", "trip/day 2/clip.MOV"]
    assert names(f"{place}/trip/day*/*") == ["day 2/a.jpg", "day 2/clip.MOV"]


def test_a_folder_whose_name_looks_like_a_pattern(place, monkeypatch):
    (place / "set [a]").mkdir()
    (place / "set [a]/x1.jpg").touch()
    monkeypatch.chdir(place / "set [a]")
    assert names("x*.jpg") == ["x1.jpg"]


def test_several_inputs_are_named_from_what_they_have_in_common(place):
    assert names("other", "trip/day 2") == ["other/a.jpg", "trip/day 2/a.jpg", "trip/day 2/clip.MOV"]
    assert names("trip/day 2/a.jpg", "trip/a.jpg", "trip/../trip/a.jpg") == ["day 2/a.jpg", "a.jpg"]
    assert names("trip/a.jpg", "trip") == ["a.jpg", "B.PNG", "day 2/a.jpg", "day 2/clip.MOV"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gone.jpg", "input gone.jpg does not exist (resolved: {place}/gone.jpg)"),
        ("trip/*.bmp", "input trip/*.bmp matches no image or video (resolved: {place}/trip/*.bmp)"),
        ("trip/*.txt", "input trip/*.txt matches no image or video"),
        (
            "trip/folder.jpg",
            "input folder trip/folder.jpg contains no image or video (resolved: {place}/trip/folder.jpg)",
        ),
        ("trip/out", "input folder trip/out contains no image or video"),
    ],
)
def test_inputs_without_files(place, text, message):
    with pytest.raises(MediaFileError, match=re.escape(message.format(place=place))):
        names("scan", text)
