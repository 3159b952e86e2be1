"""The tools in several real processes, as torchrun starts them."""

import json
import os
import re
import shutil
import signal
import socket
from pathlib import Path

import pytest

from engine.runs.checkpoint import load_checkpoint

TOOLS = Path(__file__).resolve().parents[2] / "tools"
TRAIN, EVAL = TOOLS / "train.py", TOOLS / "eval.py"
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
# one image in each of two processes, where the tiny config has two in one
HALVES = ["train.batch_size=1", "data.num_workers=1"]


def metrics(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder, tag="train/loss") -> dict[int, float]:
    return {line["step"]: line[tag] for line in metrics(folder) if tag in line}


def has_steps(folder, count):
    def check() -> bool:
        return (folder / "metrics.jsonl").is_file() and len(losses(folder)) >= count

    return check


@pytest.fixture(scope="module")
def half_run(run_process, tiny_config, tmp_path_factory):
    """A finished run in two processes, and what it said; read it, do not change it."""
    folder = tmp_path_factory.mktemp("halves") / "run"
    result = run_process(*TWO, TRAIN, "--config", tiny_config, "--run-dir", folder, *HALVES, cwd=folder.parent)
    assert result.code == 0, result.err
    return folder, result


def test_two_processes_train_as_one(half_run, plain_run):
    folder, (_, out, _) = half_run
    assert losses(folder).keys() == losses(plain_run).keys() == set(range(1, 13))
    for part in ("objectness", "rpn_box_reg"):  # before proposals are chosen, and weights drift apart in float32
        one, two = (losses(run, f"train/loss_{part}")[1] for run in (plain_run, folder))
        assert two == pytest.approx(one, rel=1e-4)
    assert out.count("effective batch 1 x 1 x 2 = 2, lr 0.005 ") == 1
    assert ", 2 processes" in out
    for text in (out, (folder / "train.log").read_text()):
        assert text.count("done: AP ") == 1
        assert text.count("epoch 2/2 step 12: loss ") == 1
    assert sorted(path.name for path in folder.iterdir() if "tfevents" not in path.name) == sorted(
        path.name for path in plain_run.iterdir() if "tfevents" not in path.name
    )
    assert sum("tfevents" in path.name for path in folder.iterdir()) == 1


@pytest.mark.slow
def test_every_image_is_evaluated_once(half_run, run_process, run_tool, tiny_config, shapes, tmp_path):
    folder, _ = half_run
    truth = json.loads((shapes / "annotations/val.json").read_text())
    gone = truth["images"].pop()["id"]
    truth["annotations"] = [entry for entry in truth["annotations"] if entry["image_id"] != gone]
    (tmp_path / "five.json").write_text(json.dumps(truth))
    options = ["--config", tiny_config, "--checkpoint", folder / "last.pt", "train.batch_size=1"]
    options += [f"data.val.annotations={tmp_path}/five.json"]
    files = ["--json", tmp_path / "two.json", "--detections", tmp_path / "two.detections.json"]
    # five images, one by one, for two processes: it does not come out even
    code, out, err = run_process(*TWO, EVAL, *options, *files, cwd=tmp_path)
    assert code == 0, err
    assert out.count("metric  x100") == 1
    files = ["--json", tmp_path / "one.json", "--detections", tmp_path / "one.detections.json"]
    assert run_tool("eval", *options, *files).code == 0
    for kind in ("json", "detections.json"):
        one, two = (json.loads((tmp_path / f"{name}.{kind}").read_text()) for name in ("one", "two"))
        assert one == two
    assert len({entry["image_id"] for entry in one}) == 5
    # the training judged the same weights, on all images
    assert run_tool("eval", *options[:5], *files).code == 0
    assert metrics(folder)[-1]["val/AP"] == json.loads((tmp_path / "one.json").read_text())["AP"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["train.epoch=1"], 2, "train.epoch: unknown key"),
        pytest.param(["data.val.images=nowhere"], 2, "image folder nowhere does not exist", marks=pytest.mark.slow),
        pytest.param(["--resume", "no.pt"], 2, "checkpoint no.pt does not exist", marks=pytest.mark.slow),
        pytest.param(
            ["model.backbone.norm=sync_bn"], 2, "sync_bn over several processes needs GPUs", marks=pytest.mark.slow
        ),
        (
            ["train.lr=1000", "train.lr_factors={.: 1000}", "train.clip_grad_norm=null"],
            1,
            "step 2 is not finite and was not applied: loss ",
        ),
    ],
)
def test_an_error_is_reported_once(run_process, tiny_config, tmp_path, arguments, code, said):
    options = ["--config", tiny_config, "--run-dir", tmp_path / "run", *HALVES, *arguments]
    result = run_process(*TWO, TRAIN, *options, cwd=tmp_path)
    assert result.code == 1  # torchrun's own
    assert result.err.count("error: ") == 1
    assert result.err.count(said) == 1
    assert not re.search(r"Traceback[^$]*tools/train\.py", result.err.partition("torch/distributed/run.py")[0])
    assert f"exitcode  : {code}" in result.err or code == 2  # which of them torchrun names first is chance
    if said.startswith("step"):
        assert "image ids " in said or re.search(r"image ids \d+, \d+[;.]", result.err)


