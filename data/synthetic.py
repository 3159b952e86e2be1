"""A synthetic data set in COCO or YOLO format: bent, sheared, rotated and scaled shapes, drawn from a seed.

The class is the kind of shape. Colour, size, rotation, shear and bend are random, so a detector has to follow the
outline. The disadvantage of a fixed 3x3 grid grows with `deformation`.
"""

import itertools
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from .files import atomic_file, write_json, write_text

# Corners of each shape in local coordinates within [-1, 1], joined by straight lines before the deformation.
_TRIANGLE = [(-0.8, -0.9), (1, 0), (-0.8, 0.9)]
_CROSS = [(-1, -0.3), (-0.3, -0.3), (-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3)]
_CROSS = _CROSS + [(-x, -y) for x, y in _CROSS]
_BAR = [(-1, -0.28), (1, -0.28), (1, 0.28), (-1, 0.28)]
_TEE = [(-1, -0.9), (1, -0.9), (1, -0.35), (0.28, -0.35), (0.28, 0.9), (-0.28, 0.9), (-0.28, -0.35), (-1, -0.35)]
_STAR = [
    ((1 if i % 2 == 0 else 0.42) * math.cos(math.pi * i / 5), (1 if i % 2 == 0 else 0.42) * math.sin(math.pi * i / 5))
    for i in range(10)
]
SHAPES = {"bar": _BAR, "cross": _CROSS, "star": _STAR, "tee": _TEE, "triangle": _TRIANGLE}

# split -> file name -> (category, outline) of each object
_Drawn = dict[str, dict[str, list[tuple[int, np.ndarray]]]]

_SUPERSAMPLING = 3
_POINTS_PER_EDGE = 12
_MIN_VISIBLE = 0.6


def write_shapes(
    root: Path,
    *,
    train: int = 800,
    val: int = 200,
    width: int = 192,
    height: int = 160,
    deformation: float = 0.5,
    seed: int = 0,
    label_format: str = "coco",
    progress: Callable[[Iterable], Iterable] = iter,
) -> None:
    """Write the data set.

    The same arguments produce the same bytes. The last file is written atomically, so that an interrupted call does not
    leave a data set that looks complete.

    | format | images | labels | last |
    |---|---|---|---|
    | coco | `root/{train,val}/*.png` | | `root/annotations/{train,val}.json` |
    | yolo | `root/images/{train,val}/*.png` | `root/labels/{train,val}/*.txt` | `root/data.yaml` |

    Args:
        root: Folder of the data set, created if it is missing.
        train: Number of training images.
        val: Number of validation images, drawn from separate random numbers.
        width: Image width in pixels.
        height: Image height in pixels.
        deformation: 0 only rotates and scales the shapes, 1 shears and bends them strongly.
        seed: Seed of all random numbers.
        label_format: One of `FORMATS`.
        progress: Function that wraps the iteration over the images of a split.

    Raises:
        ValueError: If a number is out of range.
    """
    if not 0 <= deformation <= 1:
        raise ValueError(f"`deformation` must be from 0 to 1, got {deformation}")
    if min(train, val) < 1 or min(width, height) < 64:
        raise ValueError(
            "each split must have at least 1 image and each side at least 64 pixels, "
            f"got {train} train and {val} val images of {width}x{height}"
        )
    if seed < 0:
        raise ValueError(f"`seed` must be at least 0, got {seed}")
    if label_format not in FORMATS:
        raise ValueError(f"`label_format` must be one of {', '.join(FORMATS)}, got {label_format!r}")
    image_folder, write_labels = FORMATS[label_format]
    for last in ("annotations/train.json", "annotations/val.json", "data.yaml"):
        (root / last).unlink(missing_ok=True)
    drawn = {}
    for index, (split, count) in enumerate((("train", train), ("val", val))):
        folder = root / image_folder / split
        folder.mkdir(parents=True, exist_ok=True)
        drawn[split] = {}
        for image_id in progress(range(1, count + 1)):
            # each image has a separate random stream, so that a larger set starts with the images of a smaller one
            image, objects = draw_image(np.random.default_rng([seed, index, image_id]), (width, height), deformation)
            name = f"{image_id:06d}.png"
            with atomic_file(folder / name) as file:
                image.save(file, "PNG")
            drawn[split][name] = objects
    write_labels(root, drawn, (width, height))


def _write_coco(root: Path, drawn: _Drawn, size: tuple[int, int]) -> None:
    for split, files in drawn.items():
        images, annotations = [], []
        for image_id, (name, objects) in enumerate(files.items(), start=1):
            images.append({"id": image_id, "file_name": name, "width": size[0], "height": size[1]})
            for category, outline in objects:
                annotations.append(_annotation(len(annotations) + 1, image_id, category, outline))
        categories = [{"id": i, "name": name, "supercategory": "shape"} for i, name in enumerate(SHAPES, start=1)]
        file = root / "annotations" / f"{split}.json"
        write_json(file, {"images": images, "annotations": annotations, "categories": categories})


def _annotation(annotation_id: int, image_id: int, category: int, outline: np.ndarray) -> dict:
    (left, top), (right, bottom) = outline.min(0), outline.max(0)
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": category,
        "bbox": [round(float(v), 2) for v in (left, top, right - left, bottom - top)],
        "area": round(_area(outline), 2),
        "iscrowd": 0,
        "segmentation": [[round(float(v), 2) for v in outline.flatten()]],
    }


