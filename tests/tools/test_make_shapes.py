"""tools/make_shapes.py: writes the synthetic data set, and never over another."""

import json

import pytest


def test_it_writes_a_data_set(run_tool, tmp_path):
    options = ["--train-images", 2, "--val-images", 1, "--width", 96, "--height", 64, "--seed", 3]
    code, out, err = run_tool("make_shapes", "--out", tmp_path / "a", *options)
    assert (code, err) == (0, "")
    assert out == f"2 train and 1 val images in {tmp_path / 'a'}\n"
    raw = json.loads((tmp_path / "a/annotations/train.json").read_text())
    assert [(entry["width"], entry["height"]) for entry in raw["images"]] == [(96, 64)] * 2
    assert all((tmp_path / "a/train" / entry["file_name"]).is_file() for entry in raw["images"])

    run_tool("make_shapes", "--out", tmp_path / "b", *options)
    run_tool("make_shapes", "--out", tmp_path / "c", *options, "--seed", 4)
    files = [sorted(path for path in (tmp_path / name).rglob("*") if path.is_file()) for name in "abc"]
    same = [[one.read_bytes() == other.read_bytes() for one, other in zip(files[0], f, strict=True)] for f in files[1:]]
    assert all(same[0])
    assert not any(same[1])


def test_a_folder_that_holds_something_is_left_alone(run_tool, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    code, out, err = run_tool("make_shapes", "--out", tmp_path)
    assert (code, out) == (2, "")
    assert err == f"error: {tmp_path} is not empty: remove it, or choose another folder with --out\n"
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--deformation", 2], "`deformation` must be from 0 to 1, got 2.0"),
        (["--train-images", 0], "--train-images: must be an integer of at least 1, got '0'"),
        (["--width", 10], "each side at least 64 pixels"),
        (["--train-images", "many"], "must be an integer of at least 1, got 'many'"),
    ],
)
def test_numbers_out_of_range(run_tool, tmp_path, options, said):
    code, _, err = run_tool("make_shapes", "--out", tmp_path / "new", *options)
    assert code == 2
    assert said in err
    assert not (tmp_path / "new").exists()


def test_help(run_tool):
    code, out, _ = run_tool("make_shapes", "--help")
    assert code == 0
    assert "examples:\n  python tools/make_shapes.py" in out