@pytest.mark.slow
def test_a_killed_process_is_replaced_by_torchrun(start_process, wait_until, held, half_run, tiny_config, tmp_path):
    folder = tmp_path / "run"
    options = [
        "--config",
        tiny_config,
        "--run-dir",
        folder,
        *HALVES,
        "--resume",
        "auto",
        "train.checkpoint_every_steps=2",
    ]
    process = start_process(*TWO, "--max-restarts=1", *held(3), TRAIN, *options, cwd=tmp_path)
    wait_until(has_steps(folder, 3), process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[1]), signal.SIGKILL)
    (tmp_path / "go").touch()
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert re.search(r"resuming from .*last\.pt, step \d+ of 12", out)
    expected = losses(half_run[0])
    assert losses(folder).keys() == expected.keys()
    assert list(losses(folder).values()) == pytest.approx(list(expected.values()), rel=1e-6)


@pytest.mark.slow
def test_a_signal_to_torchrun_stops_all_with_one_checkpoint(
    start_process, wait_until, held, run_process, half_run, tiny_config, tmp_path
):
    folder = tmp_path / "run"
    options = ["--config", tiny_config, "--run-dir", folder, *HALVES]
    process = start_process(*TWO, *held(2), TRAIN, *options, cwd=tmp_path)
    wait_until(has_steps(folder, 2), process)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=600)
    assert process.returncode != 0
    reached = load_checkpoint(folder / "last.pt")["step"]
    assert f"asked to stop by SIGTERM at step {reached}; continue with --resume auto --run-dir {folder}" in out
    assert 2 <= reached < 12

    result = run_process(*TWO, TRAIN, *options, "--resume", "auto", cwd=tmp_path)
    assert result.code == 0, result.err
    assert list(losses(folder).values()) == pytest.approx(list(losses(half_run[0]).values()), rel=1e-6)


@pytest.mark.slow
def test_an_image_that_goes_missing_for_one_process_ends_all(start_process, wait_until, shapes, tiny_config, tmp_path):
    pictures = shutil.copytree(shapes / "train", tmp_path / "train")
    options = ["--config", tiny_config, "--run-dir", tmp_path / "run", *HALVES, f"data.train.images={pictures}"]
    process = start_process(*TWO, TRAIN, *options, "train.epochs=99", "train.eval_every_epochs=99", cwd=tmp_path)
    wait_until(has_steps(tmp_path / "run", 2), process)
    (pictures / "000003.png").unlink()
    _, err = process.communicate(timeout=600)
    assert process.returncode == 1
    ours = err.partition("ChildFailedError")[0]
    assert ours.count(f"error: image {pictures / '000003.png'} does not exist") == 1
    assert 'tools/train.py", line' not in ours


@pytest.mark.slow
def test_two_machines(start_process, half_run, tiny_config, tmp_path):
    """Two torchruns of one process each find each other; only the first machine has the run folder."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nnodes=2", "--master-addr=127.0.0.1", f"--master-port={port}"]
    options = ["--config", tiny_config, *HALVES, "train.epochs=1"]
    for node in range(2):
        (tmp_path / str(node)).mkdir()
    processes = [
        start_process(*launcher, f"--node-rank={node}", TRAIN, *options, cwd=tmp_path / str(node)) for node in range(2)
    ]
    for process in processes:
        _, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
    found, expected = losses(tmp_path / "0/runs/tiny"), losses(half_run[0])
    assert list(found.values()) == pytest.approx(list(expected.values())[:6], rel=1e-6)
    assert not (tmp_path / "1/runs").exists()


@pytest.mark.slow
def test_processes_without_local_variables_train_as_one(start_process, half_run, tiny_config, tmp_path):
    """As Azure ML and Kubeflow start them: with RANK and WORLD_SIZE, but neither LOCAL_RANK nor LOCAL_WORLD_SIZE."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--config", tiny_config, "--run-dir", tmp_path / "run", *HALVES, "train.epochs=1"]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    processes = [start_process(TRAIN, *options, cwd=tmp_path, RANK=str(rank), **meeting) for rank in range(2)]
    for process in processes:
        _, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
    found, expected = losses(tmp_path / "run"), losses(half_run[0])
    assert list(found.values()) == pytest.approx(list(expected.values())[:6], rel=1e-6)
