"""tools/export.py: a run as a file that detects what the run's detector detects, or no file."""

import contextlib
import io
import re
import runpy
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models.detection.roi_heads import paste_masks_in_image

import engine.export
from engine.building.model import build_model
from engine.config.loading import load_config
from engine.export import CheckResult, DetectionDifference, load_exported
from engine.runs.checkpoint import load_checkpoint, save_checkpoint
from engine.runs.folder import LAST
from models.predictor import Predictor

SAME = DetectionDifference(7, 0, 1e-5, 1e-6)
PAGE = Path(__file__).resolve().parents[2] / "docs/guides/export.md"


@pytest.fixture
def shortened(monkeypatch):
    """Nothing is exported or run; `shortened(difference)` says what the check finds, and gives what it was asked."""
    asked = []

    def export_to(path, detector, model, metadata, *, opset):
        path.write_text(f"{detector} {opset}")
        asked.append(metadata)
        return Counter({"DeformConv": 2, "Add": 5})

    def arrange(difference):
        def check_program(model, run, pictures):
            asked.extend(pictures)
            return [CheckResult("a", (64, 80), 1, difference, 0.5, 0.25)]

        monkeypatch.setattr(engine.export, "check_program", check_program)
        return asked

    monkeypatch.setattr(engine.export, "export_to", export_to)
    monkeypatch.setattr(engine.export, "load_exported", lambda path: (None, {}))
    return arrange


@pytest.fixture(scope="module")
def spread_run(tiny_config, formula_weights, tmp_path_factory):
    """`spread_run(detector)`: a run with DCN, whose scores lie so far apart that rounding rarely changes an order."""

    def make(detector: str) -> Path:
        tiny = [
            "anchor_sizes=[16,32,64]",
            "box_head_channels=32",
            "rpn_post_nms_top_n_test=20",
            "detections_per_image=20",
        ]
        tiny += ["mask_head_channels=8"] * (detector == "mask_rcnn")
        options = ["model.backbone.dcn_v2_stages=[2]", f"model.detector={detector}"]
        config = load_config(tiny_config, [*options, *(f"model.{detector}.{option}" for option in tiny)])
        model, _ = build_model(config.model, config.data, 5)
        about = {"config": config.model_dump(mode="json"), "class_names": [*"abcde"], "category_ids": [1, 2, 3, 5, 8]}
        folder = tmp_path_factory.mktemp(detector)
        state = {"model": formula_weights(model).state_dict(), "ema": None, "step": 7}
        save_checkpoint(folder / LAST, about | state)
        return folder

    return make


