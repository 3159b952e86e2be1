"""Reading pictures of any kind as RGB, upright, with errors that name the file."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageFile, ImageOps

# Half a GB as RGB; a header that tells of more is damaged or meant to hurt.
MAX_PIXELS = 178_956_970
# EXIF orientations that are more than "as stored"
_TURNED = range(2, 9)
_ORIENTATION_TAG = 0x0112
# How a whole file ends; anything else is decoded to be sure. JPEG: end of image; PNG: the IEND chunk with its checksum.
_ENDINGS = {".jpg": b"\xff\xd9", ".jpeg": b"\xff\xd9", ".png": b"IEND\xaeB`\x82"}


class ImageError(ValueError):
    """A picture that cannot be used; the message names the file."""


def read_image(path: Path, size: tuple[int, int] | None = None) -> Image.Image:
    """Read a picture as RGB; greyscale, palette, CMYK and 16-bit ones are converted.

    Annotations are drawn either on the stored pixels or on the picture as EXIF turns it, and only the size tells which:
    where `size` is that of the stored pixels alone the picture is left as stored, else EXIF is obeyed.

    Args:
        path: the file.
        size: (width, height) that the annotation file states, None when it states none.

    Raises:
        ImageError: if the file is missing, no picture, cut short, of another size than `size`, or of more than
            `MAX_PIXELS` by its header; it is not decoded then.
    """
    with _named(f"image {path}"), _open(path) as image:
        image.load()
        turned = _upright(image)
        image = _to_rgb(image if size == image.size != turned.size else turned)
    if size is not None and image.size != tuple(size):
        raise ImageError(
            f"image {path} is {image.width}x{image.height} pixels, but its annotation file says {size[0]}x{size[1]}"
        )
    return image


def check_image(path: Path, size: tuple[int, int] | None = None) -> None:
    """Check a picture at little cost, by its header and its last bytes; decode one that looks wrong, to be sure.

    Args:
        path: the file.
        size: (width, height) that the annotation file states, None when it states none.

    Raises:
        ImageError: as `read_image` would.
    """
    try:
        with _open(path) as image:
            fits = size is None or tuple(size) == image.size
        whole = fits and _ends_well(path)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        whole = False
    if not whole:
        read_image(path, size)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Make an `ImageError` with the picture's name of what Pillow raises."""
    try:
        yield
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{name} does not exist") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} has more than {MAX_PIXELS} pixels: {error}") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise ImageError(f"{name} cannot be read, it is cut short, corrupt or no picture: {error}") from None


def _upright(image: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(image) if image.getexif().get(_ORIENTATION_TAG) in _TURNED else image


def _open(path: Path) -> Image.Image:
    """Read the header of a picture; raises `ImageError` where that tells of more than `MAX_PIXELS`."""
    image = Image.open(path)
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise ImageError(f"image {path} has more than {MAX_PIXELS} pixels: it is {image.width}x{image.height}")
    return image


def _ends_well(path: Path) -> bool:
    ending = _ENDINGS.get(path.suffix.lower())
    if ending is None:
        return False
    with path.open("rb") as file:
        file.seek(-len(ending), os.SEEK_END)
        return file.read() == ending


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        # Pillow cuts 16-bit greys at 255 in place of scaling them
        image = image.convert("F").point(lambda value: value * (1 / 257)).convert("L")
    return image.convert("RGB")


# Pillow warns from its bound on and refuses twice as many pixels, also in a picture within a file; by default it warns
# of pictures that are good.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
# Pillow must raise on a file cut short; another library may have switched that off.
ImageFile.LOAD_TRUNCATED_IMAGES = False
