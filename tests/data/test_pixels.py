"""Images of any number of channels: TIFF and NPY files, written by other libraries, against the arrays in them."""

import io
import logging

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data.image_files import ImageError
from data.images import ReadOptions, check_image, inspect_image, read_image, read_with_facts
from data.pixels import turned
from models.predictor import image_tensor

HEIGHT, WIDTH = 5, 7
TYPES = {"uint8": 255, "uint16": 65535, "float32": 1, "float16": 1, "float64": 1}
# writers of an array (height, width, channels), by name
WRITERS = {
    "interleaved.tif": lambda file, a: write_tiff(file, a),
    "planar.tif": lambda file, a: write_tiff(file, a, planarconfig="separate"),
    "deflate.tif": lambda file, a: write_tiff(file, a, compression="zlib", predictor=False),
    "tiles.tif": lambda file, a: write_tiff(file, a, tile=(16, 16), bigtiff=True),
    "pages.tif": lambda file, a: write_pages(file, np.moveaxis(a, 2, 0)),
    "last.npy": lambda file, a: np.save(file, a),
    "fortran.npy": lambda file, a: np.save(file, np.asfortranarray(a)),
    "first.npy": lambda file, a: np.save(file, np.ascontiguousarray(np.moveaxis(a, 2, 0))),
}


def write_tiff(file, values, planarconfig="contig", **options):
    if values.shape[2] == 1:
        values = values[..., 0]
    else:
        options["planarconfig"] = planarconfig
    if planarconfig == "separate" and values.ndim == 3:
        values = np.moveaxis(values, 2, 0)
    tifffile.imwrite(file, values, photometric="minisblack", **options)


def write_pages(file, planes):
    with tifffile.TiffWriter(file) as tiff:
        for plane in planes:
            tiff.write(plane, photometric="minisblack", contiguous=False, metadata=None)


def values_of(channels: int, dtype: str, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random((HEIGHT, WIDTH, channels)) * TYPES[dtype]).astype(dtype)


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("channels", [1, 4, 5])
def test_channels_are_those_of_the_array(tmp_path, writer, channels):
    options = ReadOptions(channels=channels)
    for dtype, white in TYPES.items():
        values = values_of(channels, dtype)
        file = tmp_path / f"{dtype}_{writer}"
        WRITERS[writer](file, values)
        expected = np.moveaxis(values, 2, 0)
        check_image(file, (WIDTH, HEIGHT), options)
        for found in (read_image(file, (WIDTH, HEIGHT), options), image_tensor(file, channels=channels)):
            assert found.is_contiguous()
            if dtype == "uint8":
                assert torch.equal(found, torch.from_numpy(expected.copy()))
            else:
                assert found.dtype == torch.float32
                assert np.allclose(found.numpy(), expected.astype(np.float64) / white, rtol=0, atol=1e-7)
        facts = read_with_facts(file, None, options)[1]
        assert facts.kind == f"{channels} x {dtype}"
        assert facts == inspect_image(file, None, options)
        assert facts.values == (None if dtype == "uint8" else pytest.approx((values.min(), values.max())))


def test_three_channels_of_16_bits_keep_their_precision(tmp_path):
    """Pillow would keep 8 of them."""
    values = values_of(3, "uint16")
    for name in ("last.npy", "interleaved.tif", "planar.tif"):
        WRITERS[name](tmp_path / name, values)
        assert np.allclose(read_image(tmp_path / name).numpy(), np.moveaxis(values, 2, 0) / 65535, rtol=0, atol=1e-7)
    assert torch.equal(image_tensor(values), image_tensor(tmp_path / "last.npy"))


