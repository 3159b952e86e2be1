"""Images of any kind become upright RGB, and every error contains the file name."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image, ImageFile
from torchvision import tv_tensors
from torchvision.transforms import v2

from data import images
from data.image_files import ImageError
from data.images import ImageFacts, ReadOptions, check_image, inspect_image, read_image

# pytest resets the filter of `silence_pillow`
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def as_array(image):
    """Return a tensor (channels, height, width) as an array (height, width, channels)."""
    return image.permute(1, 2, 0).numpy()


BOTH = pytest.mark.parametrize("look", [read_image, check_image])
ALL = pytest.mark.parametrize("look", [read_image, check_image, inspect_image])
NOISE = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
ORIENTATION = 0x0112
# Rotation that makes a stored image upright, by EXIF orientation.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


def palette_image() -> Image.Image:
    image = Image.new("P", (3, 2), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    return image


KINDS = {
    "1": (lambda: Image.new("1", (3, 2), 1), (255, 255, 255)),
    "L": (lambda: Image.new("L", (3, 2), 100), (100, 100, 100)),
    "LA": (lambda: Image.new("LA", (3, 2), (100, 30)), (100, 100, 100)),
    "P": (palette_image, (10, 20, 30)),
    "RGB": (lambda: Image.new("RGB", (3, 2), (10, 20, 30)), (10, 20, 30)),
    "RGBA": (lambda: Image.new("RGBA", (3, 2), (10, 20, 30, 40)), (10, 20, 30)),
    "CMYK": (lambda: Image.new("CMYK", (3, 2), (0, 255, 255, 0)), (255, 0, 0)),
    "I;16": (lambda: Image.fromarray(np.full((2, 3), 100 * 257, np.uint16)), (100, 100, 100)),
}


def save_turned(path: Path, pixels: np.ndarray, orientation: int) -> Path:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    return path


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(NOISE).save(buffer, kind)
    return buffer.getvalue()


def complaint(look: Callable, path: Path, size: tuple[int, int] | None = None) -> str | None:
    """Return the message of an `ImageError` that `look` raises for an image, or None."""
    try:
        look(path, size)
    except ImageError as error:
        return str(error)
    return None


@pytest.mark.parametrize("mode", KINDS)
def test_kind_becomes_rgb(tmp_path, mode):
    draw, expected = KINDS[mode]
    path = tmp_path / "picture.tif"
    draw().save(path)
    with Image.open(path) as stored:
        assert stored.mode == mode, "the file must have the mode to test"
    check_image(path, (3, 2))
    image = read_image(path, (3, 2))
    assert (image.dtype, tuple(image.shape)) == (torch.uint8, (3, 2, 3))
    assert (as_array(image) == expected).all()


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, ending):
    grey = np.array([[0, 257, 128 * 257, 65535]], np.uint16)
    Image.fromarray(grey).save(tmp_path / f"deep.{ending}")
    image = as_array(read_image(tmp_path / f"deep.{ending}"))
    assert abs(image[0, :, 0].astype(int) - [0, 1, 128, 255]).max() <= 1


@pytest.mark.parametrize(
    ("stated", "upright"), [((60, 40), False), ((40, 60), True), (None, True)], ids=["stored", "turned", "none"]
)
def test_orientation_6_follows_the_declared_size(tmp_path, stated, upright):
    red_on_top = np.zeros((40, 60, 3), np.uint8)
    red_on_top[:20, :, 0] = 255
    path = save_turned(tmp_path / "phone.jpg", red_on_top, 6)
    check_image(path, stated)
    image = as_array(read_image(path, stated)).astype(int)
    assert image.shape == ((60, 40, 3) if upright else (40, 60, 3))
    # rotated clockwise, the top is on the right
    red, black = (image[:, 25:], image[:, :15]) if upright else (image[:15], image[25:])
    assert red[..., 0].min() > 200
    assert black[..., 0].max() < 50


@given(
    orientation=st.integers(0, 9),
    size=st.sampled_from([(5, 3), (3, 5), (4, 4)]),
    statement=st.sampled_from(["stored", "swapped", "none"]),
)
def test_orientation_and_declared_size(tmp_path_factory, orientation, size, statement):
    width, height = size
    pixels = NOISE[:height, :width]
    path = save_turned(tmp_path_factory.mktemp("turned") / "a.png", pixels, orientation)
    stated = {"stored": size, "swapped": size[::-1], "none": None}[statement]
    upright = UPRIGHT.get(orientation, UPRIGHT[1])(pixels)
    sideways = upright.shape != pixels.shape
    if statement == "swapped" and not sideways and width != height:
        for look in (read_image, check_image):
            with pytest.raises(ImageError, match=f"must have {height}x{width} pixels .*, got {width}x{height}"):
                look(path, stated)
        return
    check_image(path, stated)
    expected = pixels if statement == "stored" and sideways else upright
    assert np.array_equal(as_array(read_image(path, stated)), expected)


@BOTH
@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_truncated_file_is_named(tmp_path, look, ending):
    path = tmp_path / f"cut.{ending}"
    whole = encoded("jpeg" if ending == "jpg" else "png")
    path.write_bytes(whole)
    look(path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match=rf"cut\.{ending} cannot be read"):
        look(path)


@BOTH
def test_text_file_is_named(tmp_path, look):
    path = tmp_path / "page.jpg"
    path.write_text("<html>404 Not Found</html>")
    with pytest.raises(ImageError, match=r"page\.jpg cannot be read; it is truncated, corrupt or not an image"):
        look(path)


@BOTH
@pytest.mark.parametrize("stated", [(61, 40), (40, 60)], ids=["other", "swapped"])
def test_size_mismatch_names_both_sizes(tmp_path, look, stated):
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded("jpeg"))
    with pytest.raises(ImageError, match=rf"a\.jpg must have {stated[0]}x{stated[1]} pixels .*, got 60x40"):
        look(path, stated)


@BOTH
def test_missing_file_is_named(tmp_path, look):
    with pytest.raises(ImageError, match=r"nowhere\.jpg does not exist"):
        look(tmp_path / "nowhere.jpg")


def png_of(width: int, height: int) -> bytes:
    """Return a complete PNG with a size in its header and only one row of pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1 + 3 * width))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def bmp_of(width: int, height: int) -> bytes:
    """Return the header of a BMP and one row of pixels."""
    row = bytes(3 * width)
    sizes = struct.pack("<IHHIIiiHH", 54 + len(row), 0, 0, 54, 40, width, height, 1, 24)
    return b"BM" + sizes + bytes(24) + row


