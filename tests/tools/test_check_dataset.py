"""tools/check_dataset.py: all that is wrong with a data set, in words, as JSON, as a picture and as an exit code."""

import json
import shutil
from dataclasses import replace

import pytest
from PIL import Image, ImageChops

from models import DETECTORS


@pytest.fixture
def broken(shapes, tmp_path):
    """A copy of the drawn data set with a box without size, a lost picture, and a train picture in val."""
    shutil.copytree(shapes, tmp_path / "shapes")
    file = tmp_path / "shapes/annotations/train.json"
    content = json.loads(file.read_text())
    content["annotations"][3]["bbox"][2] = 0
    file.write_text(json.dumps(content))
    names = [entry["file_name"] for entry in content["images"]]
    (tmp_path / "shapes/train" / names[4]).unlink()
    val = json.loads((tmp_path / "shapes/annotations/val.json").read_text())
    shutil.copy(tmp_path / "shapes/train" / names[0], tmp_path / "shapes/val" / val["images"][0]["file_name"])
    return tmp_path / "shapes"


def test_a_good_set(run_tool, tiny_config, tmp_path):
    code, out, err = run_tool(
        "check_dataset", "--config", tiny_config, "--json", "found.json", "--num-images", 5, cwd=tmp_path
    )
    assert (code, err) == (0, "")
    assert "\nno errors\n" in out
    assert "12 images, " in out
    assert "6 images, " in out
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["errors"] == 0
    assert found["train"]["images"] == 12
    assert found["train"]["image_sizes"] == {"96x80": 12}
    assert sum(row["boxes"] for row in found["train"]["classes"].values()) == sum(found["train"]["box_sizes"].values())
    # 5 pictures of each split, 320 pixels high, four to a row
    with Image.open(tmp_path / "check_dataset.png") as sheet:
        assert sheet.size == (4 * (384 + 6), 3 * 326)


def test_what_is_wrong_is_listed_with_an_exit_code(run_tool, tiny_config, broken, tmp_path):
    overrides = [
        f"data.{split}={{images: {broken}/{split}, annotations: {broken}/annotations/{split}.json}}"
        for split in ("train", "val")
    ]
    code, out, err = run_tool(
        "check_dataset",
        "--config",
        tiny_config,
        "--json",
        "found.json",
        "--contact-sheet",
        "",
        *overrides,
        cwd=tmp_path,
    )
    assert (code, err) == (1, "")
    assert out.endswith("2 errors: training stops on this data set\n")
    found = json.loads((tmp_path / "found.json").read_text())
    kinds = {problem["what"]: problem["count"] for problem in found["train"]["errors"]}
    assert kinds == {f"images missing in {broken}/train": 1, "invalid boxes (x, y, width, height)": 1}
    assert found["val"]["errors"] == []
    (leak,) = found["together"]
    assert leak["what"] == "images that are in both splits, which makes validation too optimistic"
    (pair,) = leak["found"]
    assert f"{broken}/train/" in pair
    assert f" = {broken}/val/" in pair
    for problem in (*found["train"]["errors"], leak):
        assert problem["what"] in out
        assert problem["found"][0] in out
    assert [file.name for file in tmp_path.iterdir() if file.suffix == ".png"] == []


def test_masks_that_cannot_be_read(run_tool, tiny_config, shapes, tmp_path, monkeypatch):
    """They are errors for the detectors that need them, else warnings; the sheet has masks where all can be read."""
    raw = json.loads((shapes / "annotations/val.json").read_text())
    raw["annotations"][0]["segmentation"] = [[1, 2, 3, 4]]
    (tmp_path / "val.json").write_text(json.dumps(raw))
    options = ["--config", tiny_config, "--json", "found.json", f"data.val.annotations={tmp_path}/val.json"]
    sheets = {}
    for has_masks, kind in ((False, "warnings"), (True, "errors")):
        monkeypatch.setitem(DETECTORS, "faster_rcnn", replace(DETECTORS["faster_rcnn"], has_masks=has_masks))
        code, out, err = run_tool("check_dataset", *options, "--contact-sheet", f"{kind}.png", cwd=tmp_path)
        assert (code, err) == (int(kind == "errors"), "")
        count = len(raw["annotations"])
        boxes = count - (kind == "errors")
        assert f"6 images, {boxes} boxes to train on" in out
        assert f"{count - 1} with a mask, 0 crowd regions" in out
        found = json.loads((tmp_path / "found.json").read_text())
        (problem,) = (p for p in found["val"][kind] if p["what"] == "annotations without a valid mask")
        assert problem["count"] == 1
        assert found["val"]["masks"] == count - 1
        sheets[kind] = Image.open(tmp_path / f"{kind}.png").convert("RGB")
    train, val = (
        ImageChops.difference(*(sheet.crop((0, top, sheet.width, top + 320)) for sheet in sheets.values())).getbbox()
        for top in (0, sheets["errors"].height - 326)
    )
    assert train is None, "of this split all masks can be read"
    assert val is not None


