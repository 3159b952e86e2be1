"""tools/export.py: a run as a file that detects what the run's detector detects, or no file."""

from collections import Counter

import pytest
from PIL import Image

import engine.export
from engine.checkpoint import load_checkpoint
from engine.export import Difference, Row, load_exported
from engine.runs import LAST

SAME = Difference(7, 0, 1e-5, 1e-6)


@pytest.fixture
def shortened(monkeypatch):
    """Nothing is exported or run; `shortened(difference)` says what the check finds, and gives what it was asked."""
    asked = []

    def export_to(path, detector, model, metadata, *, opset):
        path.write_text(f"{detector} {opset}")
        asked.append(metadata)
        return Counter({"DeformConv": 2, "Add": 5})

    def arrange(difference):
        def run_beside(model, run, pictures):
            asked.extend(pictures)
            return [Row("a", (64, 80), 1, difference, 0.5, 0.25)]

        monkeypatch.setattr(engine.export, "run_beside", run_beside)
        return asked

    monkeypatch.setattr(engine.export, "export_to", export_to)
    monkeypatch.setattr(engine.export, "load_exported", lambda path: (None, {}))
    return arrange


def test_a_run_to_onnx(run_tool, dcn_run, shapes, tmp_path):
    file, picture = tmp_path / "new/tiny.onnx", sorted((shapes / "val").iterdir())[3]
    options = ["model.faster_rcnn.score_threshold=0.1", "model.faster_rcnn.detections_per_image=20"]
    code, out, err = run_tool("export", dcn_run, file, *options, "--check", picture)
    assert (code, err) == (0, "")
    assert "faster_rcnn, exported in" in out
    assert " 2 DeformConv" in out
    assert out.count(picture.name) == 2  # alone, and with its mirror image
    assert out.endswith(f"\nwritten: {file}\n")
    assert [*file.parent.iterdir()] == [file]
    state = load_checkpoint(dcn_run / LAST)
    _, metadata = load_exported(file)
    assert metadata["class_names"] == state["class_names"]
    assert metadata["category_ids"] == state["category_ids"]
    assert (metadata["min_size"], metadata["max_size"], metadata["least_side"]) == (64, 96, 17)
    assert (metadata["detector"], metadata["weights"], metadata["step"]) == ("faster_rcnn", "raw", state["step"])
    assert metadata["normalized_inside"]["mean"] == [0.485, 0.456, 0.406]


def test_what_differs_is_not_put_in_place(run_tool, dcn_run, shortened, tmp_path):
    file = tmp_path / "a.onnx"
    file.write_text("earlier")
    shortened(SAME._replace(box=0.5))
    code, out, _ = run_tool("export", dcn_run, file)
    assert code == 1
    assert "5.0e-01" in out
    assert out.endswith(f"The program and the detector differ; it was left as {tmp_path / 'a.partial.onnx'}\n")
    assert file.read_text() == "earlier"
    shortened(SAME)
    assert run_tool("export", dcn_run, file, "--opset", 20).code == 0
    assert file.read_text() == "faster_rcnn 20"
    assert [*tmp_path.iterdir()] == [file]


def test_checked_by_the_val_split_or_else_by_noise(run_tool, dcn_run, shapes, shortened, tmp_path):
    asked = shortened(SAME._replace(detections=0))
    code, out, _ = run_tool("export", dcn_run, tmp_path / "a.pt2")
    assert code == 0
    assert "Nothing was detected" in out
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
        (["a.pt2", "--opset", 19], "--opset is about ONNX"),
        (["a.onnx", "--check", "nowhere.jpg"], "image nowhere.jpg does not exist"),
        (["a.onnx", "--weights", "ema"], "holds no averaged weights"),
        (["a.onnx", "model.faster_rcnn.score=1"], "score"),
        (["a.onnx", "data.min_size=16"], "data.min_size must be at least 17 for an exported"),
    ],
)
def test_mistakes(arguments, message, run_tool, dcn_run, shortened, tmp_path):
    shortened(SAME)
    code, _, err = run_tool("export", dcn_run, *arguments, cwd=tmp_path)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert not [*tmp_path.iterdir()]


def test_a_picture_that_becomes_too_small(run_tool, dcn_run, shortened, tmp_path):
    """The longer side is 96 pixels at most, and so the shorter one 10, where a program needs 17."""
    asked = shortened(SAME)
    Image.new("RGB", (960, 100)).save(tmp_path / "long.png")
    code, _, err = run_tool("export", dcn_run, "a.onnx", "--check", "long.png", cwd=tmp_path)
    assert code == 2
    assert "--check long.png: its shorter side must have at least 17 pixels when it is resized" in err
    assert "got 10" in err
    assert [file.name for file in tmp_path.iterdir()] == ["long.png"]
    # of the val split, such pictures are passed over: here all, so that noise is left
    asked.clear()
    assert run_tool("export", dcn_run, "a.onnx", "data.min_size=18", "data.max_size=18", cwd=tmp_path).code == 0
    assert [name for name, _ in asked[1:]] == ["noise 0"]
