"""The folder of the tiles that an import cuts: `images`, whose files are listed in `tiles.json`."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..files import write_json
from ..json_file import JsonError, read_json
from .folder import SOFTWARE, absolute

_DONE, _PART, _LIST = "images", "images.part", "tiles.json"
# in the list; it shows that this tool has written it
_INFO = {"description": SOFTWARE}


def earlier_tiles(folder: Path) -> set[Path]:
    """Return the files of tiles that earlier imports wrote into a result folder, with their list."""
    unfinished = {path for path in (folder / _PART).rglob("*") if path.is_file()}
    try:
        found = read_json(folder / _LIST)
    except JsonError:
        return unfinished
    if not isinstance(found, dict) or found.get("info") != _INFO:
        return unfinished
    names = found.get("files")
    names = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    return unfinished | {folder / _LIST} | {folder / _DONE / name for name in names}


def is_tile_folder(path: Path, folder: Path) -> bool:
    """Return whether a path is the folder of the tiles in a result folder, or a folder in it."""
    return path.is_dir() and path.relative_to(folder).parts[0] in (_DONE, _PART)


@contextmanager
def new_tiles(folder: Path) -> Iterator[Path]:
    """Yield a new folder for tiles in a result folder; after an error it is removed."""
    part = folder / _PART
    shutil.rmtree(part, ignore_errors=True)
    is_new = not folder.exists()
    part.mkdir(parents=True)
    try:
        yield part
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        if is_new:
            with suppress(OSError):
                folder.rmdir()
        raise


def remove_tiles(folder: Path) -> None:
    """Remove the tiles of earlier imports from a result folder, but not a folder of `new_tiles`."""
    for path in earlier_tiles(folder):
        if path.relative_to(folder).parts[0] != _PART:
            path.unlink(missing_ok=True)
    for path, _, _ in os.walk(folder / _DONE, topdown=False):
        with suppress(OSError):  # other files
            Path(path).rmdir()


def keep_tiles(folder: Path, datasets: dict[str, dict[str, Any]]) -> Path:
    """Make the folder of `new_tiles` the tiles of a result folder, in place of earlier tiles; return it."""
    remove_tiles(folder)
    files = [entry["file_name"] for raw in datasets.values() for entry in raw["images"]]
    write_json(folder / _LIST, {"info": _INFO, "files": files})
    (folder / _PART).replace(folder / _DONE)
    return absolute(folder / _DONE)
