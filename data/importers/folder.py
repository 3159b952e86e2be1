"""The files of a data set: label files, and images that are found by the names in them."""

import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import NamedTuple

from ..image_files import ImageError, image_suffixes, open_image, orientation
from ..json_file import JsonError, read_bytes
from .findings import Findings

SOFTWARE = "resnet-dcn tools/import_dataset.py"
SPLITS = ("train", "val", "test")
_SPLIT_NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}
_SPLIT_NAMES |= {"test": "test", "testing": "test"}
# words of a name, such as instances_train2017
_WORD = re.compile(r"[a-z]+")

_TOP = PurePath()


class LabelFolder(NamedTuple):
    """The folder of the label files.

    Attributes:
        root: Absolute path.
        files: All its files, in order, without hidden ones.
        only: The file that the user named instead of a folder, or None.
        classes: Class names that the user gave, or None.
        has_other_images: Whether the images are in another folder.
    """

    root: Path
    files: list[Path]
    only: Path | None = None
    classes: list[str] | None = None
    has_other_images: bool = False

    def name(self, path: Path) -> str:
        """Return the short name of a file for messages."""
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)

    def with_suffix(self, *suffixes: str) -> list[Path]:
        """Return the label files of these suffixes, or the one that the user named."""
        files = [self.only] if self.only else self.files
        return [file for file in files if file.suffix.lower() in suffixes]


