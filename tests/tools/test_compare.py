"""tools/compare.py: runs side by side."""

import json
import re
import shutil

import pytest

from engine.evaluator import COCO_FIGURES


def figures_of(folder) -> dict:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "val/AP" in line][-1]


def row(out: str, name: str) -> list[str]:
    """The cells beside `name`."""
    rows = [re.split(r" {2,}", line.strip()) for line in out.splitlines()]
    (cells,) = (cells for cells in rows if cells[0] == name)
    return cells[1:]


def test_differences_are_shown(run_tool, plain_run, dcn_run, tmp_path):
    code, out, err = run_tool("compare", plain_run, dcn_run, "--json", tmp_path / "both.json")
    assert (code, err) == (0, "")
    plain, dcn = figures_of(plain_run), figures_of(dcn_run)
    for name in COCO_FIGURES:
        one, other = plain[f"val/{name}"], dcn[f"val/{name}"]
        expected = (
            ["-", "-"] if one is None else [f"{100 * one:.1f}", f"{100 * other:.1f} ({100 * (other - one):+.1f})"]
        )
        assert row(out, name) == expected
    assert plain["val/AR100"] != dcn["val/AR100"]
    # only the options that differ, as JSON
    assert row(out, "model.backbone.dcn_v2_stages") == ["[]", "[2]"]
    assert row(out, "train.epochs") == ["2", "1"]
    assert "train.lr" not in out
    assert row(out, "parameters") == ["769,773", "832,035"]
    assert row(out, "steps") == ["12", "6"]
    classes = [tag.partition("/")[2] for tag in plain if tag.startswith("val_per_class/")]
    assert len(classes) == 5
    assert all(len(row(out, f"AP {name}")) == 2 for name in classes)
    for label in ("step, s", "data wait"):
        assert len(row(out, label)) == 2

    written = json.loads((tmp_path / "both.json").read_text())
    assert list(written) == [str(plain_run), str(dcn_run)]
    assert written[str(dcn_run)]["figures"]["AP"] == dcn["val/AP"]
    assert written[str(dcn_run)]["figures"]["APl"] == dcn["val/APl"]
    assert written[str(plain_run)]["config"]["train.lr"] == 0.005
    assert 0 < written[str(plain_run)]["data_share"] < 1


def test_one_run_alone(run_tool, plain_run):
    code, out, _ = run_tool("compare", plain_run)
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
        (unfinished, "was not evaluated yet, or logged no step; finish it by --resume auto"),
    ],
)
def test_folders_that_hold_no_finished_run(run_tool, plain_run, tmp_path, make, said):
    code, out, err = run_tool("compare", plain_run, make(plain_run, tmp_path))
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert said in err


def test_help(run_tool):
    code, out, _ = run_tool("compare", "--help")
    assert code == 0
    assert "example:\n  python tools/compare.py runs/" in out