@pytest.fixture(scope="module")
def run_export(run_tool):
    """The tool in earnest; one detection in five may have no partner, as rounding may decide on other processors."""
    strict = DetectionDifference.is_small.fget

    def run(*arguments):
        with pytest.MonkeyPatch.context() as patch:
            few = property(
                lambda found: strict(found._replace(unmatched=max(0, found.unmatched - found.detections // 5)))
            )
            patch.setattr(DetectionDifference, "is_small", few)
            return run_tool("export", *arguments)

    return run


@pytest.fixture(scope="module")
def mask_run(spread_run):
    return spread_run("mask_rcnn")


@pytest.mark.slow
def test_a_run_to_onnx(run_export, spread_run, shapes, tmp_path):
    run = spread_run("faster_rcnn")
    file, picture = tmp_path / "new/tiny.onnx", sorted((shapes / "val").iterdir())[3]
    code, out, err = run_export(run, file, "model.faster_rcnn.score_threshold=0.1", "--check", picture)
    assert (code, err) == (0, "")
    assert "faster_rcnn, exported in" in out
    assert " 2 DeformConv" in out
    assert out.count(picture.name) == 2  # alone, and with its mirror image
    assert out.endswith(f"\nprogram: {file}\n")
    assert [*file.parent.iterdir()] == [file]
    state = load_checkpoint(run / LAST)
    _, metadata = load_exported(file)
    assert metadata["class_names"] == state["class_names"]
    assert metadata["category_ids"] == state["category_ids"]
    assert (metadata["min_size"], metadata["max_size"], metadata["least_side"]) == (64, 96, 17)
    assert metadata["resize"] == {"kind": "shortest", "sizes": [64], "max_size": 96, "eval_size": None}
    assert (metadata["detector"], metadata["weights"], metadata["step"]) == ("faster_rcnn", "raw", state["step"])
    assert metadata["normalized_inside"]["mean"] == [0.485, 0.456, 0.406]


@pytest.fixture(scope="module")
def mask_file(run_export, mask_run, tmp_path_factory):
    """An exported file of `mask_run`, and what the tool printed; at most 20 detections of any score."""
    file = tmp_path_factory.mktemp("mask_file") / "demo_dcn.onnx"
    code, out, err = run_export(mask_run, file)
    assert (code, err) == (0, "")
    return file, out


@pytest.mark.slow
def test_masks_are_checked(mask_file):
    _, out = mask_file
    assert "mask_rcnn, exported in" in out
    assert "scores 0.0001, masks 0.001, 1 unmatched detection in 100" in out
    header, _, *rows = re.search(r"^  image .*?\n\n", out, re.DOTALL | re.MULTILINE)[0].strip().splitlines()
    assert header.split()[7] == "masks"
    assert [row.split()[2:4] for row in rows] == [["1", "20"], ["2", "40"]] * 2
    assert all(float(row.split()[7]) < 1e-3 for row in rows)


def blocks_of_page() -> tuple[str, str]:
    """The program of docs/guides/export.md that needs ONNX Runtime alone, and that which pastes masks."""
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    (load,) = (block for block in blocks if "onnxruntime" in block)
    (paste,) = (block for block in blocks if "def paste" in block)
    return load, paste


@pytest.mark.slow
def test_the_page_detects_and_pastes(mask_file, mask_run, shapes, tmp_path, monkeypatch):
    """The page's own lines, on a picture that is not resized, so that Pillow and PyTorch see the same."""
    with Image.open(sorted((shapes / "val").iterdir())[0]) as picture:
        picture.crop((0, 0, 90, 64)).save(tmp_path / "photo.jpg", quality=95)
    (tmp_path / "demo_dcn.onnx").symlink_to(mask_file[0])
    (tmp_path / "page.py").write_text("\n".join(blocks_of_page()), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        done = runpy.run_path("page.py")
    found = Predictor.load(mask_run, score_threshold=0.0)("photo.jpg")
    lines = [line.split() for line in out.getvalue().splitlines()]
    apart = np.abs(done["boxes"][:, None] - found["boxes"].numpy()).max(2)
    apart[np.array([line[0] for line in lines])[:, None] != np.array(found["names"])] = np.inf
    pairs = [(index, row.argmin()) for index, row in enumerate(apart) if row.min() < 1e-2]
    assert len({ours for _, ours in pairs}) == len(pairs) >= 0.8 * len(lines) == 0.8 * 20
    masks = found["masks"][:, 0].numpy()
    for index, ours in pairs:
        assert float(lines[index][1]) == pytest.approx(found["scores"][ours].item(), abs=0.006)
        pasted = done["paste"](done["masks"][0][0][index], found["boxes"][ours].numpy(), 64, 90)
        np.testing.assert_allclose(pasted, masks[ours], atol=1e-3)
    # each by its own boxes, which can be cut to neighbouring pixels
    assert np.shape(done["objects"]) == masks.shape == (20, 64, 90)
    shown, expected = np.stack(done["objects"])[[i for i, _ in pairs]], masks[[j for _, j in pairs]] >= 0.5
    assert (shown != expected).mean() < 0.2 * expected.mean() > 0


def test_the_page_pastes_as_torchvision_does():
    """Boxes of any size, some of them less than a pixel or as large as the picture."""
    done, random = {"np": np}, torch.Generator().manual_seed(0)
    exec(blocks_of_page()[1].split("\n\n\npasted")[0], done)
    corners = torch.rand(60, 2, generator=random) * torch.tensor([90.0, 60.0])
    sides = torch.rand(60, 2, generator=random) ** 3 * 80
    boxes = torch.cat([corners, torch.minimum(corners + sides, torch.tensor([90.0, 60.0]))], 1)
    boxes[0] = torch.tensor([0.0, 0.0, 90.0, 60.0])
    boxes[1, 2:] = boxes[1, :2]
    masks = torch.rand(60, 28, 28, generator=random)
    expected = paste_masks_in_image(masks[:, None], boxes, (60, 90))[:, 0].numpy()
    found = [done["paste"](mask, box, 60, 90) for mask, box in zip(masks.numpy(), boxes.numpy(), strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_what_differs_is_not_put_in_place(run_tool, dcn_run, shortened, tmp_path):
    file = tmp_path / "a.onnx"
    file.write_text("earlier")
    shortened(SAME._replace(box=0.5))
    code, out, _ = run_tool("export", dcn_run, file)
    assert code == 1
    assert "5.0e-01" in out
    assert out.endswith(f"The program was left in {tmp_path / 'a.partial.onnx'}.\n")
    assert file.read_text() == "earlier"
    shortened(SAME)
    assert run_tool("export", dcn_run, file, "--opset", 20).code == 0
    assert file.read_text() == "faster_rcnn 20"
    assert [*tmp_path.iterdir()] == [file]


def test_checked_by_the_val_split_or_else_by_noise(run_tool, dcn_run, shapes, shortened, tmp_path):
    asked = shortened(SAME._replace(detections=0))
    code, out, _ = run_tool("export", dcn_run, tmp_path / "a.pt2")
    assert code == 0
    assert "nothing was detected" in out
    names = sorted(path.name for path in (shapes / "val").iterdir())[:2]
    assert [name for name, _ in asked[1:]] == names
    assert all(picture.shape == (3, 80, 96) and 0.5 < picture.max() <= 1 for _, picture in asked[1:])
    asked.clear()
    assert run_tool("export", dcn_run, tmp_path / "a.pt2", "data.val.images=nowhere").code == 0
    assert [(name, tuple(picture.shape)) for name, picture in asked[1:]] == [
        ("noise 0", (3, 64, 64)),
        ("noise 1", (3, 64, 128)),
    ]


def test_a_broken_export_leaves_nothing(run_tool, dcn_run, shortened, monkeypatch, tmp_path):
    shortened(SAME)

    def fail(path, *args, **options):
        path.write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(engine.export, "export_to", fail)
    code, _, err = run_tool("export", dcn_run, tmp_path / "a.onnx")
    assert (code, err) == (2, "error: disk full\n")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.pt"], "must end in .onnx or .pt2, got a.pt"),
        (["a.onnx", "--opset", 18], "the opset must be 19, the first with DeformConv"),
        (["a.pt2", "--opset", 19], "--opset has no effect: it needs an .onnx file"),
        (["a.onnx", "--check", "nowhere.jpg"], "image nowhere.jpg does not exist"),
        (["a.onnx", "--weights", "ema"], "does not contain EMA weights"),
        (["a.onnx", "model.faster_rcnn.score=1"], "score"),
        (["a.onnx", "data.min_size=16"], "data.min_size (or data.eval_size) must be at least 17 for an exported"),
    ],
)
def test_errors(arguments, message, run_tool, dcn_run, shortened, tmp_path):
    shortened(SAME)
    code, _, err = run_tool("export", dcn_run, *arguments, cwd=tmp_path)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert not [*tmp_path.iterdir()]


def test_an_image_that_becomes_too_small(run_tool, dcn_run, shortened, tmp_path):
    """The longer side is 96 pixels at most, and so the shorter one 10, where a program needs 17."""
    asked = shortened(SAME)
    Image.new("RGB", (960, 100)).save(tmp_path / "long.png")
    code, _, err = run_tool("export", dcn_run, "a.onnx", "--check", "long.png", cwd=tmp_path)
    assert code == 2
    assert "--check long.png: the shorter side must be at least 17 pixels after resizing" in err
    assert "got 10" in err
    assert [file.name for file in tmp_path.iterdir()] == ["long.png"]
    # of the val split, such pictures are passed over: here all, so that noise is left
    asked.clear()
    assert run_tool("export", dcn_run, "a.onnx", "data.min_size=18", "data.max_size=18", cwd=tmp_path).code == 0
    assert [name for name, _ in asked[1:]] == ["noise 0"]
