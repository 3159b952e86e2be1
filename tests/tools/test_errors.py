"""tools/errors.py: where a detector fails, from a run or from a results file."""

import json
import re
import shutil

import pytest

from data import load_annotations
from engine.errors.analysis import analyse_errors


@pytest.fixture(scope="module")
def analysed(run_tool, plain_run, tmp_path_factory):
    """A run with all outputs, and what the tool printed."""
    folder = tmp_path_factory.mktemp("errors")
    run = shutil.copytree(plain_run, folder / "run")
    files = ["--json", folder / "new/errors.json", "--suspects", folder / "suspects.json"]
    return run_tool("errors", run, *files, "--detections", folder / "detections.json", "--worst", 2), folder


def test_a_run(analysed, shapes):
    (code, out, err), folder = analysed
    assert (code, err) == (0, "")
    figures = json.loads((folder / "new/errors.json").read_text())
    results = json.loads((folder / "detections.json").read_text())
    split = load_annotations(shapes / "val", shapes / "annotations/val.json")
    expected = analyse_errors(split.raw, results).as_json()
    assert {name: value for name, value in figures.items() if name != "per_class"} == {
        name: value for name, value in expected.items() if name != "per_class"
    }
    assert figures["objects"] == len(split.arrays.boxes) > 0
    for kind in ("class", "localization", "both", "duplicate", "background", "missed"):
        shown = rf"^  {kind} +{figures[f'errors_{kind}']:,} +{100 * figures[f'dAP_{kind}']:.1f} "
        assert re.search(shown, out, re.MULTILINE), kind
    assert f"{figures['detections']:,} detections, {figures['objects']} objects, AP50 of boxes x100: " in out
    assert "(weights of step 12) on 6 images of" in out
    page = (folder / "run/errors.html").read_text()
    assert f"page: {folder / 'run/errors.html'} (open it in a browser)" in out
    assert "data:image/jpeg;base64," in page
    assert "://" not in page
    suspects = json.loads((folder / "suspects.json").read_text())
    assert len(suspects["annotations"]) == sum(value for name, value in figures.items() if name.startswith("suspects_"))


def test_the_training_images(run_tool, plain_run, shapes, tmp_path):
    run = shutil.copytree(plain_run, tmp_path / "run")
    code, out, err = run_tool("errors", run / "last.pt", "--split", "train", "--json", tmp_path / "errors.json")
    assert (code, err) == (0, "")
    objects = len(load_annotations(shapes / "train", shapes / "annotations/train.json").arrays.boxes)
    assert json.loads((tmp_path / "errors.json").read_text())["objects"] == objects
    assert str(shapes / "annotations/train.json") in out
    assert (run / "errors_train.html").is_file()
    assert not (run / "errors.html").exists()


def test_results_of_an_earlier_call_need_no_detector(analysed, run_tool, shapes, tmp_path):
    _, folder = analysed
    given = ["--results", folder / "detections.json", "--json", tmp_path / "errors.json"]
    expected = json.loads((folder / "new/errors.json").read_text())
    code, _, err = run_tool("errors", folder / "run", *given, "--html", tmp_path / "run.html")
    assert (code, err) == (0, "")
    assert json.loads((tmp_path / "errors.json").read_text()) == expected
    annotations = ["--annotations", shapes / "annotations/val.json"]
    for more in ([], ["--html", tmp_path / "bare.html"], ["--html", tmp_path / "a.html", "--images", shapes / "val"]):
        code, out, err = run_tool("errors", *given, *annotations, *more)
        assert (code, err) == (0, "")
        assert json.loads((tmp_path / "errors.json").read_text()) == expected
        assert ("page: " in out) == bool(more)
    assert "The images are not available." in (tmp_path / "bare.html").read_text()
    assert "data:image/jpeg" in (tmp_path / "a.html").read_text()
    limited = run_tool("errors", *given, *annotations, "--max-detections", 1)
    assert " more left out, see --max-detections)" in limited.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give either RUN, or --results and --annotations"),
        (["{run}", "--annotations", "a.json"], "give either RUN, or --results and --annotations"),
        (["--annotations", "a.json"], "give either RUN, or --results and --annotations"),
        (["nowhere"], "checkpoint nowhere does not exist"),
        (["{run}", "--images", "x"], "--images has no effect: RUN knows the folder of its images"),
        (["{run}", "--masks"], "--masks needs a detector with masks, got faster_rcnn"),
        (["{run}", "--results", "{dets}", "--weights", "raw"], "--weights has no effect: --results has the detections"),
        (["{run}", "--results", "{run}/config.yaml"], "config.yaml is not valid JSON"),
        (["{run}", "--html", "{run}/last.pt"], "must not overwrite the file of the run last.pt"),
        (["{run}", "--results", "{dets}", "--json", "{dets}"], "--json {dets} must not overwrite --results"),
        (["{run}", "--html", "a.html", "--json", "a.html"], "must be different files"),
        (["{run}", "--fiftyone"], "FiftyOne cannot be imported"),
        (["--results", "{dets}", "--annotations", "{val}", "--worst", "3"], "--worst has no effect: it needs --html"),
        (["--results", "{dets}", "--annotations", "{val}", "--images", "none"], "--images must be a folder, got none"),
        (["--results", "{dets}", "--annotations", "{val}", "--split", "train"], "--split has no effect: it needs RUN"),
        (["{run}", "--suspect-score", "2"], "must be a number from 0 to 1"),
        (["{run}", "data.val.images=none"], "image folder none does not exist"),
    ],
)
def test_errors_are_one_message(analysed, run_tool, shapes, tmp_path, arguments, said, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "fiftyone", None)
    _, folder = analysed
    names = {"run": folder / "run", "dets": folder / "detections.json", "val": shapes / "annotations/val.json"}
    before = sorted(folder.rglob("*"))
    code, _, err = run_tool("errors", *[text.format(**names) for text in arguments], cwd=tmp_path)
    assert code == 2
    assert said.format(**names) in err
    assert "Traceback" not in err
    assert sorted(folder.rglob("*")) == before
    assert not [*tmp_path.iterdir()]
