"""tools/study.py: draws, trains what is missing, compares."""

import html
import json
import shutil

import pytest

FAST = [
    "train.epochs=1",
    "train.batch_size=2",
    "train.log_every_steps=1",
    "train.checkpoint_every_steps=1",
    "data.num_workers=0",
    "data.min_size=64",
    "data.max_size=80",
    "device=cpu",
    "model.backbone.norm=gn",
    "model.fpn.out_channels=32",
    "model.faster_rcnn={rpn_pre_nms_top_n_train: 20, rpn_post_nms_top_n_train: 20, box_head_channels: 32}",
    "model.faster_rcnn={rpn_pre_nms_top_n_test: 10, rpn_post_nms_top_n_test: 10, score_threshold: 0.0}",
]


SMALL = ["--out", "runs", "--data", "data", "--train-images", 4, "--val-images", 3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def study(run_tool, folder):
    """A study of two networks, one seed and two deformations."""
    options = [*SMALL, "--seeds", 1, "--deformations", 1, 0]
    options += ["--networks", "plain", "dcnv2_234", "--jobs", 2, "--bootstrap-samples", 100]
    return lambda *more: run_tool("study", *options, *FAST, *more, cwd=folder)


@pytest.fixture(scope="module")
def first(study):
    result = study()
    assert result.code == 0, result.err
    return result


@pytest.mark.slow
def test_it_draws_trains_and_compares(first, folder):
    runs = {f"deformation_{level}/{name}_seed1" for level in (0, 1) for name in ("plain", "dcnv2_234")}
    assert {f"{file.parent.relative_to(folder / 'runs')}" for file in folder.glob("runs/*/*/last.pt")} == runs
    images = [(folder / f"data/deformation_{level}/train/000001.png").read_bytes() for level in (0, 1)]
    assert images[0] != images[1]
    assert first.out.startswith("4 trainings, 2 at the same time")
    written = json.loads((folder / "runs/study.json").read_text())
    assert [*written["deformations"]] == ["0", "1"]
    assert len(written["sentences"]) == 1
    for level, found in written["deformations"].items():
        for name, group in found["groups"].items():
            (run,) = group["runs"]
            config = found["runs"][run]["config"]
            assert run == f"runs/deformation_{level}/{name}"
            assert config["model.backbone.dcn_v2_stages"] == ([2, 3, 4] if name.startswith("dcn") else [])
            assert config["data.val.images"] == f"data/deformation_{level}/val"
            assert (config["seed"], config["train.epochs"]) == (1, 1)
            value = f"{100 * group['figures']['AP']['mean']:.1f}"
            (row,) = (line for line in first.out.splitlines() if line.startswith(f"  AP at deformation {level} "))
            assert value in row
    page = html.unescape((folder / "runs/study.html").read_text())
    assert written["sentences"][0] in page
    assert 'href="deformation_0.html"' in page
    assert "plain_seed1" in (folder / "runs/deformation_0.html").read_text()
    assert written["sentences"][0] in first.out.replace("\n", " ")


@pytest.mark.slow
def test_what_is_there_is_kept(first, study, folder, files_of):
    shutil.rmtree(folder / "runs/deformation_1/plain_seed1")
    before = files_of(folder / "runs/deformation_0"), files_of(folder / "data")
    code, out, err = study()
    assert (code, err) == (0, "")
    assert out.startswith("1 trainings, 2 at the same time")
    assert (folder / "runs/deformation_1/plain_seed1/last.pt").is_file()
    assert (files_of(folder / "runs/deformation_0"), files_of(folder / "data")) == before


@pytest.mark.slow
def test_of_each_run_the_last_checkpoint_is_kept(first, folder):
    runs = [*folder.glob("runs/*/*")]
    assert len(runs) == 4
    assert {file.name for run in runs for file in run.glob("*.pt*")} == {"last.pt"}


@pytest.mark.slow
def test_runs_of_another_study_are_not_taken_for_its_own(first, study, folder, files_of):
    before = files_of(folder)
    code, out, err = study("train.lr=0.001")
    assert (code, out) == (2, "")
    assert err == (
        "error: runs/deformation_0/plain_seed1 holds a run with other options than this study: remove it, or choose "
        "another folder with --out\n"
    )
    assert files_of(folder) == before


@pytest.mark.slow
def test_data_of_another_size_are_not_taken_for_its_own(first, run_tool, folder):
    code, _, err = run_tool("study", "--data", "data", "--out", "other", "--deformations", 0, cwd=folder)
    assert code == 2
    assert "data/deformation_0 must hold 400 validation images of 160x128 pixels" in err
    assert "but has 3 of 160x128" in err
    assert not (folder / "other").exists()


@pytest.mark.slow
def test_a_training_that_fails_is_reported(run_tool, tmp_path):
    options = [*SMALL, "--seeds", 0, "--deformations", 0]
    code, _, err = run_tool("study", *options, "--jobs", 1, "model.backbone.weights=./adam.pth", cwd=tmp_path)
    assert code == 2
    assert err.startswith("error: the training in runs/deformation_0/plain_seed0 ended with exit code 2:\n")
    assert "adam" in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--networks", "dcnv3"], "invalid choice: 'dcnv3'"),
        (["--seeds", "x"], "invalid int value: 'x'"),
        # with a second error, so that a missing check does not start the whole study
        (["--jobs", 0, "--seeds", 0, 0], "--jobs: must be an integer of at least 1, got '0'"),
        (
            ["--bootstrap-samples", 99, "--seeds", 0, 0],
            "--bootstrap-samples: must be an integer of at least 100, got '99'",
        ),
        (["--seeds", 0, 0], "--seeds must differ, got [0, 0]"),
        (["train.epochs"], "expected key=value"),
    ],
)
def test_errors(run_tool, tmp_path, options, said):
    code, _, err = run_tool("study", *options, cwd=tmp_path)
    assert code == 2
    assert said in err
    assert not [*tmp_path.iterdir()]


def test_help(run_tool):
    code, out, _ = run_tool("study", "--help")
    assert code == 0
    assert "examples:\n  python tools/study.py " in out
