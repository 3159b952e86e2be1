"""tools/benchmark.py: what it measures, what it refuses, and that it shows no speed of a wrong result."""

import json
import re

import pytest
import torch

import dcn
from dcn.functional import Backend

OP = (
    "benchmark",
    "op",
    "--device",
    "cpu",
    "--sizes",
    "64x90",
    "--batches",
    "1",
    "--rounds",
    "2",
    "--backends",
    "torch",
)


def test_operator_figures_fit_each_other(run_tool, tmp_path):
    code, out, err = run_tool(*OP, "--json", tmp_path / "op.json")
    assert (code, err) == (0, "")
    figures = json.loads((tmp_path / "op.json").read_text())
    assert torch.__version__ in figures["machine"]
    rows = figures["rows"]
    assert [(row["stage"], row["backend"]) for row in rows] == [
        (stage, name) for stage in ("C3", "C4", "C5") for name in ("F.conv2d", "torchvision", "torch")
    ]
    assert [row["shape"] for row in rows[::3]] == ["1x128x8x12", "1x256x4x6", "1x512x2x3"]  # 64x90 is padded to 64x96
    for first in range(0, 9, 3):
        control, peer, ours = rows[first : first + 3]
        for key in ("forward", "step"):
            assert ours[f"{key}_speedup"] == peer[f"{key}_ms"] / ours[f"{key}_ms"]
            assert ours[f"{key}_over_conv2d"] == ours[f"{key}_ms"] / control[f"{key}_ms"]
            assert peer[f"{key}_speedup"] == control[f"{key}_over_conv2d"] == 1
        assert ours["forward_ms"] < ours["step_ms"]
        assert 0 < ours["forward_memory_bytes"] < ours["step_memory_bytes"] < 2**30
        shown = re.search(rf"{ours['stage']} +{ours['shape']} +torch +([\d.]+) +([\d.]+)x", out)
        assert float(shown[1]) == pytest.approx(ours["forward_ms"], abs=0.051)
        assert float(shown[2]) == pytest.approx(ours["forward_speedup"], abs=0.051)


@pytest.mark.parametrize("wrong", ["output", "gradient"])
def test_no_speed_of_a_wrong_result_is_shown(run_tool, monkeypatch, tmp_path, wrong):
    def run(*arguments):
        output = dcn.BACKENDS["reference"].run(*arguments)
        return output * 1.001 if wrong == "output" else output + (output - output.detach()) * 1e-3

    monkeypatch.setitem(dcn.BACKENDS, "torch", Backend(run, lambda *tensors: None))
    code, out, _ = run_tool(*OP, "--json", tmp_path / "op.json")
    assert code == 1
    name = "output" if wrong == "output" else "input"
    assert f"WRONG RESULTS of torch: {name} of 128 channels is off by 1.0e-03 of its largest number" in out
    assert not re.search(r"1x128x8x12 +torch ", out)
    assert not (tmp_path / "op.json").exists()


def test_a_training_step_is_timed_plain_and_by_backend(run_tool, tiny_config, tmp_path):
    code, out, err = run_tool(
        "benchmark", "train", "--config", tiny_config, "--size", "64x96", "--rounds", "2", "--device", "cpu",
        "--backends", "torch", "torchvision", "--json", tmp_path / "train.json",
    )  # fmt: skip
    assert code == 2
    assert "has no DCN stages to measure" in err

    config = tmp_path / "tiny_dcn.yaml"
    config.write_text(f"base: {tiny_config}\nmodel: {{backbone: {{dcn_v2_stages: [2]}}}}\n")
    code, out, err = run_tool(
        "benchmark", "train", "--config", config, "--size", "64x96", "--rounds", "2", "--device", "cpu",
        "--backends", "torch", "torchvision", "--json", tmp_path / "train.json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    rows = json.loads((tmp_path / "train.json").read_text())["rows"]
    assert [row["model"] for row in rows] == ["plain", "DCN torch", "DCN torchvision"]
    plain, ours, peer = rows
    assert ours["over_plain"] == ours["step_s"] / plain["step_s"]
    assert ours["speedup"] == peer["step_s"] / ours["step_s"]
    assert plain["speedup"] is None
    assert ours["images_per_s"] == 2 / ours["step_s"]
    assert "DCN torch " in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("op", "--sizes", "800"), "an image size must be HxW with both from 32 on, as in 800x1333, got '800'"),
        (("op", "--sizes", "512x512", "20x99"), "got '20x99'"),
        (("train", "--size", "0x512"), "got '0x512'"),
        (("op", "--backends", "cuda"), "unknown DCN backend 'cuda', known: torch, torchvision, triton, reference"),
        (("op", "--rounds", "0"), "argument --rounds: must be a whole number from 1 on, got '0'"),
        (("train", "--config", "nothing.yaml"), "nothing.yaml"),
        ((), "the following arguments are required: command"),
    ],
)
def test_mistakes_are_named_before_work(run_tool, arguments, message):
    code, _, err = run_tool("benchmark", *arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err


def test_a_backend_that_cannot_run_says_why(run_tool, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(dcn.fused, "has_triton", lambda: True)
    code, _, err = run_tool("benchmark", "op", "--device", "cpu", "--backends", "triton")
    assert code == 2
    assert "DCN backend 'triton' cannot run here: it is made for GPUs" in err
