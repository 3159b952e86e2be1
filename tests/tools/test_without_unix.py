"""The tools on a system without the modules, functions and signals of Unix, as Windows is."""

import json
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.mark.slow
def test_every_tool_starts_and_a_training_passes(run_process, tiny_config, tmp_path):
    script = Path(__file__).with_name("without_unix.py")
    result = run_process(script, TOOLS, tiny_config, tmp_path / "run", cwd=tmp_path)
    assert (result.code, result.out) == (0, "15 tools\n"), result.err
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2, 3, 4, 5, 6]
    assert all(line["memory/peak_gib"] is None for line in lines if "memory/peak_gib" in line)