def _write_yolo(root: Path, drawn: _Drawn, size: tuple[int, int]) -> None:
    """Write a line for each object: its class from 0, and the centre and the size of its box as fractions."""
    for split, files in drawn.items():
        for name, objects in files.items():
            lines = []
            for category, outline in objects:
                low, high = outline.min(0) / size, outline.max(0) / size
                numbers = " ".join(f"{v:.6f}" for v in (*((low + high) / 2), *(high - low)))
                lines.append(f"{category - 1} {numbers}\n")
            write_text(root / "labels" / split / Path(name).with_suffix(".txt"), "".join(lines))
    names = "".join(f"  {index}: {name}\n" for index, name in enumerate(SHAPES))
    write_text(root / "data.yaml", f"train: images/train\nval: images/val\nnames:\n{names}")


# label format -> folder of the images, and function that writes the labels
FORMATS = {"coco": ("", _write_coco), "yolo": ("images", _write_yolo)}


def draw_image(
    rng: np.random.Generator, size: tuple[int, int], deformation: float
) -> tuple[Image.Image, list[tuple[int, np.ndarray]]]:
    """Draw one image of two to six shapes with little overlap.

    Returns:
        The image, and for each shape its category id (from 1) and its outline `(P, 2)`, x and y in pixels, clipped to
        the image.
    """
    canvas = _background(rng, size)
    pixels = np.asarray(canvas).astype(np.float32)
    objects: list[tuple[int, np.ndarray]] = []
    taken: list[np.ndarray] = []
    for _ in range(int(rng.integers(2, 7))):
        for _ in range(20):
            category = int(rng.integers(len(SHAPES)))
            outline = place_shape(rng, list(SHAPES.values())[category], size, deformation)
            box = np.concatenate([outline.min(0), outline.max(0)])
            inside = clip_outline(outline, size)
            if _area(inside) >= _MIN_VISIBLE * _area(outline) and all(_iou(box, other) < 0.1 for other in taken):
                break
        else:
            continue
        taken.append(box)
        objects.append((category + 1, inside))
        cover = _coverage(outline, size)[..., None]
        pixels = pixels * (1 - cover) + cover * _colour(rng, pixels.mean((0, 1)))
    pixels += rng.normal(0, 10, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), objects


def place_shape(
    rng: np.random.Generator, corners: list[tuple[float, float]], size: tuple[int, int], deformation: float
) -> np.ndarray:
    """Return the outline `(P, 2)` in pixels of a deformed shape at a random location, possibly partly outside."""
    steps = np.linspace(0, 1, _POINTS_PER_EDGE, endpoint=False)[:, None]
    ring = np.array([*corners, corners[0]])
    outline = np.concatenate([start + (end - start) * steps for start, end in itertools.pairwise(ring)])
    bend, shear = deformation * rng.uniform(-0.9, 0.9), deformation * rng.uniform(-0.7, 0.7)
    stretch = 1 + deformation * rng.uniform(-0.4, 0.4)
    outline = outline + np.stack([np.zeros(len(outline)), bend * (outline[:, 0] ** 2 - 0.5)], 1)
    turn = rng.uniform(0, 2 * math.pi)
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    outline = outline @ np.array([[stretch, shear], [0, 1 / stretch]]).T @ rotation.T
    radius = min(size) * rng.uniform(0.1, 0.24)
    return outline * radius + rng.uniform(0.08, 0.92, 2) * size


def clip_outline(outline: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Clip an outline `(P, 2)` to the image by the Sutherland-Hodgman algorithm; empty if it is outside."""
    for axis, limit, sign in ((0, 0, 1), (0, size[0], -1), (1, 0, 1), (1, size[1], -1)):
        following = np.roll(outline, -1, 0)
        depth, next_depth = sign * (outline[:, axis] - limit), sign * (following[:, axis] - limit)
        is_inside, crosses = depth >= 0, (depth >= 0) != (next_depth >= 0)
        fraction = np.divide(depth, depth - next_depth, out=np.zeros_like(depth), where=crosses)[:, None]
        both = np.stack([outline, outline + fraction * (following - outline)], 1)  # (P, 2, 2)
        outline = both[np.stack([is_inside, crosses], 1)]
    return np.clip(outline, 0, size)


def _area(outline: np.ndarray) -> float:
    x, y = outline[:, 0], outline[:, 1]
    return abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))) / 2


def _background(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Return an image of blurred colours with thin lines, which are not shapes."""
    coarse = Image.fromarray(rng.integers(40, 200, (4, 5, 3)).astype(np.uint8))
    canvas = coarse.resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(canvas)
    for _ in range(int(rng.integers(2, 7))):
        line = [(float(x), float(y)) for x, y in rng.uniform(0, 1, (2, 2)) * size]
        draw.line(line, fill=tuple(int(v) for v in rng.integers(0, 256, 3)), width=int(rng.integers(1, 3)))
    return canvas


def _coverage(outline: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the fraction of each pixel inside of the outline, `(height, width)` in [0, 1]."""
    large = Image.new("L", (size[0] * _SUPERSAMPLING, size[1] * _SUPERSAMPLING))
    ImageDraw.Draw(large).polygon([tuple(point) for point in (outline * _SUPERSAMPLING).tolist()], fill=255)
    return np.asarray(large.resize(size, Image.Resampling.BOX)).astype(np.float32) / 255


def _colour(rng: np.random.Generator, mean: np.ndarray) -> np.ndarray:
    """Return a colour that differs from the mean of the image."""
    while True:
        colour = rng.uniform(0, 255, 3)
        if np.abs(colour - mean).sum() > 150:
            return colour.astype(np.float32)


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    overlap = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
    return overlap / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - overlap)
