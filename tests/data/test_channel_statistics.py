"""Mean and standard deviation of channels, against NumPy on all pixels."""

import json

import numpy as np
import pytest

from data import ImageError, ReadOptions, load_annotations
from data.channel_statistics import MAX_IMAGES, measure_channels
from data.tile_files import write_tiles


def split_of(folder, images, options):
    entries = []
    for number, values in enumerate(images, start=1):
        np.save(folder / f"{number}.npy", values)
        height, width = values.shape[:2]
        entries.append({"id": number, "file_name": f"{number}.npy", "width": width, "height": height})
    content = {"images": entries, "categories": [{"id": 1, "name": "a"}], "annotations": []}
    (folder / "a.json").write_text(json.dumps(content))
    return load_annotations(folder, folder / "a.json", check_images="never", read_options=options)


def test_pixels_of_all_images_count_equally(tmp_path):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 1000, (5 + n, 7, 2)).astype(np.int16) for n in range(4)]
    found = measure_channels(split_of(tmp_path, images, ReadOptions(None, ((0, 1000), (0, 2000)), 2)))
    pixels = np.concatenate([image.reshape(-1, 2) for image in images]) / [1000, 2000]
    assert found.mean == pytest.approx(pixels.mean(0), rel=1e-5)
    assert found.std == pytest.approx(pixels.std(0), rel=1e-5)
    assert found.images == 4


def test_no_more_images_are_read_than_needed(tmp_path):
    images = [np.full((2, 2, 1), n % 256, np.uint8) for n in range(2 * MAX_IMAGES)]
    found = measure_channels(split_of(tmp_path, images, ReadOptions(channels=1)))
    assert found.images == MAX_IMAGES
    assert found.mean == pytest.approx([np.mean([n % 256 for n in range(0, 2 * MAX_IMAGES, 2)]) / 255], rel=1e-5)


def test_what_cannot_be_measured_is_an_error(tmp_path):
    rng = np.random.default_rng(0)
    images = [np.dstack([rng.integers(0, 255, (4, 4)), np.full((4, 4), 9)]).astype(np.uint8) for _ in range(3)]
    split = split_of(tmp_path, images, ReadOptions(channels=2))
    with pytest.raises(ValueError, match="channel 2 of 2 has the same value in all of 3 training images"):
        measure_channels(split)
    (tmp_path / "2.npy").write_bytes(b"damaged")
    with pytest.raises(ImageError, match=r"2\.npy"):
        measure_channels(split)
    with pytest.raises(ValueError, match="in all of 2 training images"):
        measure_channels(split, skip_unreadable=True)


def test_tiles_never_lose_channels_or_bits(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((9, 9, 3), np.uint16))
    with pytest.raises(ImageError, match=r"a\.npy has channels of uint16, which tiles in PNG files cannot keep"):
        write_tiles(tmp_path / "a.npy", (9, 9), {(0, 0, 4, 4): {"file_name": "t.png"}}, tmp_path)
    assert not (tmp_path / "t.png").exists()