def ico_of(width: int, height: int) -> bytes:
    """Return an ICO with 16x16 in its directory and a PNG of another size."""
    inside = png_of(width, height)
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(inside), 22) + inside


@BOTH
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning", "ignore:Image was not the expected size")
@pytest.mark.parametrize("stated", [None, (60_000, 60_000), (15_000, 12_000)])
@pytest.mark.parametrize("size", [(60_000, 60_000), (15_000, 12_000)])
@pytest.mark.parametrize("draw", [png_of, bmp_of, ico_of])
def test_an_image_of_absurd_size_is_an_error_by_its_header(tmp_path, look, draw, size, stated, monkeypatch):
    path = tmp_path / f"vast.{draw.__name__[:3]}"
    path.write_bytes(draw(*size))
    if draw is not ico_of:  # the check has to read the content
        monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("it was decoded"))
    with pytest.raises(ImageError) as error:
        look(path, stated)
    message = str(error.value)
    assert message.startswith(f"image {path} must have at most 178956970 pixels")
    assert "got 15000x12000" in message if size == (15_000, 12_000) else "3600000000 pixels" in message


@BOTH
def test_bound_does_not_depend_on_that_of_pillow(tmp_path, look, monkeypatch):
    path = tmp_path / "vast.png"
    path.write_bytes(png_of(60_000, 60_000))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("it was decoded"))
    with pytest.raises(ImageError, match=r"vast\.png must have at most 178956970 pixels, got 60000x60000"):
        look(path)


