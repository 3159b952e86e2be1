"""tools/compare.py: runs side by side."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from data.files import without_nan
from engine.evaluation.coco_eval import COCO_METRICS
from engine.runs.checkpoint import load_checkpoint, save_checkpoint
from engine.runs.folder import LAST


def figures_of(folder) -> dict:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "val/AP" in line][-1]


def row(out: str, name: str, table: int = 0) -> list[str]:
    """The cells beside `name`."""
    rows = [re.split(r" {2,}", line.strip()) for line in out.splitlines()]
    return [cells for cells in rows if cells[0] == name][table][1:]


@pytest.fixture(scope="module")
def runs(plain_run, dcn_run, tmp_path_factory):
    """Copies of two runs, since a comparison leaves what they detect in their folders; and one of another seed."""
    root = tmp_path_factory.mktemp("compared")
    shutil.copytree(plain_run, root / "plain_s0")
    shutil.copytree(dcn_run, root / "dcn")
    other = shutil.copytree(plain_run, root / "plain_s1")
    state = load_checkpoint(other / LAST)
    state["config"]["seed"] = 1
    for weight in state["model"].values():
        if weight.dim() == 4:
            weight.mul_(1 + 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    save_checkpoint(other / LAST, state)
    return root


def test_differences_are_shown(run_tool, runs, tmp_path):
    plain_run, dcn_run = runs / "plain_s0", runs / "dcn"
    arguments = (
        "compare",
        plain_run,
        dcn_run,
        "--timed-images",
        0,
        "--bootstrap-samples",
        100,
        "--json",
        tmp_path / "both.json",
    )
    code, out, err = run_tool(*arguments)
    assert (code, err) == (0, "")
    plain, dcn = figures_of(plain_run), figures_of(dcn_run)
    written = json.loads((tmp_path / "both.json").read_text())
    assert row(out, "AP")[:2] != ["0.0", "0.0"]
    for group in written["groups"].values():
        metrics = without_nan(load_checkpoint(Path(group["runs"][0]) / LAST)["metrics"])
        assert group["thresholds"][0].items() <= metrics.items()
    for name in COCO_METRICS:
        one, other, found = plain[f"val/{name}"], dcn[f"val/{name}"], written["differences"]["dcn"][name]
        if one is None:
            assert row(out, name) == ["-", "-", "-"]
            continue
        assert found["value"] == pytest.approx(other - one, abs=1e-9)
        assert written["groups"]["dcn"]["figures"][name]["values"] == [pytest.approx(other, abs=1e-9)]
        assert row(out, name)[:2] == [f"{100 * one:.1f}", f"{100 * other:.1f}"]
        low, high = (re.sub(r"^-0\.0$", "+0.0", f"{100 * found[end]:+.1f}") for end in ("low", "high"))
        change = re.sub(r"^-0\.0$", "+0.0", f"{100 * (other - one):+.1f}")
        star = " *" if found["exceeds_uncertainty"] else ""
        assert row(out, name)[2] == f"{change} ({low} to {high}){star}"
    assert plain["val/AR100"] != dcn["val/AR100"]
    # only the options that differ, as JSON
    assert row(out, "model.backbone.dcn_v2_stages") == ["[]", "[2]"]
    assert row(out, "train.epochs") == ["2", "1"]
    assert "train.lr" not in out
    assert row(out, "parameters") == ["769,773", "832,035 (1.08x)"]
    assert row(out, "steps") == ["12", "6"]
    classes = [tag.partition("/")[2] for tag in plain if tag.startswith("val_per_class/")]
    assert len(classes) == 5
    assert all(len(row(out, f"AP {name}")) == 3 for name in classes)
    for label in ("training step, s", "data wait"):
        assert len(row(out, label)) == 2
    assert row(out, "inference, ms") == ["-", "-"]
    sentence = written["conclusions"]["dcn"]
    assert sentence.startswith("AP of dcn is ")
    assert sentence in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 120

    assert [*written["runs"]] == [str(plain_run), str(dcn_run)]
    assert written["runs"][str(dcn_run)]["figures"]["AP"] == dcn["val/AP"]
    assert written["runs"][str(dcn_run)]["figures"]["APl"] == dcn["val/APl"]
    assert written["runs"][str(plain_run)]["config"]["train.lr"] == 0.005
    assert 0 < written["runs"][str(plain_run)]["data_share"] < 1
    assert written["settings"]["bootstrap_samples"] == 100
    assert len(written["settings"]["detected_now"]) == 2

    # the second time their detections are there
    assert run_tool(*arguments)[:2] == (0, out)
    assert json.loads((tmp_path / "both.json").read_text())["settings"]["detected_now"] == []


def test_report_and_seeds(run_tool, runs, tmp_path):
    folders = [runs / name for name in ("plain_s0", "plain_s1", "dcn")]
    code, out, err = run_tool(
        "compare",
        *folders,
        "--html",
        tmp_path / "new/page.html",
        "--timed-images",
        1,
        "--num-images",
        2,
        "data.num_workers=0",
    )
    assert (code, err) == (0, "")
    assert row(out, "seed") == ["0, 1", "0"]
    assert re.fullmatch(r"[\d.]+ ± [\d.]+", row(out, "AR100")[0])
    assert re.fullmatch(r"[\d.]+", row(out, "AR100")[1])
    assert float(row(out, "inference, ms")[0]) > 0
    assert ("inference memory" in out) == torch.cuda.is_available()
    assert f"report: {tmp_path}/new/page.html" in out
    html = (tmp_path / "new/page.html").read_text(encoding="utf-8")
    assert html.startswith("<!DOCTYPE html>")
    assert "dcn against plain" in html
    assert "://" not in html
    assert "Images with the largest differences: dcn and plain" in html


def test_many_groups_fit_the_terminal(run_tool, runs, tmp_path):
    folders = [runs / "plain_s0"]
    for index in range(4):
        folders.append(shutil.copytree(runs / "plain_s0", tmp_path / f"with_another_rate_{index}"))
        state = load_checkpoint(folders[-1] / LAST)
        state["config"]["train"]["lr"] = 0.01 * (index + 1)
        save_checkpoint(folders[-1] / LAST, state)
        (folders[-1] / "last.detections.json").touch()
    code, out, err = run_tool("compare", *folders, "--timed-images", 0, "--bootstrap-samples", 100)
    assert (code, err) == (0, "")
    assert len(row(out, "AP")) == 5
    assert row(out, "minus plain_s0") == [folder.name for folder in folders[1:]]
    assert row(out, "AP", 1) == ["+0.0 (+0.0 to +0.0)"] * 4
    assert max(map(len, out.splitlines())) <= 120


def test_one_run_alone(run_tool, runs):
    code, out, _ = run_tool("compare", runs / "plain_s0", "--timed-images", 0)
    assert code == 0
    assert "AP50" in out
    assert "(+" not in out


def unfinished(plain_run, tmp_path):
    folder = shutil.copytree(plain_run, tmp_path / "run")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines if "val/AP" in line))
    return folder


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda plain_run, tmp_path: tmp_path / "no", "no/last.pt does not exist (resolved: /"),
        (unfinished, "has no evaluation or no logged step; finish the run with --resume auto"),
        (lambda plain_run, tmp_path: plain_run, "the same run twice"),
        (lambda plain_run, tmp_path: "data.val.images=gone", "image folder gone does not exist"),
        (lambda plain_run, tmp_path: "data.val.image=gone", "did you mean 'data.val.images'?"),
        (lambda plain_run, tmp_path: "--device=no", "device 'no' is not available"),
        (
            lambda plain_run, tmp_path: "--bootstrap-samples=99",
            "--bootstrap-samples: must be an integer of at least 100, got '99'",
        ),
        (
            lambda plain_run, tmp_path: f"--html={tmp_path}",
            "--html must be a file, got the folder /",
        ),
        (lambda plain_run, tmp_path: f"--json={plain_run}/last.pt/a.json", "must be in a writable folder"),
        (
            lambda plain_run, tmp_path: f"--json={plain_run}/last.pt",
            "must not overwrite the file of the run last.pt",
        ),
        (lambda plain_run, tmp_path: "--num-images=-1", "--num-images: must be an integer of at least 0"),
    ],
)
def test_errors(run_tool, plain_run, tmp_path, make, said):
    code, out, err = run_tool("compare", plain_run, make(plain_run, tmp_path))
    assert (code, out) == (2, "")
    assert "error: " in err
    assert said in err


def test_no_run(run_tool):
    code, _, err = run_tool("compare", "data.num_workers=0")
    assert code == 2
    assert "give at least one RUN" in err


def test_help(run_tool):
    code, out, _ = run_tool("compare", "--help")
    assert code == 0
    assert "examples:\n  python tools/compare.py runs/" in out
