"""The synthetic data set is reproducible, its boxes are tight, and it follows its arguments."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from data import CocoDetection, eval_transform, load_annotations, synthetic
from data.synthetic import SHAPES, clip_outline, draw_image, place_shape, write_shapes

SIZE = (96, 80)


def contents(root: Path) -> dict[str, bytes]:
    return {str(file.relative_to(root)): file.read_bytes() for file in sorted(root.rglob("*")) if file.is_file()}


def write(root: Path, **options) -> dict[str, bytes]:
    write_shapes(root, **{"train": 2, "val": 1, "width": 80, "height": 64} | options)
    return contents(root)


def test_same_arguments_give_the_same_bytes(tmp_path):
    first = write(tmp_path / "a")
    assert first == write(tmp_path / "b")
    assert set(first) == {
        "annotations/train.json",
        "annotations/val.json",
        "train/000001.png",
        "train/000002.png",
        "val/000001.png",
    }
    assert first["train/000001.png"] != first["val/000001.png"]


@pytest.mark.parametrize("other", [{"seed": 1}, {"deformation": 0.0}])
def test_seed_and_deformation_change_every_file(tmp_path, other):
    first, second = write(tmp_path / "a"), write(tmp_path / "b", **other)
    assert all(first[name] != second[name] for name in first)


def test_larger_set_begins_with_the_smaller_one(tmp_path):
    small, large = write(tmp_path / "a"), write(tmp_path / "b", train=4, val=3)
    pictures = [name for name in small if name.endswith(".png")]
    assert all(small[name] == large[name] for name in pictures)
    for split, count in (("train", 2), ("val", 1)):
        few, many = (json.loads(files[f"annotations/{split}.json"]) for files in (small, large))
        assert few["images"] == many["images"][:count]
        assert few["annotations"] == many["annotations"][: len(few["annotations"])]


def test_yolo_labels_are_the_same_objects(tmp_path):
    coco, yolo = write(tmp_path / "a"), write(tmp_path / "b", label_format="yolo")
    about = yaml.safe_load(yolo["data.yaml"])
    assert [*about["names"].values()] == [*SHAPES]
    for split in ("train", "val"):
        raw = json.loads(coco[f"annotations/{split}.json"])
        for entry in raw["images"]:
            name = entry["file_name"]
            assert yolo[f"{about[split]}/{name}"] == coco[f"{split}/{name}"]
            label = yolo[f"labels/{split}/{name}".replace(".png", ".txt")].decode()
            rows = np.array([line.split() for line in label.splitlines()], dtype=float)
            boxes = [a for a in raw["annotations"] if a["image_id"] == entry["id"]]
            assert rows[:, 0].tolist() == [a["category_id"] - 1 for a in boxes]
            centre, size = rows[:, 1:3] * (80, 64), rows[:, 3:] * (80, 64)
            expected = np.array([a["bbox"] for a in boxes])
            np.testing.assert_allclose(np.hstack([centre - size / 2, size]), expected, atol=0.006)  # two decimals


@pytest.mark.parametrize("size", [(70, 110), (110, 70)])
def test_width_and_height(tmp_path, size):
    write(tmp_path, width=size[0], height=size[1])
    for split in ("train", "val"):
        for entry in json.loads((tmp_path / "annotations" / f"{split}.json").read_text())["images"]:
            with Image.open(tmp_path / split / entry["file_name"]) as image:
                assert image.size == (entry["width"], entry["height"]) == size


def test_load_annotations_accepts_it(shapes):
    for split, count in (("train", 12), ("val", 6)):
        found = load_annotations(shapes / split, shapes / "annotations" / f"{split}.json")
        assert found.class_names == sorted(SHAPES)
        assert len(CocoDetection(found, eval_transform(), keep_images_without_boxes=False)) == count


def test_every_shape_is_drawn():
    rng = np.random.default_rng(0)
    categories = {category for _ in range(60) for category, _ in draw_image(rng, SIZE, 1.0)[1]}
    assert categories == set(range(1, len(SHAPES) + 1))


@pytest.mark.parametrize("deformation", [0.0, 1.0])
def test_boxes_are_tight_around_the_shapes(monkeypatch, deformation):
    covers = []

    def remember(outline, size):
        covers.append((cover := coverage(outline, size), bool((outline < 0).any() or (outline > size).any())))
        return cover

    coverage = synthetic._coverage
    monkeypatch.setattr(synthetic, "_coverage", remember)
    # within a pixel, and slightly more if the tip of a shape touches the border
    slack = {False: 1.1, True: 2.5}
    rng = np.random.default_rng(0)
    seen = []
    for _ in range(80):
        covers.clear()
        _, objects = draw_image(rng, SIZE, deformation)
        for (_, outline), (cover, leaves) in zip(objects, covers, strict=True):
            rows, columns = cover.nonzero()
            drawn = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            box = np.concatenate([outline.min(0), outline.max(0)])
            assert abs(drawn - box).max() < slack[leaves]
            assert synthetic._area(outline) == pytest.approx(cover.sum(), rel=0.2)
            seen.append(leaves)
    assert 20 < sum(seen) < len(seen) - 20, "some shapes cross the border and some do not"


def test_file_describes_the_shapes(shapes):
    content = json.loads((shapes / "annotations" / "train.json").read_text())
    rng = np.random.default_rng([0, 0, 1])
    _, objects = draw_image(rng, SIZE, 1.0)
    entries = [entry for entry in content["annotations"] if entry["image_id"] == 1]
    for entry, (category, outline) in zip(entries, objects, strict=True):
        x, y, w, h = entry["bbox"]
        assert entry["category_id"] == category
        assert [x, y, x + w, y + h] == pytest.approx([*outline.min(0), *outline.max(0)], abs=0.02)
        assert entry["area"] == pytest.approx(synthetic._area(outline), abs=0.01)
        assert np.reshape(entry["segmentation"], (-1, 2)) == pytest.approx(outline, abs=0.01)
    assert [entry["id"] for entry in content["annotations"]] == list(range(1, len(content["annotations"]) + 1))


def test_clipping_a_triangle():
    # its tip at x = -4 is outside: it enters the image from y = 20 to y = 40 at the border, and to 60 at x = 12
    triangle = np.array([[-4.0, 10.0], [12.0, 10.0], [12.0, 60.0]])
    inside = clip_outline(triangle, SIZE)
    assert inside.min(0) == pytest.approx([0, 10])
    assert inside.max(0) == pytest.approx([12, 60])
    assert synthetic._area(inside) == pytest.approx(400 - 4 * 12.5 / 2)
    assert len(clip_outline(triangle - 50, SIZE)) == 0
    assert np.array_equal(clip_outline(triangle + 10, SIZE), triangle + 10)


def test_undeformed_shapes_are_only_rotated_and_scaled():
    def side_ratios(deformation: float) -> np.ndarray:
        outline = place_shape(np.random.default_rng(4), SHAPES["bar"], SIZE, deformation)
        corners = outline[:: len(outline) // 4]
        sides = np.linalg.norm(corners - np.roll(corners, -1, 0), axis=1)
        return sides / sides[1]

    assert side_ratios(0.0) == pytest.approx([2 / 0.56, 1, 2 / 0.56, 1])
    assert abs(side_ratios(1.0) - side_ratios(0.0)).max() > 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"deformation": 1.5}, "`deformation` must be from 0 to 1, got 1.5"),
        ({"deformation": -0.1}, "got -0.1"),
        ({"deformation": float("nan")}, "got nan"),
        ({"train": 0}, "at least 1 image .* got 0 train and 1 val"),
        ({"val": 0}, "at least 1 image .* got 2 train and 0 val"),
        ({"width": 63}, "each side at least 64 pixels, got .* 63x64"),
        ({"height": 63}, "each side at least 64 pixels, got .* 80x63"),
        ({"seed": -1}, "`seed` must be at least 0, got -1"),
    ],
)
def test_bad_arguments(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_an_interrupted_call_leaves_no_data_set_that_looks_complete(tmp_path):
    write(tmp_path)

    def interrupted(image_ids):
        yield 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, seed=1, progress=interrupted)
    assert not [*tmp_path.rglob("*.json")]
    assert [*tmp_path.rglob("*.png")]
