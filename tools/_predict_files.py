"""Parts of predict.py: images read ahead, collected detections, and output files that never overwrite other files."""

from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _outputs import file_key
from PIL import ExifTags, Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from data.files import atomic_file
from data.image_files import ImageError, open_image
from data.json_file import JsonError, read_json
from data.media_files import MediaFile
from data.shown import escaped
from data.video import video_comment
from engine.display import log
from engine.evaluation import coco_results

SOFTWARE = "resnet-dcn tools/predict.py"
# Formats of images and videos that the tool writes; other inputs get the first suffix after their own.
WRITTEN = {False: (".png", ".jpg", ".jpeg"), True: (".mp4",)}
JPEG_QUALITY = 92


@dataclass
class Findings:
    """Detections so far: COCO entries of images, COCO results, and counts per class."""

    class_names: list[str]
    category_ids: list[int]
    images: list[dict[str, Any]] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    unreadable: list[Path] = field(default_factory=list)
    _objects: Counter = field(default_factory=Counter)
    _images: Counter = field(default_factory=Counter)
    _best: dict[str, float] = field(default_factory=dict)

    def add(self, detections: dict[str, Any], image: Tensor, about: dict[str, Any]) -> None:
        """Add the detections of an image; `about` goes into its entry and may contain an id."""
        height, width = image.shape[1:]
        entry = {"id": len(self.images) + 1, **about, "width": width, "height": height}
        self.images.append(entry)
        self.results += coco_results(detections, entry["id"], self.category_ids)
        names = detections["names"]
        self._objects.update(names)
        self._images.update(set(names))
        for name, score in zip(names, detections["scores"].tolist(), strict=True):
            self._best[name] = max(score, self._best.get(name, 0.0))

    def skip(self, path: Path, error: Exception) -> None:
        """Record a file that cannot be read, and log a warning."""
        self.unreadable.append(path)
        log.warning("skipped: %s", error)

    def rows(self) -> list[tuple[str, int, int, str]]:
        """Return class, number of objects, number of images and best score of each detected class."""
        found = [name for name in dict.fromkeys(self.class_names) if name in self._objects]
        return [(name, self._objects[name], self._images[name], f"{self._best[name]:.2f}") for name in found]


def in_words(detections: dict[str, Any]) -> str:
    """Count the detections of an image by class, the most frequent first."""
    counts = Counter(detections["names"]).most_common()
    return ", ".join(f"{count} {escaped(name)}" for name, count in counts) or "nothing"


def plan_files(sources: Iterable[MediaFile], folder: Path) -> dict[MediaFile, Path]:
    """Return the output file of each source, and make the folder.

    Raises:
        ValueError: if the output file is an input, or an existing file that is not an earlier result.
    """
    sources = list(sources)
    files = {}
    for source in sources:
        suffixes = WRITTEN[source.is_video]
        known = source.path.suffix.lower() in suffixes
        files[source] = folder / (source.name if known else source.name + suffixes[0])
    inputs = {file_key(source.path) for source in sources}
    names: dict[Hashable, MediaFile] = {}
    for source, file in files.items():
        key = file_key(file)
        if key in inputs:
            raise ValueError(f"the result must not overwrite the input {file}: choose another --out")
        if key in names:
            raise ValueError(
                f"the results of {names[key].path} and {source.path} must be different files, got {file} for both: "
                "process them in two calls with another --out"
            )
        names[key] = source
        if file.exists() and not (_is_our_video if source.is_video else _is_our_image)(file):
            raise ValueError(f"{file} exists and is not an earlier result of this tool: choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    return files


def write_image(file: Path, image: Tensor) -> None:
    """Write a `(3, H, W)` uint8 image with the name of this tool in its EXIF data, and make its folder."""
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = SOFTWARE
    kind = {"format": "PNG"} if file.suffix.lower() == ".png" else {"format": "JPEG", "quality": JPEG_QUALITY}
    with atomic_file(file) as sink:
        to_pil_image(image).save(sink, exif=exif, **kind)


def check_json(file: Path) -> None:
    """Raise `ValueError` if the file exists and does not hold earlier results; make its folder."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        return
    try:
        values = read_json(file)
    except JsonError:
        values = None
    info = values.get("info") if isinstance(values, dict) else None
    is_dataset = isinstance(info, dict) and info.get("description") == SOFTWARE
    is_results = isinstance(values, list) and all(isinstance(v, dict) and "score" in v for v in values)
    if not (is_dataset or is_results):
        raise ValueError(f"--json {file} exists and does not hold earlier results of this tool: choose another file")


def _is_our_image(file: Path) -> bool:
    try:
        with open_image(file) as earlier:
            return earlier.getexif().get(ExifTags.Base.Software) == SOFTWARE
    except ImageError:
        return False


def _is_our_video(file: Path) -> bool:
    return video_comment(file) == SOFTWARE