def absolute(path: Path) -> Path:
    """Return an absolute path without "..", in which links keep their names, as the user sees them."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolve() replaces links


def list_files(root: Path, exclude: Path | None = None) -> list[Path]:
    """Return all files below a folder, also in linked folders, without hidden ones and the folder `exclude`."""
    found: list[Path] = []
    seen = set()
    for folder, folders, files in os.walk(root, onerror=_raise, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen or Path(folder) == exclude:
            folders[:] = []
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(folder, name) for name in sorted(files) if not name.startswith(".")]
    return found


def _raise(error: OSError) -> None:
    raise error  # a folder that cannot be read would be left out without a message


def split_of(path: PurePath) -> str | None:
    """Return the split that the folders or the name of a file contain, such as valid/a.txt or instances_val2017.json.

    The folder next to the file counts first.
    """
    for part in (*reversed(path.parts[:-1]), path.stem):
        words = [*dict.fromkeys(_SPLIT_NAMES[word] for word in _WORD.findall(part.lower()) if word in _SPLIT_NAMES)]
        if len(words) == 1:
            return words[0]
    return None


def split_of_folder(path: PurePath) -> str | None:
    """Return the split that a folder of a path has as its whole name, such as valid or train2017."""
    for part in reversed(path.parts[:-1]):
        if (word := part.lower().rstrip("0123456789")) in _SPLIT_NAMES:
            return _SPLIT_NAMES[word]
    return None


class ImageIndex:
    """The images of a folder, found by what a label file calls them.

    Args:
        root: Folder of the images.
        files: All files of the folder.

    Attributes:
        owners: Label file, or entry of one, of each image that is used.
    """

    def __init__(self, root: Path, files: Iterable[Path]) -> None:
        self.root = root
        suffixes = set(image_suffixes())
        self.paths = [file for file in files if file.suffix.lower() in suffixes]
        self.owners: dict[Path, str] = {}
        self._by_name: dict[str, list[Path]] = {}
        self._by_stem: dict[str, list[Path]] = {}
        self._sizes: dict[Path, tuple[tuple[int, int], tuple[int, int]] | None] = {}
        for path in self.paths:
            self._by_name.setdefault(path.name.lower(), []).append(path)
            self._by_stem.setdefault(path.stem.lower(), []).append(path)

    def find(self, name: str, folder: PurePath = _TOP) -> list[Path]:
        """Return the images that a name can mean: one, none, or several that fit equally well.

        The case of the name and its suffix may differ. Folders in the name choose between images of the same name, and
        then the folder of the label file does. An image in the folder of another split is never meant.

        Args:
            name: File name or path, also of another machine.
            folder: Folder of the label file, relative to the root of the labels.
        """
        wanted = PurePath(name.replace("\\", "/"))
        candidates = self._by_name.get(wanted.name.lower()) or self._by_stem.get(wanted.stem.lower(), [])
        split = split_of_folder(folder / "label")
        candidates = [path for path in candidates if split in (None, self._split_of(path) or split)]
        if len(candidates) < 2:
            return candidates
        outer = [part.lower() for part in reversed(wanted.parts[:-1])]
        inner = [part.lower() for part in folder.parts]

        def agreement(path: Path) -> tuple[int, int, bool]:
            parts = [part.lower() for part in path.relative_to(self.root).parts[:-1]]
            return _common(outer, parts[::-1]), _common(inner, parts), path.name == wanted.name

        best = max(map(agreement, candidates))
        return [path for path in candidates if agreement(path) == best]

    def _split_of(self, path: Path) -> str | None:
        return split_of_folder(path.relative_to(self.root))

    def find_one(self, name: str, place: str, found: Findings, folder: PurePath = _TOP) -> Path | None:
        """Return the image that a name means; none, or several, are an error."""
        paths = self.find(name, folder)
        if len(paths) == 1:
            return paths[0]
        if paths:
            found.error("names that fit more than one image", f"{place}: {name} is {paths[0]} or {paths[1]}")
        else:
            found.error(f"labels whose image is not below {self.root}", f"{place}: {name}")
        return None

    def find_for(self, name: str, label: Path, folder: LabelFolder, found: Findings) -> Path | None:
        """Return the image of a label file, by the name in it, or else by the name of the file."""
        place, inner = folder.name(label), label.relative_to(folder.root).parent
        stated = name.replace("\\", "/")
        if PurePath(stated).name and self.find(stated, inner):
            image = self.find_one(stated, place, found, inner)
        else:
            image = self.find_one(label.name, place, found, inner)
            if image:
                found.note("images found by the name of the label file, not by the name in it", f"{place}: {name}")
        if image and image.name != PurePath(stated).name and image.name.lower() == PurePath(stated).name.lower():
            found.note("image names that differ in upper and lower case", f"{place}: {PurePath(stated).name}")
        return image

    def claim(self, image: Path, place: str, found: Findings) -> bool:
        """Record the label file of an image; a second one is an error, and the result is False."""
        if image in self.owners:
            found.error("images with more than one label file", f"{image}: {self.owners[image]} and {place}")
            return False
        self.owners[image] = place
        return True

    def leave_out_others(self, found: Findings) -> None:
        """Count the images without labels: unlike in YOLO, nobody has stated that they contain no object."""
        for path in self.paths:
            if path not in self.owners:
                found.leave_out("images without labels", str(path))

    def size_of(
        self, path: Path, place: str, found: Findings, declared: tuple[int, int] | None = None
    ) -> tuple[int, int] | None:
        """Return the (width, height) of an image to which its labels refer; None after an error.

        EXIF can rotate an image. Its labels refer to the rotated image, unless their declared size is the stored one.

        Args:
            path: Image.
            place: File and element of the labels.
            found: Receives the error.
            declared: (width, height) in the labels.
        """
        if path not in self._sizes:
            try:
                with open_image(path) as image:
                    turned = image.size[::-1] if orientation(image) >= 5 else image.size
                    self._sizes[path] = (turned, image.size)
            except ImageError as error:
                found.error("images that cannot be read", str(error))
                self._sizes[path] = None
        sizes = self._sizes[path]
        if sizes is None or declared is None or declared in sizes:
            return sizes and (declared or sizes[0])
        got = f"{declared[0]}x{declared[1]}, and {path} has {sizes[0][0]}x{sizes[0][1]}"
        found.error("labels for another image size than that of the image", f"{place}: {got}")
        return None


def _common(one: list[str], other: list[str]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def read_lines(path: Path, found: Findings) -> list[str] | None:
    """Return the lines of a text file; None after an error."""
    try:
        return read_bytes(path).decode("utf-8-sig").splitlines()
    except JsonError as error:
        found.error("files that cannot be read", str(error))
    except UnicodeDecodeError as error:
        found.error("files that are not text in UTF-8", f"{path}, position {error.start}")
    return None
