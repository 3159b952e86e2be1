"""Files of any kind are opened as images or named in an error, without waiting and without other programs."""

import contextlib
import functools
import io
import mmap
import os
import socket
import struct
import subprocess
import tracemalloc
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image, ImageFile

from data import image_files
from data.image_files import ImageError, MissingImageError, image_suffixes, open_image, silence_pillow
from data.images import check_image, read_image
from models.predictor import image_tensor

EVERYWHERE = pytest.mark.parametrize("read", [read_image, check_image, image_tensor])
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3)).astype(np.uint8))
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # pytest resets the filter of `silence_pillow`
OTHER_FORMATS = ["DDS", "EPS", "PCX", "PDF", "SGI", "XBM"]


def encoded(kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    NOISE.convert("1" if kind == "XBM" else "RGB").save(buffer, kind, **options)
    return buffer.getvalue()


@EVERYWHERE
@pytest.mark.parametrize("kind", OTHER_FORMATS)
def test_other_formats_are_never_read(tmp_path, monkeypatch, kind, read):
    monkeypatch.setattr(subprocess, "Popen", lambda *arguments, **options: pytest.fail("it started a program"))
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(kind))
    with pytest.raises(ValueError, match=r"a\.jpg cannot be read; .*: its content has none of the formats AVIF, BMP, "):
        read(path)


@EVERYWHERE
@pytest.mark.parametrize("kind", ["AVIF", "BMP", "GIF", "ICO", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP"])
def test_the_content_counts_and_not_the_suffix(tmp_path, kind, read):
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(kind))
    read(path)


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))  # such names are short


SPECIAL = {
    "pipe": (make_pipe, "must be a regular file, got a named pipe"),
    "socket": (make_socket, "must be a regular file, got a socket"),
    "endless": (lambda path: path.symlink_to("/dev/zero"), "must be a regular file, got a device"),
    "empty": (lambda path: path.symlink_to("/dev/null"), "must be a regular file, got a device"),
    "folder": (Path.mkdir, "must be a regular file, got a folder"),
    "loop": (lambda path: path.symlink_to(path), "cannot be read: Too many levels of symbolic links"),
}


@EVERYWHERE
@pytest.mark.parametrize("kind", SPECIAL)
def test_special_files_are_named_at_once(tmp_path, monkeypatch, kind, read):
    monkeypatch.chdir(tmp_path)
    make, message = SPECIAL[kind]
    make(tmp_path / "a.png")
    with pytest.raises(ValueError, match=rf"image .*a\.png {message}"):
        read(tmp_path / "a.png")


@EVERYWHERE
def test_a_link_to_nothing_is_a_missing_image(tmp_path, read):
    (tmp_path / "a.png").symlink_to("gone.png")
    with pytest.raises(ValueError, match=r"image .*a\.png does not exist") as error:
        read(tmp_path / "a.png")
    assert type(error.value).__name__ == MissingImageError.__name__


@EVERYWHERE
def test_files_have_a_largest_size(tmp_path, monkeypatch, read):
    (tmp_path / "a.webp").write_bytes(encoded("WEBP"))
    for module in ("data.image_files", "models.image_files"):
        monkeypatch.setattr(f"{module}.MAX_BYTES", 99)
    with pytest.raises(ValueError, match=r"image .*a\.webp must have at most 99 bytes, got \d{3}"):
        read(tmp_path / "a.webp")


def test_files_are_not_mapped_into_memory(tmp_path, monkeypatch):
    """A mapped file that another process shortens kills the reader."""
    NOISE.convert("L").save(tmp_path / "a.tif")
    monkeypatch.setattr(mmap, "mmap", lambda *arguments, **options: pytest.fail("it was mapped"))
    with open_image(tmp_path / "a.tif") as image:
        image.load()


@EVERYWHERE
@pytest.mark.parametrize("error", [TypeError, KeyError, struct.error, AssertionError, ZeroDivisionError, MemoryError])
def test_any_error_of_a_decoder_names_the_image(tmp_path, monkeypatch, error, read):
    (tmp_path / "a.bmp").write_bytes(encoded("BMP"))

    def fail(image):
        raise error

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(ValueError, match=rf"image .*a\.bmp cannot be read; .*: {error.__name__}"):
        read(tmp_path / "a.bmp")


