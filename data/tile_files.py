"""Image files of tiles: their names, and cutting an image."""

from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageOps

from .band_files import Bands
from .coco_file import DatasetError
from .files import atomic_file
from .image_files import ImageError, orientation
from .pixels import open_pixels

Window = tuple[int, int, int, int]
JPEG_OPTIONS = {"format": "JPEG", "quality": 95, "subsampling": 0}
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16")


class TileName(NamedTuple):
    """Start and end of the names of an image's tiles."""

    stem: str
    suffix: str


def tile_names(datasets: dict[str, dict[str, Any]]) -> dict[str, TileName]:
    """Return how the tiles of each image are named, by its file name.

    Raises:
        DatasetError: If the tiles of two images have the same names.
    """
    names: dict[str, TileName] = {}
    owners: dict[str, str] = {}
    for entry in (entry for raw in datasets.values() for entry in raw["images"]):
        path = Path(entry["file_name"])
        is_kept = path.suffix.lower() in (".jpg", ".jpeg", ".png")
        name = TileName(path.with_suffix("").as_posix(), path.suffix) if is_kept else TileName(path.as_posix(), ".png")
        other = owners.setdefault("".join(name).casefold(), entry["file_name"])
        if other != entry["file_name"]:
            raise DatasetError(f"the tiles of {other} and {entry['file_name']} have the same names: rename one image")
        names[entry["file_name"]] = name
    return names


def tile_entry(name: TileName, window: Window) -> dict[str, Any]:
    """Return the `file_name`, `width` and `height` of a tile."""
    left, top, right, bottom = window
    return {"file_name": f"{name.stem}_{left}_{top}{name.suffix}", "width": right - left, "height": bottom - top}


def write_tiles(path: Path, size: tuple[int, int], tiles: dict[Window, dict[str, Any]], folder: Path) -> None:
    """Write the tiles of an image in the orientation of its declared size, in its own mode.

    Raises:
        ImageError: If the image cannot be read, has another size, or cannot be a PNG file.
    """
    with open_pixels(path) as image:
        if isinstance(image, Bands):
            raise ImageError(f"image {path} has channels of {image.dtype}, which tiles in PNG files cannot keep")
        image.load()
        turned = image.size[::-1] if orientation(image) >= 5 else image.size
        if tuple(size) not in (image.size, turned):
            raise ImageError(f"image {path} must have {size[0]}x{size[1]} pixels, got {turned[0]}x{turned[1]}")
        upright = image if tuple(size) == image.size != turned else ImageOps.exif_transpose(image)
        for window, entry in tiles.items():
            _write_tile(folder / entry["file_name"], upright.crop(window), path)


def _write_tile(file: Path, tile: Image.Image, source: Path) -> None:
    is_png = file.suffix.lower() == ".png"
    if is_png and tile.mode not in _PNG_MODES:
        raise ImageError(f"image {source} has the mode {tile.mode}, which PNG files do not have: convert it")
    with atomic_file(file) as sink:
        tile.save(sink, **({"format": "PNG"} if is_png else JPEG_OPTIONS))
