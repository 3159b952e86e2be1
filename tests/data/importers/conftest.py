"""Small data sets of other formats, and their import."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from data.importers import Findings, ImageIndex, coco_datasets, format_of, image_root, open_source, read_labels


@pytest.fixture
def make(tmp_path) -> Callable:
    """Return `make({"a/b.jpg": (width, height), "a/b.txt": "text"})`, which writes files below a folder."""

    def write(files: dict[str, str | tuple[int, int]], root: Path = tmp_path / "source") -> Path:
        for name, content in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, tuple):
                Image.new("RGB", content).save(root / name)
            else:
                (root / name).write_text(content, encoding="utf-8")
        return root

    return write


class Imported(dict):
    """COCO data sets by split, with the findings, and the objects of each image."""

    found: Findings
    format: str

    def objects(self, split: str = "train") -> dict[str, list[tuple]]:
        """Return class name and box of the objects of each image."""
        names = {category["id"]: category["name"] for category in self[split]["categories"]}
        files = {image["id"]: image["file_name"] for image in self[split]["images"]}
        objects = {name: [] for name in files.values()}
        for annotation in self[split]["annotations"]:
            objects[files[annotation["image_id"]]].append((names[annotation["category_id"]], *annotation["bbox"]))
        return objects


@pytest.fixture
def run_import() -> Callable:
    """Return `run_import(source)`, which reads a data set."""

    def run(source: Path, images: Path | None = None, classes: list[str] | None = None) -> Imported:
        folder = open_source(source, exclude=source / "out", images=images, classes=classes)
        name = format_of(folder)
        files = folder.files if images is None else [path for path in images.rglob("*") if path.is_file()]
        labels, found = read_labels(folder, name, ImageIndex(images or folder.root, files))
        imported = Imported(coco_datasets(labels, image_root(labels), found) if labels.splits else {})
        imported.found, imported.format = found, name
        return imported

    return run
