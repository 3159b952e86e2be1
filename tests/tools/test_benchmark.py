"""tools/benchmark.py: what it measures, what it refuses, and that it shows no speed of a wrong result."""

import inspect
import json
import re

import pytest
import torch

import dcn
import engine.measure
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
        cells = re.search(rf"{ours['stage']} +{ours['shape']} +torch +(.+)", out)[1].split()
        for key, first_cell in (("forward", 0), ("step", 3)):
            used, whole = ours[f"{key}_memory_bytes"], peer[f"{key}_memory_bytes"]
            assert ours[f"{key}_memory_ratio"] == (used / whole if whole else None)
            expected = [
                f"{ours[f'{key}_ms']:.1f}",
                f"{ours[f'{key}_speedup']:.1f}x",
                f"{ours[f'{key}_over_conv2d']:.1f}",
            ]
            assert cells[first_cell : first_cell + 3] == expected
        assert cells[6::2] == [f"{ours[f'{key}_memory_bytes'] / 2**20:.0f}" for key in ("forward", "step")]


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


def test_no_speed_of_nan_is_shown(run_tool, monkeypatch):
    def run(*arguments):
        return dcn.BACKENDS["reference"].run(*arguments) * float("nan")

    monkeypatch.setitem(dcn.BACKENDS, "torch", Backend(run, lambda *tensors: None))
    code, out, _ = run_tool(*OP)
    assert code == 1
    assert "WRONG RESULTS of torch: output of 128 channels is off by nan" in out


def test_half_precision_is_measured(run_tool):
    code, out, err = run_tool(*OP, "--amp", "bf16")
    assert (code, err) == (0, "")
    assert "amp bf16" in out


def test_each_training_step_runs_what_its_name_says(run_tool, tiny_config, tmp_path, monkeypatch):
    seen = {}

    def look(steps, **options):
        for name, step in steps.items():
            model = inspect.getclosurevars(step).nonlocals["model"]
            layers = [module for module in model.modules() if isinstance(module, dcn.DeformConv2d)]
            dtypes = []
            for layer in layers:
                layer.register_forward_hook(lambda module, inputs, output, into=dtypes: into.append(output.dtype))
            step()
            seen[name] = {(layer.backend, dtype) for layer, dtype in zip(layers, dtypes, strict=True)}
        return {name: [1.0] for name in steps}

    monkeypatch.setattr(engine.measure, "time_in_turns", look)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    config = tmp_path / "tiny_dcn.yaml"
    config.write_text(f"base: {tiny_config}\nmodel: {{backbone: {{dcn_v2_stages: [2]}}}}\n")
    code, _, err = run_tool(
        "benchmark", "train", "--config", config, "--size", "64x96", "--device", "cpu", "--amp", "bf16"
    )
    assert (code, err) == (0, "")
    assert seen == {"plain": set()} | {f"DCN {name}": {(name, torch.bfloat16)} for name in ("torch", "torchvision")}


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
    monkeypatch.setattr(dcn.fused, "HAS_TRITON", True)
    code, _, err = run_tool("benchmark", "op", "--device", "cpu", "--backends", "triton")
    assert code == 2
    assert "DCN backend 'triton' cannot run here: it is made for GPUs" in err