def test_a_folder_without_a_config(run_tool, shapes, tmp_path):
    options = ["--images", shapes / "val", "--annotations", shapes / "annotations/val.json"]
    code, out, _ = run_tool("check_dataset", *options, "--contact-sheet", tmp_path / "new/sheet.png")
    assert code == 0
    assert f"contact sheet: {tmp_path}/new/sheet.png" in out
    assert (tmp_path / "new/sheet.png").is_file()


@pytest.mark.parametrize("policy", ["raise", "clip", "drop"])
def test_the_policy_of_training_decides_about_invalid_boxes(run_tool, tiny_config, broken, tmp_path, policy):
    overrides = [f"data.train={{images: {broken}/train, annotations: {broken}/annotations/train.json}}"]
    overrides.append(f"data.invalid_annotations={policy}")
    code, out, err = run_tool("check_dataset", "--config", tiny_config, "--contact-sheet", "", *overrides, cwd=tmp_path)
    assert (code, err) == (1, "")  # an image is missing
    kind = "error" if policy == "raise" else "warning"
    hint = f"data.invalid_annotations: {policy} accepts them" if policy != "raise" else "fix them, or set"
    assert f"{kind}: invalid boxes (x, y, width, height): 1; {hint}" in out
    assert ("\n2 errors" if policy == "raise" else "\n1 error") in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --config, or --images and --annotations"),
        (["--images", "here"], "give either --config, or --images and --annotations"),
        (["--config", "demo.yaml", "--images", "a", "--annotations", "b"], "give either"),
        (["--images", "nowhere", "--annotations", "b"], "image folder nowhere does not exist (resolved: /"),
        (["--config", "demo.yaml", "data.mni=3"], "data.mni: unknown key"),
        (
            ["--config", "demo.yaml", "--contact-sheet", "a.pgn"],
            "--contact-sheet must end with one of .png, .jpg, .jpeg, .webp, got a.",
        ),
        (["--config", "demo.yaml", "--num-images", "0"], "--num-images: must be an integer of at least 1"),
    ],
)
def test_errors(run_tool, tmp_path, arguments, message):
    code, out, err = run_tool("check_dataset", *arguments, cwd=tmp_path)
    assert (code, out) == (2, "")
    assert message in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mistake", ["no box to learn from", "other categories"])
def test_errors_of_a_whole_config(run_tool, tiny_config, shapes, tmp_path, mistake):
    raw = json.loads((shapes / "annotations/train.json").read_text())
    if mistake == "other categories":
        raw["categories"].append({"id": 77, "name": "cow"})
    else:
        raw["annotations"] = []
    (tmp_path / "train.json").write_text(json.dumps(raw))
    option = f"data.train.annotations={tmp_path}/train.json"
    code, _, err = run_tool("train", "--config", tiny_config, option, cwd=tmp_path)
    assert code == 2
    assert ("differ in [(77, 'cow')]" if "other" in mistake else "no image with a box") in err
    sheet = ["--contact-sheet", "new/a.jpg", "--json", "new/a.json"]
    code, out, err = run_tool("check_dataset", "--config", tiny_config, option, *sheet, cwd=tmp_path)
    assert (code, err) == (1, "")
    said = "categories that are not in all splits: 1" if "other" in mistake else "train split without a box: 1"
    assert f"error: {said}\n" in out
    assert "\n1 error: training stops on this data set" in out
    assert json.loads((tmp_path / "new/a.json").read_text())["errors"] == 1
    with Image.open(tmp_path / "new/a.jpg") as drawn:
        assert drawn.format == "JPEG"


def test_the_contact_sheet_overwrites_no_image(run_tool, shapes, tmp_path):
    folder = shutil.copytree(shapes, tmp_path / "shapes")
    sheet = folder / "val/000001.png"
    before = sheet.read_bytes()
    options = ["--images", folder / "val", "--annotations", folder / "annotations/val.json", "--json", "a.json"]
    code, _, err = run_tool("check_dataset", *options, "--contact-sheet", sheet, cwd=tmp_path)
    assert (code, err) == (2, f"error: --contact-sheet {sheet} must not overwrite an image of the data set\n")
    assert sheet.read_bytes() == before
    assert (tmp_path / "a.json").is_file()  # saved first
