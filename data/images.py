"""Reading images of any kind as upright RGB, with errors that contain the file name."""

import os
from pathlib import Path

from PIL import Image

from .image_files import ImageError, open_image, open_regular, orientation, to_rgb, upright

# Last bytes of a complete file: JPEG's end of image, PNG's IEND chunk with its checksum. Other files are decoded.
_ENDINGS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}


def read_image(path: Path, size: tuple[int, int] | None = None) -> Image.Image:
    """Read an image as RGB; greyscale, palette, CMYK and 16-bit images are converted.

    Annotations refer either to the stored pixels or to the image rotated by EXIF, and only the declared size shows
    which. If `size` matches only the stored pixels, EXIF is ignored. Otherwise EXIF is applied.

    Args:
        path: Image file.
        size: Declared (width, height) of the annotation file, None if it has none.

    Raises:
        ImageError: If the file is missing, not a regular file, truncated, not an image, or differs from `size`. Also if
            its header has more than `MAX_PIXELS` pixels; the image is not decoded then.
    """
    with open_image(path) as image:
        image.load()
        is_turned = _check_size(path, image, image.size, size)
        return to_rgb(upright(image) if is_turned else image)


def check_image(path: Path, size: tuple[int, int] | None = None) -> None:
    """Check an image by its header and its last bytes; decode it only if they do not match.

    Args:
        path: Image file.
        size: Declared (width, height) of the annotation file, None if it has none.

    Raises:
        ImageError: As `read_image`.
    """
    try:
        with open_image(path) as image:
            fits = size is None or tuple(size) == image.size
            whole = fits and _ends_well(path, image.format)
    except ImageError:
        whole = False
    if not whole:
        read_image(path, size)


def _check_size(path: Path, image: Image.Image, stored: tuple[int, int], declared: tuple[int, int] | None) -> bool:
    """Compare the size of an image with the declared one, and return whether EXIF is to be applied."""
    turned = stored[::-1] if orientation(image) >= 5 else stored
    if declared == stored != turned:
        return False
    if declared is not None and turned != tuple(declared):
        raise ImageError(
            f"image {path} must have {declared[0]}x{declared[1]} pixels as in its annotation file, got "
            f"{turned[0]}x{turned[1]}"
        )
    return True


def _ends_well(path: Path, kind: str | None) -> bool:
    ending = _ENDINGS.get(kind or "")
    if ending is None:
        return False
    with open_regular(path) as file:
        file.seek(-len(ending), os.SEEK_END)
        return file.read() == ending