@BOTH
def test_a_large_image_within_the_bound_is_read_without_a_warning(tmp_path, look, monkeypatch, recwarn):
    path = tmp_path / "large.png"
    path.write_bytes(png_of(13_000, 13_700))  # Pillow warns here by default
    loaded = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: loaded.append(image.size))
    monkeypatch.setattr(images, "to_tensor", lambda image, **_: image)
    look(path)
    assert {*loaded} == ({(13_000, 13_700)} if look is read_image else set())
    assert not recwarn.list


def test_check_decodes_only_suspicious_files(tmp_path, monkeypatch):
    decoded = []
    monkeypatch.setattr(images, "read_image", lambda path, *arguments: decoded.append(path.name))
    for kind in ("jpeg", "png"):
        path = tmp_path / f"whole.{kind}"
        path.write_bytes(encoded(kind))
        check_image(path, (60, 40))
        path.with_stem("cut").write_bytes(encoded(kind)[:-1])
        check_image(path.with_stem("cut"), (60, 40))
    assert decoded == ["cut.jpeg", "cut.png"]


def test_truncated_images_raise_in_pillow():
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


@given(st.data(), st.sampled_from(["jpeg", "png"]))
@example(None, "png")
def test_check_and_read_agree_on_cut_files(tmp_path_factory, data, kind):
    whole = encoded(kind)
    length = data.draw(st.integers(0, len(whole))) if data else len(whole)
    path = tmp_path_factory.mktemp("cut") / f"a.{kind}"
    path.write_bytes(whole[:length])
    found = complaint(read_image, path, (60, 40))
    assert complaint(check_image, path, (60, 40)) == found
    assert found is None or length < len(whole)


