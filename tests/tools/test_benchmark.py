"""tools/benchmark.py: what it measures, what it refuses, and that it shows no speed of a wrong result."""

import importlib
import inspect
import json
import re
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import dcn
from dcn.functional import Backend

TOOLS = Path(__file__).resolve().parents[2] / "tools"
OP = (
    "benchmark",
    "op",
    "--device",
    "cpu",
    "--sizes",
    "64x90",
    "--batch-sizes",
    "1",
    "--rounds",
    "2",
    "--backends",
    "torch",
)


@pytest.fixture
def part(monkeypatch):
    """`part("loop")`: the module of the benchmark that the tool will find under that name."""
    monkeypatch.syspath_prepend(str(TOOLS))
    return lambda name: importlib.import_module(f"_benchmark_{name}")


@pytest.mark.slow
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
    assert f"WRONG RESULTS of torch: {name} of 128 channels differs by 1.0e-03 relative to the largest value" in out
    assert not re.search(r"1x128x8x12 +torch ", out)
    assert not (tmp_path / "op.json").exists()


@pytest.mark.slow
def test_no_speed_of_nan_is_shown(run_tool, monkeypatch):
    def run(*arguments):
        return dcn.BACKENDS["reference"].run(*arguments) * float("nan")

    monkeypatch.setitem(dcn.BACKENDS, "torch", Backend(run, lambda *tensors: None))
    code, out, _ = run_tool(*OP)
    assert code == 1
    assert "WRONG RESULTS of torch: output of 128 channels differs by nan" in out


@pytest.mark.slow
def test_half_precision_is_measured(run_tool):
    code, out, err = run_tool(*OP, "--amp", "bf16")
    assert (code, err) == (0, "")
    assert "amp bf16" in out


