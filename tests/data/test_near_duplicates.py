"""Near-duplicates are found by their look, and distances equal those of a loop."""

import itertools

import numpy as np
from PIL import Image, ImageFilter

from data.near_duplicates import close_pairs, near_duplicates


def test_pairs_equal_a_loop_over_all_rows():
    bits = np.random.default_rng(0).random((300, 64)) < 0.5
    bits[7] = bits[290]
    bits[20], bits[20, :3] = bits[299], ~bits[299, :3]
    for limit in (0, 3, 20):
        wanted = [(i, j) for i, j in itertools.combinations(range(300), 2) if (bits[i] != bits[j]).sum() <= limit]
        assert sorted(close_pairs(bits, limit)) == wanted
    assert [*close_pairs(bits, 0)] == [(7, 290)]
    assert [*close_pairs(np.zeros((0, 64), dtype=bool), 5)] == []


def test_copies_of_any_size_and_kind_are_pairs(tmp_path):
    draw = np.random.default_rng(4)

    def picture():
        noise = Image.fromarray(draw.integers(0, 256, (12, 9, 3), dtype=np.uint8))
        return noise.resize((270, 360), Image.Resampling.BICUBIC)

    first, second, third = picture(), picture(), picture()
    first.save(tmp_path / "0.png")
    first.resize((130, 170)).filter(ImageFilter.GaussianBlur(1)).save(tmp_path / "1.jpg", quality=40)
    second.save(tmp_path / "2.png")
    deep = np.asarray(third.convert("L")).astype(np.float32)
    Image.fromarray(deep * 9 + 1000).save(tmp_path / "3.tif")
    third.convert("L").save(tmp_path / "4.png")
    turned = second.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # a viewer turns it back
    turned.save(tmp_path / "5.jpg", exif=exif)
    (tmp_path / "6.png").write_bytes(b"not an image")
    files = sorted(tmp_path.iterdir())
    assert near_duplicates(files, 4) == ([(0, 1), (2, 5), (3, 4)], [6])
