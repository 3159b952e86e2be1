"""Images are checked again only if they may have changed."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from data import DatasetError, ReadOptions, load_annotations

NAMES = ("a.png", "more/ü b.png")


@pytest.fixture
def folder(tmp_path) -> Path:
    """Create two images in two folders; every modification time is in the past."""
    (tmp_path / "images/more").mkdir(parents=True)
    entries = []
    for number, name in enumerate(NAMES):
        Image.new("RGB", (9, 7)).save(tmp_path / "images" / name)
        entries.append({"id": number, "file_name": name, "width": 9, "height": 7})
    content = {"images": entries, "annotations": [], "categories": [{"id": 1}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    for place in ("images", "images/more"):
        os.utime(tmp_path / place, (1e9, 1e9))
    return tmp_path


def load(folder: Path, policy: str, checked=(), **options):
    """Return the annotations and the images that were opened."""
    opened = []
    found = load_annotations(
        folder / "images",
        folder / "a.json",
        check_images=policy,
        checked=checked,
        **options,
        progress=lambda entries: (opened.append(entry["file_name"]) or entry for entry in entries),
    )
    return found, opened


def test_images_are_checked_by_policy(folder):
    found, opened = load(folder, "first_time")
    assert (opened, found.check_skipped) == ([*NAMES], False)
    checked = json.loads(json.dumps([{"another": "stamp"}, found.checked]))
    again, opened = load(folder, "first_time", checked)
    assert (opened, again.check_skipped, again.checked) == ([], True, found.checked)
    again, opened = load(folder, "always", checked)
    assert (opened, again.check_skipped, again.checked) == ([*NAMES], False, found.checked)
    again, opened = load(folder, "never", checked)
    assert (opened, again.check_skipped, again.checked) == ([], False, None)


def rewrite(folder: Path) -> None:
    content = json.loads((folder / "a.json").read_text())
    (folder / "a.json").write_text(json.dumps(content, indent=1))


@pytest.mark.parametrize(
    ("change", "checks"),
    [
        (lambda folder: (folder / "images/new.png").touch(), True),
        (lambda folder: (folder / "images/more/new.png").touch(), True),
        (lambda folder: (folder / "images").rename(folder / "moved").rename(folder / "images"), False),
        (rewrite, True),
        (lambda folder: (folder / "elsewhere.png").touch(), False),
    ],
    ids=["a file more", "a file more in a folder of it", "moved and back", "annotations", "a file elsewhere"],
)
def test_changes_make_it_check_again(folder, change, checks):
    found, _ = load(folder, "first_time")
    change(folder)
    again, opened = load(folder, "first_time", [found.checked])
    assert (opened, again.check_skipped) == (([*NAMES], False) if checks else ([], True))


def test_another_folder_of_the_same_age_is_checked(folder, tmp_path):
    found, _ = load(folder, "first_time")
    (tmp_path / "images").rename(tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "other")
    with pytest.raises(DatasetError, match="image folder"):
        load(folder, "first_time", [found.checked])
    again = load_annotations(tmp_path / "other", folder / "a.json", check_images="first_time", checked=[found.checked])
    assert not again.check_skipped


def test_a_missing_image_is_reported_although_images_were_checked(folder):
    found, _ = load(folder, "first_time")
    (folder / "images" / NAMES[1]).unlink()
    with pytest.raises(DatasetError, match=r"images missing in .*: 1 of 2; the first: more/ü b\.png"):
        load(folder, "first_time", [found.checked])


@pytest.mark.parametrize("options", [ReadOptions(max_aspect_ratio=2), ReadOptions(pixel_range=(0, 9))])
def test_other_options_make_it_check_again(folder, options):
    found, _ = load(folder, "first_time")
    checked = json.loads(json.dumps([found.checked]))
    again, opened = load(folder, "first_time", checked, read_options=options)
    assert opened == [*NAMES]
    again, opened = load(folder, "first_time", json.loads(json.dumps([again.checked])), read_options=options)
    assert opened == []


def test_a_special_file_is_an_error_and_a_missing_one_is_missing(folder):
    (folder / "images" / NAMES[0]).unlink()
    (folder / "images" / NAMES[0]).symlink_to("gone.png")
    with pytest.raises(DatasetError, match=r"images missing in .*: 1 of 2; the first: a\.png"):
        load(folder, "always")
    (folder / "images" / NAMES[0]).unlink()
    os.mkfifo(folder / "images" / NAMES[0])
    with pytest.raises(
        DatasetError, match=r"invalid images: 1; the first: .*a\.png must be a regular file, got a named pipe"
    ):
        load(folder, "always")


def test_a_narrow_image_is_an_error(folder):
    with pytest.raises(
        DatasetError, match=r"invalid images: 2; the first: .*a\.png must have a longer side of at most 1 "
    ):
        load(folder, "always", read_options=ReadOptions(max_aspect_ratio=1))


def test_an_unknown_policy_is_an_error(folder):
    with pytest.raises(ValueError, match="`check_images` must be one of first_time, always, never, got 'once'"):
        load(folder, "once")
