"""tools/import_dataset.py: from labels of another format to a config that trains; an error writes nothing."""

import json
import random
import re
import shutil

import pytest
from PIL import Image

from engine.config import load_config

YAML = "train: images/train\nval: images/val\nnames: [cat, dog]"


@pytest.fixture
def source(tmp_path):
    """Return a folder of YOLO labels."""
    folder = tmp_path / "source"
    for split, text in (("train", "0 0.5 0.5 0.25 0.5\n1 0.1 0.2 0.4 0.2 0.4 0.6\n"), ("val", "1 0.5 0.5 0.5 0.5")):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        Image.new("RGB", (200, 100)).save(folder / f"images/{split}/{split}.jpg")
        (folder / f"labels/{split}/{split}.txt").write_text(text)
    (folder / "data.yaml").write_text(YAML)
    return folder


def files_of(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_the_next_command_works_from_anywhere(run_tool, source, tmp_path):
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    (tmp_path / "elsewhere").mkdir()
    code, out, err = run_tool("import_dataset", "source", "new/out", cwd=tmp_path)
    assert (code, err) == (0, "")
    assert "train       1               0                0      2      1              0        2" in out
    assert f"images: {source / 'images'}\n" in out
    assert out.endswith("next: python tools/train.py --config new/out/out.yaml\n")
    assert files_of(tmp_path / "new/out") == ["annotations/train.json", "annotations/val.json", "out.yaml"]
    assert {path: path.read_bytes() for path in source.rglob("*") if path.is_file()} == before

    config = tmp_path / "new/out/out.yaml"
    code, out, _ = run_tool(
        "check_dataset", "--config", config, "--contact-sheet", "", "--json", "c.json", cwd=tmp_path / "elsewhere"
    )
    assert (code, out.splitlines()[-1]) == (0, "no errors")
    assert json.loads((tmp_path / "elsewhere/c.json").read_text())["train"]["masks"] == 1


def test_errors_stop_before_anything_is_written(run_tool, source, tmp_path):
    """All at once, and bounded."""
    (source / "labels/train/train.txt").write_text("0 0.5 0.5 0.1\n" * 4000 + "5 0.5 0.5 0.1 0.1\n")
    code, _, err = run_tool("import_dataset", source, tmp_path / "out")
    assert code == 2
    assert err.startswith("error: 4,001 errors in the labels: nothing is written; fix them, or leave them out with --")
    assert "lines of YOLO labels that are not valid: 4,000\n    labels/train/train.txt, line 1: must have" in err
    assert "    and 3,995 more\n" in err
    assert "line 4001: 5; there are 2 names" in err
    assert len(err) < 2000
    assert not (tmp_path / "out").exists()

    code, out, _ = run_tool("import_dataset", source, tmp_path / "out", "--skip-invalid")
    assert code == 0
    assert "left out: lines of YOLO labels that are not valid: 4000; the first: labels/train/train.txt, line 1" in out


def test_an_earlier_result_is_replaced_and_nothing_else(run_tool, source, tmp_path):
    out = tmp_path / "out"
    assert run_tool("import_dataset", source, out).code == 0
    shutil.rmtree(source / "images/val")
    shutil.rmtree(source / "labels/val")
    (source / "data.yaml").write_text("train: images/train\nnames: [cat, dog]")
    code, text, _ = run_tool("import_dataset", source, out)
    assert code == 0
    assert "no config is written: training needs a train and a val split, and SOURCE has no val split" in text
    assert files_of(out) == ["annotations/train.json"]

    (out / "annotations/mine.json").write_text("{}")
    code, _, err = run_tool("import_dataset", source, out)
    assert code == 2
    assert err.startswith(f"error: OUT {out} has files that are not an earlier result of this tool, such as ")
    assert run_tool("import_dataset", source, source / "data.yaml").err.startswith("error: OUT must be a folder")


def test_another_base(run_tool, source, tmp_path):
    """A bare name of configs/, or a file, of which the config has the absolute path."""
    (tmp_path / "small.yaml").write_text("base: demo.yaml\ntrain: {epochs: 3}\n")
    for base in ("demo_dcn.yaml", "small.yaml"):
        assert run_tool("import_dataset", "source", "out", "--base", base, cwd=tmp_path).code == 0
        config = load_config(tmp_path / "out/out.yaml")
        assert config.data.min_size == 160
        assert config.data.download_hint is None
    assert config.train.epochs == 3
    code, _, err = run_tool("import_dataset", "source", "new", "--base", "demmo.yaml", cwd=tmp_path)
    assert code == 2
    assert "config demmo.yaml does not exist" in err
    assert not (tmp_path / "new").exists()


def test_the_test_split_evaluates_if_there_is_no_val_split(run_tool, source, tmp_path):
    (source / "data.yaml").write_text(YAML.replace("val:", "test:"))
    _, out, _ = run_tool("import_dataset", source, tmp_path / "out")
    assert "SOURCE has no val split; the config evaluates the test split" in out
    assert f"annotations: {tmp_path}/out/annotations/test.json" in (tmp_path / "out/out.yaml").read_text()


@pytest.mark.parametrize(
    ("files", "options", "said"),
    [
        ({}, [], "has no labels of a known format (yolo, "),
        ({"a.xml": "<annotation/>", "classes.txt": "cat"}, [], "the formats voc and yolo: choose one with --format"),
        ({"a.xml": "<annotation/>"}, ["--classes", "a,b"], "--classes has no effect: labels of the format voc have"),
        ({"a.xml": "<annotation/>"}, ["--images", "none"], "--images must be an existing folder, got none"),
        ({"classes.txt": "cat"}, [], "has no labelled image that is usable"),
        ({"a.xml": "<annotation/>"}, ["--skip-invalid"], "left out: labels whose image is not below"),
    ],
)
def test_errors_of_the_command(run_tool, tmp_path, files, options, said):
    (tmp_path / "source").mkdir()
    for name, text in files.items():
        (tmp_path / "source" / name).write_text(text)
    code, _, err = run_tool("import_dataset", tmp_path / "source", tmp_path / "out", *options)
    assert code == 2
    assert said in err
    assert not (tmp_path / "out").exists()


def test_a_source_that_does_not_exist(run_tool, tmp_path):
    (tmp_path / "export.zip").write_bytes(b"PK")
    code, _, err = run_tool("import_dataset", tmp_path / "export.zip", tmp_path / "out")
    assert (code, err) == (2, f"error: SOURCE {tmp_path}/export.zip is an archive: unpack it first\n")
    code, _, err = run_tool("import_dataset", tmp_path / "none", tmp_path / "out")
    assert (code, err) == (2, f"error: SOURCE {tmp_path}/none does not exist\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config", "labels"],
        ["--config", "labels/data.yaml"],
        ["--config", "labels/a.xml"],
        ["--config", "labels/coco.json"],
        ["--images", "labels", "--annotations", "labels"],
        ["--images", "labels", "--annotations", "labels/data.yaml"],
        ["--images", "labels", "--annotations", "labels/a.xml"],
        ["--images", "labels", "--annotations", "labels/labelme.json"],
        ["--images", "labels", "--annotations", "labels/tasks.json"],
    ],
)
def test_other_tools_name_the_command_that_converts_labels(run_tool, tmp_path, arguments):
    files = {
        "data.yaml": "path: .\ntrain: images/train\nval: images/val\nnames:\n  0: cat\n  1: dog\n",
        "a.xml": '<?xml version="1.0"?>\n<annotation><object/></annotation>',
        "labelme.json": '{"shapes": [], "imagePath": "a.jpg"}',
        "tasks.json": '[{"id": 1, "annotations": [], "data": {}}]',
        "coco.json": '{"images": [], "annotations": [], "categories": []}',
    }
    (tmp_path / "labels").mkdir()
    for name, text in files.items():
        (tmp_path / "labels" / name).write_text(text)
    code, _, err = run_tool("check_dataset", *arguments, "--contact-sheet", "", cwd=tmp_path)
    assert code == 2
    assert f"`python tools/import_dataset.py {arguments[-1]} OUT` converts" in err


