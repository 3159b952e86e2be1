"""The files of inputs, and their unique names."""

import os
import re
from pathlib import Path

import pytest

from data.media_files import MediaFile, MediaFileError, PassedOver, describe_passed_over, find_media_files

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
    return [source.name for source in find_media_files(inputs, exclude=Path(out))[0]]


def test_a_folder_includes_all_its_files(place):
    found, _ = find_media_files(["trip"], exclude=Path("trip/out"))
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


def passed_over(*inputs):
    _, others = find_media_files(inputs, exclude=Path("x"))
    return [(path.relative_to(Path.cwd()).as_posix(), why) for path, why in others]


def test_what_is_passed_over_is_named(place):
    (place / "trip/photo.heic").touch()
    (place / "trip/link").symlink_to(place / "other")
    expected = [
        ("trip/folder.jpg", "folders with the suffix of a file, whose files are used"),
        ("trip/link", "links to folders"),
        ("trip/notes.txt", "files with the suffix .txt"),
        ("trip/photo.heic", "files with the suffix .heic"),
    ]
    assert passed_over("trip") == expected
    assert passed_over("trip/*o*") == expected[2:]
    assert passed_over("trip/*.jpg", "trip") == expected
    assert passed_over("trip", "trip/photo.heic") == expected[:-1]
    assert passed_over("trip/a.jpg") == []


def test_passed_over_files_are_counted_by_kind():
    paths = [Path("a.txt"), Path("b.heic"), Path("c.txt")]
    files = [PassedOver(path, f"files with the suffix {path.suffix}") for path in paths]
    text = "files with the suffix .txt: 2 (such as a.txt); files with the suffix .heic: 1 (b.heic)"
    assert describe_passed_over(files) == text
    assert describe_passed_over([]) == ""


def test_a_folder_that_cannot_be_read_is_named(place, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "day 2":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert ("trip/day 2", "folders with Permission denied") in passed_over("trip")


@pytest.mark.parametrize("suffix", [".avif", ".jp2", ".jpe", ".tga", ".apng", ".webp", ".JFIF", ".mkv"])
def test_suffixes_of_images_and_videos(place, suffix):
    (place / f"other/b{suffix}").touch()
    assert names("other") == ["a.jpg", f"b{suffix}"]
    assert names(f"other/*{suffix}") == [f"b{suffix}"]


def test_special_files_in_folders_are_inputs_that_cannot_be_opened(place):
    (place / "other/b.jpg").symlink_to("gone.jpg")
    os.mkfifo(place / "other/c.png")
    assert names("other") == ["a.jpg", "b.jpg", "c.png"]
    assert names("other/*.png") == ["c.png"]


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (os.mkfifo, "a named pipe"),
        (lambda path: path.symlink_to("gone"), "a link to nothing"),
        (lambda path: path.symlink_to("/dev/zero"), "a device"),
    ],
)
def test_a_special_file_is_no_input(place, make, kind):
    make(place / "special.jpg")
    with pytest.raises(MediaFileError, match=f"input special.jpg must be a file, a folder or a pattern, got {kind}"):
        names("other", "special.jpg")


def test_a_pattern_without_a_supported_suffix_names_what_it_matches(place):
    (place / "trip/photo.heic").touch()
    message = r"matches no image .*; passed over: files with the suffix \.heic: 1 \(.*photo\.heic\)"
    with pytest.raises(MediaFileError, match=message):
        names("trip/*.heic")