@given(st.sampled_from(["jpeg", "png", "bmp", "gif"]), st.data())
def test_broken_bytes_raise_nothing_else(tmp_path_factory, kind, data):
    content = bytearray(encoded(kind))
    for place in data.draw(st.lists(st.integers(0, min(len(content), 400) - 1), min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("broken") / f"a.{kind}"
    path.write_bytes(content)
    for look in (read_image, check_image):
        found = complaint(look, path)
        assert found is None or str(path) in found


def grey(values: np.ndarray, kind: str) -> np.ndarray:
    return np.asarray(values, dtype=kind).reshape(2, -1)


UNKNOWN_RANGES = {
    "float beyond 1": (grey([0, 0.5, 1, 255], "f4"), "has floating-point pixels from 0 to 255, whose range is unknown"),
    "negative float": (grey([-1, 0.5, 1, 0], "f4"), "has floating-point pixels from -1 to 1, whose range is unknown"),
    "32 bits": (grey([0, 5, 9, 250], "i4"), "has 32-bit integer pixels from 0 to 250, whose range is unknown"),
    "negative integers": (grey([-7, 5, 9, 250], "i4"), "has 32-bit integer pixels from -7 to 250"),
    "NaN": (grey([0, 1, np.nan, 1], "f4"), "must have finite pixels, got NaN or infinity"),
    "infinity": (grey([0, 1, np.inf, 1], "f4"), "must have finite pixels, got NaN or infinity"),
}


@ALL
@pytest.mark.parametrize("kind", UNKNOWN_RANGES)
def test_pixels_of_an_unknown_range_are_an_error(tmp_path, look, kind):
    values, message = UNKNOWN_RANGES[kind]
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match=f"image .*a.tif {message}"):
        look(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("values", "pixel_range", "expected"),
    [
        (grey([0, 0.25, 0.5, 1], "f4"), None, [0, 64, 128, 255]),
        (grey([0, 0, 0, 0], "f4"), None, [0, 0, 0, 0]),
        (grey([0, 64, 128, 255], "f4"), (0, 255), [0, 64, 128, 255]),
        (grey([-1, 0, 0.5, 2], "f4"), (-1, 1), [0, 128, 191, 255]),
        (grey([0, 64, 128, 400], "i4"), (0, 255), [0, 64, 128, 255]),
        (grey([0, 16, 1365, 4095], "u2"), (0, 4095), [0, 1, 85, 255]),
        (grey([0, 16, 1365, 4095], "u2"), None, [0, 0, 5, 16]),
        (grey([0, 257, 128 * 257, 65535], ">u2"), None, [0, 1, 128, 255]),
    ],
)
def test_pixels_are_scaled_by_their_range(tmp_path, values, pixel_range, expected):
    Image.fromarray(values).save(tmp_path / "a.tif")
    image = as_array(read_image(tmp_path / "a.tif", None, ReadOptions(pixel_range=pixel_range)))
    assert image[..., 0].ravel().tolist() == expected


def test_a_tiff_may_state_fewer_bits(tmp_path):
    Image.fromarray(grey([0, 0, 0, 0], "u2")).save(tmp_path / "a.tif")
    content = bytearray((tmp_path / "a.tif").read_bytes())
    place = content.index(struct.pack("<HHI", 258, 3, 1))
    content[place + 8 : place + 10] = struct.pack("<H", 12)
    pixels = content.rindex(bytes(8))
    content[pixels : pixels + 6] = b"\xff\xf0\x00\x80\x00\x00"  # 4095 and 0, 2048 and 0, two rows of 12 bits
    (tmp_path / "a.tif").write_bytes(content)
    assert as_array(read_image(tmp_path / "a.tif"))[..., 0].tolist() == [[255, 0], [128, 0]]


@pytest.mark.parametrize("pixel_range", [(1, 1), (2, 1), (0, float("inf")), (float("nan"), 1)])
def test_an_invalid_range_is_an_error(pixel_range):
    with pytest.raises(ValueError, match=r"data\.pixel_range must be two finite numbers \[low, high\] with low < high"):
        ReadOptions(pixel_range=pixel_range)


def test_a_rotated_image_keeps_the_meaning_of_its_pixels(tmp_path):
    tags = {ORIENTATION: 6, 258: 16}
    Image.fromarray(grey([0, 257, 128 * 257, 65535], "u2")).save(tmp_path / "a.tif", tiffinfo=tags)
    assert as_array(read_image(tmp_path / "a.tif"))[..., 0].tolist() == [[128, 0], [255, 1]]


@ALL
@given(st.integers(1, 40), st.integers(1, 5000), st.integers(1, 1333), st.booleans())
@example(3, 3999, 1333, False)
@example(1, 1334, 1333, True)
def test_the_shorter_side_must_keep_a_pixel(tmp_path_factory, look, short, long, limit, is_tall):
    size = (min(short, long), max(short, long))[:: 1 if is_tall else -1]
    path = tmp_path_factory.mktemp("narrow") / "a.png"
    Image.new("L", size).save(path)
    resized = v2.RandomShortestSize([1000], limit).make_params([tv_tensors.Image(torch.zeros(1, *size[::-1]))])["size"]
    options = ReadOptions(max_aspect_ratio=limit)
    if min(resized) >= 1:
        look(path, size, options)
    else:
        message = (
            rf"a\.png must have a longer side of at most {limit} times the shorter .*, got {size[0]}x{size[1]}: crop"
        )
        with pytest.raises(ImageError, match=message):
            look(path, size, options)


@BOTH
def test_a_narrow_image_is_not_decoded(tmp_path, monkeypatch, look):
    (tmp_path / "a.png").write_bytes(png_of(5000, 1))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("it was decoded"))
    with pytest.raises(ImageError, match="got 5000x1"):
        look(tmp_path / "a.png", None, ReadOptions(max_aspect_ratio=1333))


COMPLETE = {
    "jpeg": {"quality": 90},
    "progressive": {"progressive": True},
    "png": {},
    "webp": {},
    "tiff": {"compression": "tiff_lzw"},
    "gif": {},
    "avif": {},
}