def test_pillows_formats_keep_their_channels(tmp_path):
    rng = np.random.default_rng(0)
    for channels, dtype, name in ((1, "uint8", "a.png"), (4, "uint8", "b.png"), (1, "uint16", "c.png")):
        values = rng.integers(0, TYPES[dtype] + 1, (HEIGHT, WIDTH, channels)).astype(dtype)
        Image.fromarray(values[..., 0] if channels == 1 else values).save(tmp_path / name)
        options = ReadOptions(channels=channels)
        found = read_image(tmp_path / name, None, options).numpy()
        assert np.allclose(
            found / (255 if dtype == "uint8" else 1), np.moveaxis(values, 2, 0) / TYPES[dtype], atol=1e-7
        )
        check_image(tmp_path / name, None, options)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_that_of_pillow(tmp_path, orientation):
    values = values_of(1, "uint8")[..., 0]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(values).save(tmp_path / "a.png", exif=exif)
    expected = image_tensor(tmp_path / "a.png")[:1]
    assert torch.equal(torch.from_numpy(turned(values[None], orientation).copy()), expected)
    stack = np.stack([values] * 5, axis=2)
    extra = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack", planarconfig="contig", extratags=extra)
    options = ReadOptions(channels=5)
    assert torch.equal(read_image(tmp_path / "a.tif", None, options), expected.expand(5, -1, -1))
    if orientation >= 5:  # the declared size is that of the stored pixels
        stored = read_image(tmp_path / "a.tif", (WIDTH, HEIGHT), options)
        assert torch.equal(stored, torch.from_numpy(values).expand(5, -1, -1))


def test_stated_ranges(tmp_path):
    values = np.array([[[-1000, 0, 10], [0, 50, 20], [1000, 200, 40]]], np.int16)
    np.save(tmp_path / "a.npy", values)
    pairs = ((-1000, 1000), (0, 100), (10, 30))
    found = read_image(tmp_path / "a.npy", None, ReadOptions(None, pairs))
    assert found[:, 0].tolist() == [[0, 0.5, 1], [0, 0.5, 1], [0, 0.5, 1]]
    found = read_image(tmp_path / "a.npy", None, ReadOptions(None, (-1000, 1000)))
    assert found[1, 0].tolist() == pytest.approx([0.5, 0.525, 0.6])
    large = np.array([[2**31, 2**31 + 1, 2**31 + 2]], np.uint32)  # float32 does not distinguish them
    np.save(tmp_path / "b.npy", large)
    options = ReadOptions(None, (2**31, 2**31 + 2), 1)
    assert read_image(tmp_path / "b.npy", None, options)[0].tolist() == [[0, 0.5, 1]]
    for wrong in (((0, 1), (1, 0), (0, 1)), ((0, 1), (0, 1))):
        with pytest.raises(ValueError, match=r"data\.pixel_range must"):
            ReadOptions(None, wrong)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((4, 5, 3), np.uint16), r"must have 4 channels \(data\.channels\), got 3 \(shape \[4, 5, 3\]\)"),
        (np.zeros((6, 5), np.uint8), r"must have 4 channels \(data\.channels\), got 1"),
        (
            np.full((6, 5, 4), 300.5, np.float32),
            "has floating-point pixels from 300.5 to 300.5, whose range is unknown",
        ),
        (np.full((6, 5, 4), -7, np.int32), "has 32-bit integer pixels from -7 to -7, whose range is unknown"),
        (np.full((6, 5, 4), np.nan), "must have finite pixels"),
        (np.zeros((6, 5, 4), np.complex64), "must be an array of numbers"),
        (np.zeros((2, 6, 5, 4), np.uint8), r"must be an array of numbers.* got uint8 \[2, 6, 5, 4\]"),
        (np.array([{}]), "must be an array of numbers.* got object"),
    ],
)
def test_arrays_that_cannot_be_images(tmp_path, values, message):
    np.save(tmp_path / "a.npy", values, allow_pickle=True)
    options = ReadOptions(channels=4)
    if values.shape == (4, 5, 3):  # its first axis is as long as the channels
        values = values.transpose(2, 1, 0)
        np.save(tmp_path / "a.npy", np.zeros((5, 4, 3), np.uint16))
        message = r"must have 4 channels \(data\.channels\), got 3 \(shape \[5, 4, 3\]\)"
    for look in (read_image, check_image, inspect_image):
        with pytest.raises(ImageError, match=rf"a\.npy {message}"):
            look(tmp_path / "a.npy", None, options)