def test_tiles(run_tool, source, tmp_path):
    """Twice into the same folder; then whole images again, which removes the tiles."""
    arguments = [
        "import_dataset",
        source,
        tmp_path / "out",
        "--tile",
        "64",
        "--overlap",
        "0.25",
        "--min-visible",
        "0.5",
        "--base",
        "r50.yaml",
    ]
    for _ in range(2):
        code, out, err = run_tool(*arguments)
        assert (code, err) == (0, "")
        # the box and the triangle are each visible enough in two of the four tiles that show them
        assert re.search(r"^  train +8 +2 +4 +4 +4$", out, re.MULTILINE), out
    names = [f"train/train_{x}_{y}.jpg" for y in (0, 36) for x in (0, 48, 96, 136)]
    names += [name.replace("train", "val") for name in names]
    others = ["annotations/train.json", "annotations/val.json", "out.yaml", "tiles.json"]
    assert files_of(tmp_path / "out") == sorted([*others, *(f"images/{name}" for name in names)])
    config = load_config(tmp_path / "out/out.yaml")
    assert (config.tile.size, config.tile.overlap, config.data.crowd_regions) == (64, 0.25, "ignore")
    code, out, _ = run_tool("check_dataset", "--config", tmp_path / "out/out.yaml", "--contact-sheet", "")
    assert code == 0, out
    code, _, err = run_tool("import_dataset", source, tmp_path / "out")
    assert (code, err) == (0, "")
    assert files_of(tmp_path / "out") == others[:3]