def test_each_training_step_runs_what_its_name_says(run_tool, tiny_config, tmp_path, monkeypatch, part):
    seen = {}

    def look(steps, **options):
        for name, step in steps.items():
            model = inspect.getclosurevars(inspect.getclosurevars(step).nonlocals["step"]).nonlocals["model"]
            layers = [module for module in model.modules() if isinstance(module, dcn.DeformConv2d)]
            dtypes = []
            for layer in layers:
                layer.register_forward_hook(lambda module, inputs, output, into=dtypes: into.append(output.dtype))
            step()
            seen[name] = {(layer.backend, dtype) for layer, dtype in zip(layers, dtypes, strict=True)}
        return {name: [1.0] for name in steps}

    monkeypatch.setattr(part("step"), "time_interleaved", look)
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
    assert "has no deformable stages" in err

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
        (
            ("op", "--sizes", "800"),
            "an image size must be HxW with both sides at least 32, for example 800x1333, got '800'",
        ),
        (("op", "--sizes", "512x512", "20x99"), "got '20x99'"),
        (("train", "--size", "0x512"), "got '0x512'"),
        (("op", "--backends", "cuda"), "unknown DCN backend 'cuda', known: torch, torchvision, triton, reference"),
        (("op", "--rounds", "0"), "argument --rounds: must be an integer of at least 1, got '0'"),
        (("train", "--config", "nothing.yaml"), "nothing.yaml"),
        (("loop", "--config", "nothing.yaml"), "nothing.yaml"),
        (("loop", "--steps", "0"), "argument --steps: must be an integer of at least 1, got '0'"),
        (("loop", "--device", "nowhere"), "device 'nowhere' is not available"),
        (("health", "--config", "demo.yaml"), "demo.yaml has no deformable stages"),
        (("health", "--rounds", "0"), "argument --rounds: must be an integer of at least 1, got '0'"),
        ((), "the following arguments are required: command"),
    ],
)
def test_errors_come_before_work(run_tool, arguments, message):
    code, _, err = run_tool("benchmark", *arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err


def test_a_backend_that_cannot_run_says_why(run_tool, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(dcn.triton_backend, "HAS_TRITON", True)
    code, _, err = run_tool("benchmark", "op", "--device", "cpu", "--backends", "triton")
    assert code == 2
    assert "DCN backend 'triton' is not available: it runs on GPUs only" in err


def test_loop_figures_fit_each_other(run_tool, tiny_config, tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    options = ["--config", tiny_config, "--device", "cpu", "--steps", 2, "--rounds", 3]
    code, out, err = run_tool("benchmark", "loop", *options, "--json", tmp_path / "loop.json")
    assert (code, err) == (0, "")
    assert not [*scratch.iterdir()]
    figures = json.loads((tmp_path / "loop.json").read_text())
    assert torch.__version__ in figures["machine"]
    assert {"steps": 2, "rounds": 3, "batch_size": 2}.items() <= figures.items()
    assert 0.001 < figures["bare_step_s"] < 10
    assert figures["turn_share_low"] <= figures["turn_share"] <= figures["turn_share_high"]
    assert figures["line_share"] == figures["line_s"] / figures["bare_step_s"]  # tiny.yaml writes a line in every step
    assert figures["overhead_share"] == figures["turn_share"] + figures["line_share"]
    assert figures["checkpoint_share"] == figures["checkpoint_s"] / 1000 / figures["bare_step_s"]
    assert 0 < figures["record_s"] < figures["line_s"]
    assert re.search(rf"overhead +{100 * figures['overhead_share']:.2f} %", out)
    assert "step 1:" not in out  # the run's own lines


def test_no_overhead_over_other_work_is_shown(part):
    trainer = SimpleNamespace(updater=lambda batches: SimpleNamespace(numbers={"loss": 2.0}))
    check = part("loop").check_same_work
    check(trainer, lambda batch: torch.tensor(2.01), None)
    for other in (2.1, 1.9, float("nan")):
        with pytest.raises(RuntimeError, match="not the same work: the trainer's loss is 2, that of a bare step "):
            check(trainer, lambda batch, other=other: torch.tensor(other), None)


def test_a_pair_takes_turns_on_the_same_batches(part, clock):
    seen = []

    def step(name, seconds):
        return lambda batch: (seen.append(f"{name}{batch}"), time.sleep(seconds))

    pair = (step("a", 0.03), step("b", 0.02))
    first_s, second_s, shares = part("loop").time_pair("x", *pair, "123", torch.device("cpu"), rounds=2, steps=2)
    # each warms up twice; then the order changes
    assert seen == ["a1", "a2", "a3", "a1", "b1", "b2", "b3", "b1", "a2", "a3", "b2", "b3", "b1", "b2", "a1", "a2"]
    assert (first_s, second_s) == pytest.approx((0.0305, 0.0205))
    assert shares == pytest.approx({f"x_share{end}": 0.01 / 0.0205 for end in ("", "_low", "_high")})


def test_health_figures_fit_each_other(run_tool, tiny_config, tmp_path):
    config, file = tmp_path / "tiny_dcn.yaml", tmp_path / "health.json"
    config.write_text(
        f"base: {tiny_config}\nmodel: {{backbone: {{dcn_v2_stages: [2]}}}}\ntrain: {{log_every_steps: 10}}\n"
    )
    options = ["--config", config, "--device", "cpu", "--rounds", "4", "--json", file]
    code, out, err = run_tool("benchmark", "health", *options)
    assert (code, err) == (0, "")
    figures = json.loads(file.read_text())
    assert {"layers": 2, "batch_size": 2, "rounds": 4}.items() <= figures.items()
    assert 0.001 < figures["step_s"] < 10
    assert figures["watched_share_low"] <= figures["watched_share"] <= figures["watched_share_high"]
    assert figures["watched_s"] == max(figures["watched_share"] * figures["step_s"], figures["figures_s"])
    for name, log_every_steps, images_every_steps in (("share", 10, 1000), ("default_share", 50, 1000)):
        added_s = figures["watched_s"] / log_every_steps + figures["histograms_s"] / images_every_steps
        assert figures[name] == pytest.approx(added_s / figures["step_s"])
    assert re.search(
        rf"fraction of the run +{100 * figures['share']:.2f} % +statistics every 10 steps, histograms every 1000", out
    )
    assert re.search(rf"with defaults +{100 * figures['default_share']:.2f} % +statistics every 50 steps", out)
