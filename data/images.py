"""Reading images of any kind as upright RGB, with errors that contain the file name."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageFile, ImageOps

# Half a GB as RGB; a header with more pixels is damaged or malicious.
MAX_PIXELS = 178_956_970
# EXIF orientations other than "as stored"
_TURNED = range(2, 9)
_ORIENTATION_TAG = 0x0112
# Last bytes of a complete file: JPEG's end of image, PNG's IEND chunk with its checksum. Other files are decoded.
_ENDINGS = {".jpg": b"\xff\xd9", ".jpeg": b"\xff\xd9", ".png": b"IEND\xaeB`\x82"}


class ImageError(ValueError):
    """An image is missing or invalid; the message contains the file name."""


def read_image(path: Path, size: tuple[int, int] | None = None) -> Image.Image:
    """Read an image as RGB; greyscale, palette, CMYK and 16-bit images are converted.

    Annotations refer either to the stored pixels or to the image rotated by EXIF, and only the declared size shows
    which. If `size` matches only the stored pixels, EXIF is ignored. Otherwise EXIF is applied.

    Args:
        path: Image file.
        size: Declared (width, height) of the annotation file, None if it has none.

    Raises:
        ImageError: If the file is missing, truncated, not an image, or differs from `size`. Also if its header has
            more than `MAX_PIXELS` pixels; the image is not decoded then.
    """
    with _named(f"image {path}"), _open(path) as image:
        image.load()
        turned = _upright(image)
        image = _to_rgb(image if size == image.size != turned.size else turned)
    if size is not None and image.size != tuple(size):
        raise ImageError(
            f"image {path} must have {size[0]}x{size[1]} pixels as in its annotation file, got "
            f"{image.width}x{image.height}"
        )
    return image


def check_image(path: Path, size: tuple[int, int] | None = None) -> None:
    """Check an image by its header and its last bytes; decode it only if they do not match.

    Args:
        path: Image file.
        size: Declared (width, height) of the annotation file, None if it has none.

    Raises:
        ImageError: As `read_image`.
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
    """Convert Pillow's errors to an `ImageError` with the name of the image."""
    try:
        yield
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{name} does not exist") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} must have at most {MAX_PIXELS} pixels: {error}") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise ImageError(f"{name} cannot be read; it is truncated, corrupt or not an image: {error}") from None


def _upright(image: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(image) if image.getexif().get(_ORIENTATION_TAG) in _TURNED else image


def _open(path: Path) -> Image.Image:
    """Read the header of an image; raise `ImageError` if it has more than `MAX_PIXELS` pixels."""
    image = Image.open(path)
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise ImageError(f"image {path} must have at most {MAX_PIXELS} pixels, got {image.width}x{image.height}")
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
        # Pillow clips 16-bit greys at 255 instead of scaling them
        image = image.convert("F").point(lambda value: value * (1 / 257)).convert("L")
    return image.convert("RGB")


# Pillow warns above this bound and raises above twice the bound, also for images embedded in a file. Its default warns
# about valid images.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
# Pillow must raise on truncated files; another library may have switched that off.
ImageFile.LOAD_TRUNCATED_IMAGES = False
