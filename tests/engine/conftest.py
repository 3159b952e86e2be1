"""A trainer of the tiny config, built without the tools, and processes for distributed tests."""

import multiprocessing
import os
import socket
import traceback

import pytest
import torch

from engine.building.data import read_split
from engine.building.model import build_model
from engine.building.training import build_trainer
from engine.config.loading import load_config
from engine.display.progress import Progress
from engine.distributed.launchers import read_distributed_context
from engine.distributed.preemption import StopRequest
from engine.distributed.processes import SINGLE_PROCESS
from engine.runs.checkpoint import save_checkpoint
from engine.training.metrics_logger import MetricsLogger, NullLogger
from engine.training.trainer import Trainer

CPU = torch.device("cpu")
IMAGE_TAGS = ("val/detections", "val/receptive_field")


def assemble(
    config_file, folder, overrides, *, start=0, dtype=torch.float32, distributed=SINGLE_PROCESS, **parts
) -> Trainer:
    config = load_config(config_file, overrides)
    train, val = (read_split(config.data, split) for split in ("train", "val"))
    torch.manual_seed(config.seed)
    model, _ = build_model(config.model, config.data, len(train.class_names))
    folder.mkdir(parents=True, exist_ok=True)
    defaults = {
        "draw": lambda model: {tag: torch.zeros(3, 4, 4, dtype=torch.uint8) for tag in IMAGE_TAGS},
        "save": lambda state, name: save_checkpoint(folder / name, state),
        "progress": Progress(),
        "stop": StopRequest(),
    }
    if "metrics_logger" not in parts:
        defaults["metrics_logger"] = MetricsLogger(folder, start) if distributed.is_main else NullLogger()
    return build_trainer(config, model.to(dtype), train, val, device=CPU, distributed=distributed, **(defaults | parts))


@pytest.fixture
def assembler():
    """`assemble`, for tests that call it in other processes."""
    return assemble


@pytest.fixture(scope="module")
def assembler_of_module():
    """`assemble`, for what a module makes once."""
    return assemble


@pytest.fixture
def make_trainer(tiny_config):
    """`make_trainer(folder, *overrides)`: a trainer that logs and saves into `folder`; `parts` replace its own."""
    made = []

    def make(folder, *overrides, **parts) -> Trainer:
        made.append(assemble(tiny_config, folder, overrides, **parts))
        return made[-1]

    yield make
    for trainer in made:
        trainer.metrics_logger.close()


@pytest.fixture
def together():
    """`together(count, function, *arguments)`: the results of `function` in `count` processes.

    They are real ones and talk by gloo; an error in one is given in place of a result, and None if it was killed.
    """
    context = multiprocessing.get_context("fork")
    processes = []

    def run(count, function, *arguments) -> list:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        pipes = []
        for rank in range(count):
            receiver, sender = context.Pipe(duplex=False)
            pipes.append(receiver)
            processes.append(
                context.Process(target=_run_one, args=(sender, rank, count, port, function, arguments), daemon=True)
            )
            processes[-1].start()
            sender.close()  # only the process has it, so that its end is noticed
        results = []
        for pipe in pipes:
            assert pipe.poll(600), "a process waits for ever"
            try:
                results.append(pipe.recv())
            except EOFError:
                results.append(None)
        return results

    yield run
    for process in processes:
        process.kill()
        process.join()


def _run_one(sender, rank, count, port, function, arguments) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    distributed = read_distributed_context()
    try:
        with distributed.process_group():
            outcome = function(distributed, *arguments)
    except Exception as error:
        traceback.print_exc()
        outcome = error
    sender.send(outcome)