@given(st.sampled_from([*COMPLETE]), st.data())
def test_inspection_finds_what_reading_finds(tmp_path_factory, kind, data):
    """Damage in the middle of a file whose header and end are right."""
    buffer = io.BytesIO()
    Image.fromarray(NOISE).save(buffer, "jpeg" if kind == "progressive" else kind, **COMPLETE[kind])
    content = bytearray(buffer.getvalue())
    place = data.draw(st.integers(len(content) // 8, len(content) - 30))
    length = data.draw(st.integers(1, 25))
    content[place : place + length] = data.draw(st.binary(max_size=length))
    path = tmp_path_factory.mktemp("damage") / f"a.{kind}"
    path.write_bytes(content)
    assert (complaint(inspect_image, path) is None) == (complaint(read_image, path) is None)


def progressive_with(marker: bytes) -> bytes:
    """Return a progressive JPEG with a marker in the middle."""
    buffer = io.BytesIO()
    Image.fromarray(NOISE).save(buffer, "jpeg", progressive=True)
    content = buffer.getvalue()
    return content[: len(content) // 2] + marker + content[len(content) // 2 :]


def png_without(number: int) -> bytes:
    """Return a PNG that lacks some bytes of its pixels, with checksums that are right."""
    content = encoded("png")
    place = content.index(b"IDAT") - 4
    (length,) = struct.unpack(">I", content[place : place + 4])
    pixels = content[place + 8 : place + 8 + length - number]
    chunk = struct.pack(">I", len(pixels)) + b"IDAT" + pixels + struct.pack(">I", zlib.crc32(b"IDAT" + pixels))
    return content[:place] + chunk + content[place + length + 12 :]


@pytest.mark.parametrize("content", [progressive_with(b"\xff\xc4\0\5\0\0\0"), png_without(99)], ids=["jpeg", "png"])
def test_damage_in_the_middle_is_found(tmp_path, content):
    (tmp_path / "a.jpg").write_bytes(content)
    assert complaint(read_image, tmp_path / "a.jpg")
    assert complaint(inspect_image, tmp_path / "a.jpg")


def several(mode: str, *colours) -> tuple[Image.Image, dict]:
    first, *rest = (Image.new(mode, (40, 30), colour) for colour in colours)
    return first, {"save_all": True, "append_images": rest}


def transparent_palette() -> tuple[Image.Image, dict]:
    return palette_image(), {"transparency": b"\xff\x10"}


FACTS = {
    "plain.jpg": (Image.new("RGB", (40, 30)), {}, ImageFacts("3 x uint8")),
    "alpha.png": (Image.new("RGBA", (4, 3), (9, 9, 9, 9)), {}, ImageFacts("4 x uint8", is_transparent=True)),
    "opaque.png": (Image.new("RGBA", (4, 3), (9, 9, 9, 255)), {}, ImageFacts("4 x uint8")),
    "grey.png": (Image.new("LA", (4, 3), (9, 9)), {}, ImageFacts("2 x uint8", is_transparent=True)),
    "palette.png": (*transparent_palette(), ImageFacts("1 x uint8", is_transparent=True)),
    "pages.tif": (*several("L", 1, 2), ImageFacts("1 x uint8", has_more_frames=True)),
    "moves.gif": (*several("L", 9, 200), ImageFacts("1 x uint8", has_more_frames=True)),
    "moves.png": (*several("RGB", "red", "blue"), ImageFacts("3 x uint8", has_more_frames=True)),
    "moves.webp": (*several("RGB", "red", "blue"), ImageFacts("3 x uint8", has_more_frames=True)),
    "phone.mpo": (*several("RGB", "red", "blue"), ImageFacts("3 x uint8")),
    "deep.png": (Image.fromarray(grey([7, 8, 4095, 9], "u2")), {}, ImageFacts("1 x uint16", values=(7, 4095))),
    "deep.tif": (Image.fromarray(grey([7, 8, 4095, 9], ">u2")), {}, ImageFacts("1 x uint16", values=(7, 4095))),
    "float.tif": (Image.fromarray(grey([0, 0.5, 1, 0], "f4")), {}, ImageFacts("1 x float32", values=(0, 1))),
}


@pytest.mark.parametrize("name", FACTS)
def test_facts_of_an_image(tmp_path, name):
    image, options, expected = FACTS[name]
    image.save(tmp_path / name, **options)
    assert inspect_image(tmp_path / name) == expected


@pytest.mark.parametrize(("largest", "is_dark"), [(4095, True), (65535, False)])
def test_colours_with_unused_upper_bits(tmp_path, largest, is_dark):
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" + struct.pack(">6H", 1, 2, 3, 4, 5, largest))
    chunks = [(b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")]
    packed = (struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
    assert inspect_image(tmp_path / "a.png") == ImageFacts("3 x uint16", is_dark_16_bit_colour=is_dark)