def test_an_image_that_cannot_be_cut_leaves_nothing(run_tool, source, tmp_path):
    (source / "images/val/val.jpg").write_bytes((source / "images/val/val.jpg").read_bytes()[:-40])
    code, _, err = run_tool("import_dataset", source, tmp_path / "out", "--tile", "64")
    assert code == 2
    assert "images that cannot be cut into tiles: 1\n    " in err
    assert "val.jpg" in err
    assert not (tmp_path / "out").exists()
    code, out, err = run_tool("import_dataset", source, tmp_path / "out", "--tile", "64", "--skip-invalid")
    assert (code, err) == (0, "")
    assert "left out: images that cannot be cut into tiles: 1" in out


@pytest.mark.parametrize("option", [["--overlap", "0.3"], ["--min-visible", "0.3"]])
def test_options_of_tiles_need_tiles(run_tool, source, tmp_path, option):
    code, _, err = run_tool("import_dataset", source, tmp_path / "out", *option)
    assert code == 2
    assert f"{option[0]} has no effect: it needs --tile" in err


def test_a_split_by_group_keeps_near_duplicates_together(run_tool, source, tmp_path):
    """The splits of the source are pooled. 14 images of 6 scenes, of which two show the same."""
    draw = random.Random(2)
    for scene in range(6):
        for shot in range(2):
            image = Image.frombytes("L", (9, 5), draw.randbytes(45)).resize((200, 100))
            name = f"scene{scene}_{shot}"
            image.save(source / f"images/train/{name}.jpg")
            (source / f"labels/train/{name}.txt").write_text(f"{scene % 2} 0.5 0.5 0.25 0.5")
    shutil.copy(source / "images/train/scene0_0.jpg", source / "images/train/scene3_0.jpg")
    for split in ("train", "val"):
        noise = Image.frombytes("L", (9, 5), draw.randbytes(45)).resize((200, 100))
        noise.save(source / f"images/{split}/{split}.jpg")
        (source / f"images/{split}/{split}.jpg").rename(source / f"images/{split}/scene{split == 'val':d}_9.jpg")
        (source / f"labels/{split}/{split}.txt").rename(source / f"labels/{split}/scene{split == 'val':d}_9.txt")
    arguments = ("--split", "0.5/0.3/0.2", "--group", r"(scene\d+)_", "--near-duplicates", "0")
    code, out, err = run_tool("import_dataset", source, tmp_path / "out", *arguments)
    assert (code, err) == (0, "")
    assert "split 0.5/0.3/0.2 (seed 0): 14 images in 5 groups, of the splits train and val of the source" in out
    assert "near-duplicates: 1 pair of images differ in at most 0 of 64 bits" in out
    assert "train/scene0_0.jpg = train/scene3_0.jpg" in out
    scenes = [
        {image["file_name"].split("scene")[1][0] for image in json.loads(file.read_text())["images"]}
        for file in sorted((tmp_path / "out/annotations").iterdir())
    ]
    assert sorted(scene for split in scenes for scene in split) == [*"012345"]
    assert any({"0", "3"} <= split for split in scenes)
    assert re.search(r"^  dog +\d+ +\d+ +\d+$", out, re.MULTILINE)

    for more, message in [
        (("--group", "folder"), "--group has no effect: it needs --split"),
        (("--split", "0.8/0.2", "--group", "("), "a group must be 'folder' or a regular expression, got '('"),
        (("--split", "0.8/0.2", "--group", "9"), "images whose name has no match of the group '9': 12"),
        (("--split", "0.8"), "must be two or three fractions above 0 whose sum is 1"),
        (("--split", "0.8/0.2", "--near-duplicates", "64"), "must be off or an integer from 0 to 63, got '64'"),
    ]:
        code, _, err = run_tool("import_dataset", source, tmp_path / "other", *more)
        assert (code, message in err) == (2, True), err
        assert not (tmp_path / "other").exists()