def with_exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """Return a JPEG whose EXIF data has entries (tag, type, count, 4 bytes), with any content."""
    jpeg = encoded("JPEG")
    body = b"".join(struct.pack("<HHI", tag, kind, count) + value for tag, kind, count, value in entries)
    content = b"Exif\0\0II" + struct.pack("<HIH", 42, 8, len(entries)) + body + bytes(4)
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content + jpeg[2:]


ON_ITS_SIDE = (0x112, 3, 1, b"\x06\0\0\0")


@given(
    st.integers(0x100, 0xFFFF).filter(lambda tag: tag != 0x112),
    st.integers(0, 14),
    st.integers(0, 2**32 - 1),
    st.binary(min_size=4, max_size=4),
)
@example(282, 2, 4, b"72\0\0")  # XResolution
@example(296, 2, 4, b"72\0\0")  # ResolutionUnit
@example(0x8769, 4, 1, b"\xff\xff\xff\xff")  # EXIF's own entries, outside of the file
@example(0x8769, 4, 1, b"\x08\0\0\0")  # EXIF's own entries, inside of themselves
def test_other_exif_entries_never_matter(tmp_path_factory, tag, kind, count, value):
    path = tmp_path_factory.mktemp("exif") / "a.jpg"
    path.write_bytes(with_exif(ON_ITS_SIDE, (tag, kind, count, value)))
    assert tuple(read_image(path).shape) == (3, 40, 30)
    assert tuple(image_tensor(path).shape) == (3, 40, 30)
    check_image(path, (30, 40))


@pytest.mark.parametrize("entry", [(0x112, 2, 4, b"6\0\0\0"), (0x112, 3, 1, b"\x09\0\0\0"), (0x112, 12, 9, b"aaaa")])
def test_an_invalid_orientation_is_none(tmp_path, entry):
    (tmp_path / "a.jpg").write_bytes(with_exif(entry))
    assert tuple(read_image(tmp_path / "a.jpg").shape) == (3, 30, 40)


@pytest.mark.parametrize("content", [b"", b"II", b"II*\0\xff\xff\xff\xff", b"no TIFF at all", bytes(60_000)])
def test_exif_data_may_be_anything(tmp_path, content):
    (tmp_path / "a.jpg").write_bytes(encoded("JPEG", exif=b"Exif\0\0" + content))
    assert tuple(read_image(tmp_path / "a.jpg").shape) == (3, 30, 40)
    assert tuple(image_tensor(tmp_path / "a.jpg").shape) == (3, 30, 40)


def test_pillow_s_warnings_are_no_output(tmp_path):
    tiff = bytearray(encoded("TIFF"))
    place = tiff.index(struct.pack("<HH", 256, 4))  # ImageWidth
    tiff[place + 4 : place + 8] = struct.pack("<I", 2)  # of which there is one
    (tmp_path / "a.tif").write_bytes(tiff)
    for silent in (False, True):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if silent:
                silence_pillow()
            with contextlib.suppress(ImageError):
                read_image(tmp_path / "a.tif")
        assert bool(caught) == (not silent)


def test_suffixes_are_those_of_the_formats():
    suffixes = image_suffixes()
    assert {".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".apng", ".bmp", ".gif", ".tif", ".tiff", ".webp"} < {*suffixes}
    assert {".ppm", ".pgm", ".tga", ".jp2", ".mpo"} < {*suffixes}
    assert not {".eps", ".ps", ".psd", ".pdf", ".mpg", ".mpeg", ".fits"} & {*suffixes}
    assert image_files.image_suffixes() == tuple(sorted(suffixes))


@pytest.mark.parametrize("chunk", [b"zTXt", b"iCCP", b"iTXt"])
def test_metadata_never_take_much_memory(tmp_path, chunk):
    """They may unpack to far more than the image."""
    text = {b"zTXt": b"a\0\0", b"iCCP": b"a\0\0", b"iTXt": b"a\0\1\0\0\0"}[chunk] + bomb()
    png = encoded("PNG")
    packed = struct.pack(">I", len(text)) + chunk + text + struct.pack(">I", zlib.crc32(chunk + text))
    (tmp_path / "a.png").write_bytes(png[:33] + packed + png[33:])
    tracemalloc.start()
    try:
        with contextlib.suppress(ImageError):
            read_image(tmp_path / "a.png")
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


@functools.cache
def bomb() -> bytes:
    return zlib.compress(bytes(40_000_000), 9)
