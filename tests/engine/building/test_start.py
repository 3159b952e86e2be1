"""`train` as programs call it; tests/tools/test_train.py runs it by the command."""

import contextlib
import io
import re
from pathlib import Path

import pytest

from engine.building.start import train
from engine.config.loading import load_config
from engine.evaluation.metrics import scalar_metrics
from engine.runs.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parents[3]


def test_the_lines_of_the_page(tiny_config, tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs/tools/train.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert '"demo_dcn.yaml"' in lines
    monkeypatch.chdir(tmp_path)
    exec(lines.replace('"demo_dcn.yaml"', repr(str(tiny_config))), {})
    state = load_checkpoint(tmp_path / "runs/first/last.pt")
    assert (state["epoch"], state["step"]) == (1, 6)
    shown = capsys.readouterr().out.splitlines()
    assert shown[-1] == f"AP {100 * state['metrics']['AP']:.1f}, weights in runs/first/last.pt"


def test_a_config_that_is_no_file_and_a_run_that_continues(tiny_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config(tiny_config, ["train.epochs=1", "train.max_steps=1"])
    values = config.model_dump(mode="json")
    for source in (config, values):
        with pytest.raises(ValueError, match="`run_dir` is required"):
            train(source)
    assert [*tmp_path.iterdir()] == []
    with contextlib.redirect_stdout(io.StringIO()):
        first = train(config, run_dir="mine")
        assert first.folder == Path("mine")
        assert scalar_metrics(first.metrics) == pytest.approx(
            scalar_metrics(load_checkpoint(Path("mine/last.pt"))["metrics"]), nan_ok=True
        )
        with pytest.raises(ValueError, match="run folder mine is not empty"):
            train(values, run_dir=Path("mine"))
        second = train(values, ["train.max_steps=2"], resume=first.folder / "last.pt")
    assert second.folder == Path("mine")
    assert load_checkpoint(Path("mine/last.pt"))["step"] == 2
    assert load_config("mine/config.yaml").train.max_steps == 2
    assert values["train"]["max_steps"] == 1
