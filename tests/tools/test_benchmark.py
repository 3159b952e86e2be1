"""tools/benchmark.py: what it measures, what it refuses, and that it shows no speed of a wrong result."""

import importlib
import inspect
import json
import math
import re
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import dcn
from data import CocoDetection
from dcn.functional import Backend
from engine.evaluation.evaluator import coco_figures
from engine.insight.health import Health
from engine.runs.checkpoint import Checkpoints
from engine.training.board import Board
from engine.training.update import Updater

TOOLS = Path(__file__).resolve().parents[2] / "tools"
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


@pytest.fixture
def part(monkeypatch):
    """`part("loop")`: the module of the benchmark that the tool will find under that name."""
    monkeypatch.syspath_prepend(str(TOOLS))
    return lambda name: importlib.import_module(f"_benchmark_{name}")


@pytest.fixture
def run_loop(run_tool, tiny_config, tmp_path, monkeypatch):
    """`run_loop(*arguments)`: the small loop benchmark on the tiny config, and its figures, None without any."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))

    def run(*arguments):
        file = tmp_path / "loop.json"
        result = run_tool(
            "benchmark",
            "loop",
            "--config",
            tiny_config,
            "--device",
            "cpu",
            "--images",
            "20",
            "--json",
            file,
            *arguments,
        )
        assert not [*scratch.iterdir()]
        return result, json.loads(file.read_text()) if file.exists() else None

    return run


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


def test_each_training_step_runs_what_its_name_says(run_tool, tiny_config, tmp_path, monkeypatch, part):
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

    monkeypatch.setattr(part("step"), "time_in_turns", look)
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
        (("loop", "--config", "nothing.yaml"), "nothing.yaml"),
        (("loop", "--steps", "0"), "argument --steps: must be a whole number from 1 on, got '0'"),
        (("loop", "--images", "many"), "argument --images: must be a whole number from 1 on, got 'many'"),
        (("loop", "--workers", "-1"), "argument --workers: must be a whole number from 0 on, got '-1'"),
        (("loop", "--steps", "1", "--rounds", "1"), "--steps x --rounds must be at least 2"),
        (("loop", "--device", "nowhere"), "device 'nowhere' cannot be used here"),
        (("health", "--config", "demo.yaml"), "demo.yaml has no DCN stages to watch"),
        (("health", "--rounds", "0"), "argument --rounds: must be a whole number from 1 on, got '0'"),
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


def test_loop_figures_fit_each_other(run_loop):
    (code, out, err), figures = run_loop("--steps", "2", "--rounds", "3")
    assert (code, err) == (0, "")
    assert torch.__version__ in figures["machine"]
    plain = {"steps": 2, "rounds": 3, "batch_size": 2, "workers": 0, "eval_images": 20, "eval_detections": 2000}
    assert plain.items() <= figures.items()
    assert figures["counted_steps"] == 5
    assert figures["images_per_s"] == 10 / figures["counted_s"]
    assert 0.001 < figures["step_s"] < figures["counted_s"]
    assert 0 < figures["data_wait_share"] < 1
    assert 0.001 < figures["bare_step_s"] < 10
    assert figures["loss_difference"] == 0  # the loops do the same work
    assert figures["turn_share_low"] <= figures["turn_share"] <= figures["turn_share_high"]
    assert figures["line_share"] == figures["line_s"] / figures["bare_step_s"]  # tiny.yaml writes a line in every step
    assert figures["overhead_share"] == figures["turn_share"] + figures["line_share"]
    assert figures["checkpoint_share"] == figures["checkpoint_s"] / 1000 / figures["step_s"]
    assert 0 < figures["record_s"] < figures["line_s"]
    assert figures["eval_s_per_1000_images"] == 50 * figures["eval_s"] > 0
    assert 0.001 < figures["eval_peak_gib"] < 0.5
    assert re.search(rf"overhead +{100 * figures['overhead_share']:.2f} %", out)
    assert f"images/s           {figures['images_per_s']:.2f}" in out
    assert "step 1:" not in out  # the run's own lines


def test_no_overhead_over_other_work_is_shown(run_loop, monkeypatch, part):
    turns = part("turns")
    real = turns.to_device

    def darkened(*arguments):
        images, targets = real(*arguments)
        return [image / 2 for image in images], targets

    monkeypatch.setattr(turns, "to_device", darkened)
    (code, out, _), figures = run_loop("--steps", "1", "--rounds", "2")
    assert code == 1
    assert "NOT THE SAME WORK: in step 1 the trainer's loss is " in out
    assert "overhead  " not in out
    assert figures is None


@pytest.mark.parametrize(
    ("owner", "method", "figure"),
    [
        (Updater, "__call__", "turn_share"),
        (Board, "scalars", "line_share"),
        (Checkpoints, "save", "checkpoint_s"),
        (CocoDetection, "__getitem__", "data_wait_share"),
    ],
)
def test_what_is_slow_shows_where_it_belongs(run_loop, clock, monkeypatch, owner, method, figure):
    real = getattr(owner, method)

    def slow(*arguments, **options):
        time.sleep(0.3)
        return real(*arguments, **options)

    monkeypatch.setattr(owner, method, slow)
    (code, _, _), figures = run_loop("--steps", "1", "--rounds", "3")
    assert code == 0
    added_s = {name: figures[name] * figures["bare_step_s"] for name in ("turn_share", "line_share")}
    added_s["checkpoint_s"] = figures["checkpoint_s"]
    added_s["data_wait_share"] = figures["data_wait_share"] * figures["counted_s"] / 2
    expected = 0.6 if owner is CocoDetection else 0.3  # two images in a step
    assert added_s.pop(figure) == pytest.approx(expected, abs=0.05)
    assert max(added_s.values()) < 0.05


def test_overhead_is_the_median_of_differences_over_the_bare_step(part):
    # seconds of turns of two steps: the trainer's and the bare loop's; in one round another program got in the way
    pairs = [(2.2, 2.0), (3.0, 2.9), (9.0, 2.0), (2.1, 2.1), (2.0, 1.9)]
    figures = part("turns").compare(pairs, 2)
    assert figures == pytest.approx(
        {"trainer_step_s": 1.1, "bare_step_s": 1, "turn_share": 0.05, "turn_share_low": 0.05, "turn_share_high": 0.1}
    )


@pytest.fixture
def run_health(run_tool, tiny_config, tmp_path):
    """`run_health()`: the benchmark of watching on a tiny config with DCN, and its figures."""
    config = tmp_path / "tiny_dcn.yaml"
    config.write_text(f"base: {tiny_config}\nmodel: {{backbone: {{dcn_v2_stages: [2]}}}}\ntrain: {{log_every: 10}}\n")

    def run() -> tuple[str, dict]:
        file = tmp_path / "health.json"
        options = ["--config", config, "--device", "cpu", "--rounds", "4", "--json", file]
        code, out, err = run_tool("benchmark", "health", *options)
        assert (code, err) == (0, "")
        return out, json.loads(file.read_text())

    return run


def test_health_figures_fit_each_other(run_health, monkeypatch):
    steps = []
    real = Health.watching

    def note(health, due):
        steps.append(due and bool(health._layers))
        return real(health, due)

    monkeypatch.setattr(Health, "watching", note)
    out, figures = run_health()
    assert steps == [True, False, False, True] * 2 + [True, False]  # a round that warms up, and 4
    assert {"layers": 2, "batch_size": 2, "rounds": 4}.items() <= figures.items()
    assert 0.001 < figures["step_s"] < 10
    assert figures["watched_share_low"] <= figures["watched_share"] <= figures["watched_share_high"]
    assert figures["watched_s"] == max(figures["watched_share"] * figures["step_s"], figures["figures_s"])
    for name, log_every, picture_every in (("share", 10, 1000), ("default_share", 50, 1000)):
        added_s = figures["watched_s"] / log_every + figures["histograms_s"] / picture_every
        assert figures[name] == pytest.approx(added_s / figures["step_s"])
    assert re.search(
        rf"share of the run +{100 * figures['share']:.2f} % +a record in 10 steps, histograms in 1000", out
    )
    assert re.search(rf"by default +{100 * figures['default_share']:.2f} % +a record in 50 steps", out)


@pytest.mark.parametrize(
    ("owner", "method", "figure", "times"),
    [(Health, "report", "figures_s", 1), (Board, "histogram", "histograms_s", 4), (Health, "watching", "watched_s", 1)],
)
def test_what_is_slow_in_watching_shows(run_health, clock, monkeypatch, owner, method, figure, times):
    real = getattr(owner, method)

    def slow(self, *arguments):
        if owner is Board or self._layers:
            time.sleep(0.1)
        return real(self, *arguments)

    monkeypatch.setattr(owner, method, slow)
    _, figures = run_health()
    assert figures[figure] == pytest.approx(0.1 * times, abs=0.02)
    if owner is Health:
        assert figures["watched_share"] * figures["step_s"] == pytest.approx(0.1, abs=0.02)
    assert figures["histograms_s"] < 0.02 or owner is Board


def test_drawn_evaluation_is_like_a_detectors(part):
    draw = part("eval").draw_evaluation
    truth, results = draw(40)
    assert (truth, results) == draw(40)
    assert len(results) == 4000
    assert 5 < len(truth["annotations"]) / 40 < 9
    assert len({entry["category_id"] for entry in results}) == len(truth["categories"]) == 80
    for entry in [*truth["annotations"], *results]:
        assert min(entry["bbox"][2:]) > 0
    assert np.ptp([entry["image_id"] for entry in results]) == 39
    figures = coco_figures(truth, results)  # which also checks every entry
    assert 0.1 < figures["AP"] < 0.9
    assert figures["AP"] < figures["AP50"]
    assert not any(map(math.isnan, (figures["APs"], figures["APm"], figures["APl"])))