def test_a_file_with_other_channels_is_named(tmp_path):
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "a.jpg")
    WRITERS["interleaved.tif"](tmp_path / "b.tif", values_of(5, "uint16"))
    for name, count in (("a.jpg", 3), ("b.tif", 5)):
        with pytest.raises(ImageError, match=rf"{name} must have 4 channels \(data\.channels\), got {count}"):
            read_image(tmp_path / name, None, ReadOptions(channels=4))
    with pytest.raises(ImageError, match=r"b\.tif must have 3 channels \(data\.channels\), got 5"):
        read_image(tmp_path / "b.tif")


def test_a_vast_header_is_an_error_before_decoding(tmp_path, monkeypatch):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<u2", "fortran_order": False, "shape": (50_000, 50_000, 4)})
    (tmp_path / "a.npy").write_bytes(header.getvalue())
    with pytest.raises(ImageError, match=r"a\.npy must have at most 178956970 pixels, got 50000x50000"):
        read_image(tmp_path / "a.npy", None, ReadOptions(channels=4))
    WRITERS["interleaved.tif"](tmp_path / "a.tif", values_of(4, "uint16"))
    monkeypatch.setattr("data.band_files.MAX_BYTES", 100)
    with pytest.raises(ImageError, match=r"a\.tif must have at most 100 bytes of pixels, got 4 x 7x5"):
        read_image(tmp_path / "a.tif", None, ReadOptions(channels=4))


def test_missing_libraries_are_named(tmp_path, monkeypatch):
    file = tmp_path / "a.tif"
    WRITERS["deflate.tif"](file, values_of(4, "uint16"))
    content = bytearray(file.read_bytes())
    with tifffile.TiffFile(file) as tiff:
        tag = tiff.pages[0].tags["Compression"]
    content[tag.valueoffset : tag.valueoffset + 2] = (50001).to_bytes(2, "little")  # WebP
    file.write_bytes(content)
    with pytest.raises(
        ImageError, match=r"a\.tif has \w+ compression, which needs imagecodecs: pip install imagecodecs"
    ):
        read_image(file, None, ReadOptions(channels=4))
    monkeypatch.setitem(__import__("sys").modules, "tifffile", None)
    from data.band_files import load_tifffile

    load_tifffile.cache_clear()
    with pytest.raises(ImageError, match=r"a\.tif has channels that only tifffile reads: pip install tifffile"):
        read_image(file, None, ReadOptions(channels=4))


def encoded(writer: str) -> bytes:
    file = io.BytesIO()
    WRITERS[writer](file, values_of(4, "uint16"))
    return file.getvalue()


FILES = {name: encoded(name) for name in WRITERS}


@given(
    name=st.sampled_from([*FILES]),
    changes=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=6),
    length=st.integers(0, 2000),
)
def test_damaged_bytes_are_image_errors(tmp_path_factory, name, changes, length):
    """Any other error would be a traceback, and a log line of the library would have no file name."""
    content = bytearray(FILES[name])
    for place, value in changes:
        content[place % len(content)] = value
    if length < len(content):
        del content[length:]
    file = tmp_path_factory.mktemp("damaged") / "a.img"
    file.write_bytes(content)
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logging.getLogger().addHandler(handler)
    try:
        image = read_image(file, None, ReadOptions(channels=4))
    except ImageError as error:
        message = str(error)
    else:
        message = f"image {file} "
        assert len(image) == 4
    finally:
        logging.getLogger().removeHandler(handler)
    assert message.startswith(f"image {file} ")
    assert not [record for record in records if record.name == "tifffile"]


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_an_error_at_every_length(tmp_path, name):
    content, end = FILES[name], len(FILES[name])
    file = tmp_path / "a.img"
    if name.endswith("tif"):  # its last bytes may be padding
        with tifffile.TiffFile(io.BytesIO(content)) as tiff:
            end = max(max(map(sum, zip(p.dataoffsets, p.databytecounts, strict=True))) for p in tiff.pages)
    for length in [*range(0, end, 29), end - 1]:
        file.write_bytes(content[:length])
        for look in (read_image, check_image):
            with pytest.raises(ImageError):
                look(file, None, ReadOptions(channels=4))
