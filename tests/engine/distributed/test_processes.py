"""Distributed training: collective calls, errors, and results that do not depend on the split."""

import os
import signal
import socket

import pytest
import torch
from torch import nn

from engine.distributed.preemption import PreemptedError
from engine.distributed.processes import SINGLE_PROCESS, DistributedContext, LostProcessError, OtherProcessError
from engine.evaluation.coco_eval import COCO_METRICS
from engine.training.metrics_logger import NullLogger

DCN = "model.backbone.dcn_v2_stages=[2]"


def test_a_single_process_needs_no_process_group():
    values = torch.ones(2)
    with SINGLE_PROCESS.process_group(), SINGLE_PROCESS.raise_together():
        assert SINGLE_PROCESS.sum(values) is values
        assert (
            SINGLE_PROCESS.gather(5),
            SINGLE_PROCESS.gather_on_main(5),
            SINGLE_PROCESS.run_on_main_and_broadcast(lambda: 6),
        ) == ([5], [5], 6)
    assert values.tolist() == [1, 1]
    with pytest.raises(KeyError), SINGLE_PROCESS.raise_together():
        raise KeyError


def talk(distributed):
    return (
        (distributed.rank, distributed.size, distributed.local_rank, distributed.is_main),
        distributed.sum(torch.tensor([1.0, distributed.rank])).tolist(),
        distributed.gather({"rank": distributed.rank}),
        distributed.gather_on_main(distributed.rank),
        distributed.run_on_main_and_broadcast(lambda: f"from {distributed.rank}"),
    )


def test_collective_calls(together):
    for rank, heard in enumerate(together(3, talk)):
        place, total, gathered, on_main, told = heard
        assert place == (rank, 3, rank, rank == 0)
        assert total == [3, 3]
        assert gathered == [{"rank": 0}, {"rank": 1}, {"rank": 2}]
        assert on_main == ([0, 1, 2] if rank == 0 else None)
        assert told == "from 0"


def fail_on_main(distributed):
    def make():
        raise ValueError("no such file")

    distributed.run_on_main_and_broadcast(make)


def fail_in(distributed, *ranks):
    with distributed.raise_together():
        if distributed.rank in ranks:
            raise ValueError(f"error in {distributed.rank}")
    return "passed"


def fail_on_main_within(distributed):
    with distributed.raise_together():
        fail_on_main(distributed)


def test_no_process_waits_for_a_failed_one(together):
    for function in (fail_on_main, fail_on_main_within):
        main, other = together(2, function)
        assert isinstance(main, ValueError)
        assert str(main) == "no such file"
        assert isinstance(other, OtherProcessError)


@pytest.mark.parametrize(("ranks", "said"), [((1,), "error in 1"), ((0, 1), "error in 0")])
def test_all_processes_pass_or_none(together, ranks, said):
    main, other = together(2, fail_in, *ranks)
    assert isinstance(main, ValueError)  # raised once, by the main process
    assert str(main) == said
    assert isinstance(other, OtherProcessError)


def fail_by_a_bug(distributed):
    with distributed.raise_together():
        if distributed.rank == 1:
            raise KeyError("a bug")


def test_a_bug_comes_up_where_it_is(together):
    main, other = together(2, fail_by_a_bug)
    assert isinstance(main, OtherProcessError)
    assert isinstance(other, KeyError)


def test_all_pass(together):
    assert together(2, fail_in) == ["passed", "passed"]


def end_without_a_word(distributed):
    if distributed.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    distributed.gather(distributed.rank)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no such signal here")
def test_a_killed_process_ends_the_others_with_a_message(together):
    main, other = together(2, end_without_a_word)
    assert isinstance(main, LostProcessError)
    assert str(main).startswith("another process of this job has ended, and its output has the cause; rank 0 cannot")
    assert other is None


def test_processes_that_cannot_meet(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        said = "the 2 processes cannot find each other at MASTER_ADDR=127.0.0.1 and MASTER_PORT="
        with pytest.raises(ValueError, match=said), DistributedContext(0, 2).process_group():
            pass


def average(distributed):
    model = nn.Sequential(nn.BatchNorm2d(2), nn.GroupNorm(1, 2), nn.BatchNorm2d(3))
    for index, norm in ((0, model[0]), (2, model[2])):
        norm.running_mean.fill_(distributed.rank + index)
        norm.running_var.fill_(10.0 * (distributed.rank + 1))
    nn.init.constant_(model[1].weight, distributed.rank)
    distributed.average_statistics(model)
    return {key: value.tolist() for key, value in model.state_dict().items()}


def test_statistics_of_batch_norms_are_averaged(together):
    for rank, state in enumerate(together(2, average)):
        assert state["0.running_mean"] == [0.5] * 2
        assert state["2.running_mean"] == [2.5] * 3
        assert state["0.running_var"] == [15.0] * 2
        assert state["2.running_var"] == [15.0] * 3
        assert state["1.weight"] == [rank] * 2  # nothing else


def fake_figures(model) -> dict:
    return dict.fromkeys(COCO_METRICS, 0.5) | {"per_class": {}}


class Recorder(NullLogger):
    """Records the scalars by step."""

    def __init__(self) -> None:
        self.lines = {}

    def log_scalars(self, step, values) -> None:
        self.lines[step] = self.lines.get(step, {}) | dict(values)


def train(distributed, assemble, config, folder, overrides):
    metrics_logger = Recorder()
    parts = {"metrics_logger": metrics_logger, "evaluate": fake_figures, "save": lambda state, name: None}
    trainer = assemble(config, folder, overrides, dtype=torch.float64, distributed=distributed, **parts)
    trainer.fit()
    tags = ("train/loss", "train/loss_rpn_box_reg", "train/grad_norm", "lr/backbone")
    steps = [[line[tag] for tag in tags] for step, line in sorted(metrics_logger.lines.items()) if "train/loss" in line]
    weights = {key: value.numpy() for key, value in trainer.updater.model.state_dict().items()}
    averages = {key: value.numpy() for key, value in trainer.updater.ema.model.state_dict().items()}
    return steps, weights, averages


SPLITS = {
    "two processes": (2, 2, 1),
    "two accumulated": (1, 2, 2),
    "both": (2, 1, 2),
    "more processes than images": (5, 1, 1),  # the last step of an epoch has two
}


@pytest.mark.parametrize("name", SPLITS)
def test_a_split_changes_nothing(together, assembler, tiny_config, tmp_path, name):
    """In float64 with group norm: losses, gradients, rates and weights are those of one process and one pass."""
    processes, batch, accumulate = SPLITS[name]
    images = processes * batch * accumulate
    common = [DCN, "train.epochs=2", "train.base_batch_size=8", "train.ema_decay=0.9", "train.clip_grad_norm=1"]
    whole = train(SINGLE_PROCESS, assembler, tiny_config, tmp_path, [*common, f"train.batch_size={images}"])
    split = [*common, f"train.batch_size={batch}", f"train.grad_accum_steps={accumulate}"]
    results = together(processes, train, assembler, tiny_config, tmp_path / "split", split)
    for rank, (steps, weights, averages) in enumerate(results):
        if rank == 0:
            assert len(steps) == len(whole[0]) == 2 * -(-12 // images)
        torch.testing.assert_close(
            torch.tensor(steps), torch.tensor(whole[0]), rtol=1e-6, atol=0
        )  # torchvision's objectness loss is float32
        for found, expected in ((weights, whole[1]), (averages, whole[2])):
            assert found.keys() == expected.keys()
            for key, value in found.items():
                torch.testing.assert_close(
                    torch.from_numpy(value), torch.from_numpy(expected[key]), rtol=1e-8, atol=1e-10, msg=key
                )


def wait_in_one(distributed, assemble, config, folder):
    """Process 1 is asked to stop while it waits for the images of the third step."""
    saved = []
    parts = {"metrics_logger": Recorder(), "evaluate": fake_figures}
    parts["save"] = lambda state, name: saved.append((name, state["step"]))
    trainer = assemble(config, folder, ["train.batch_size=1"], distributed=distributed, **parts)
    next_parts = trainer._next_parts

    def wait(batches):
        if distributed.rank == 1 and trainer.step == 2:
            trainer.stop.received = "SIGTERM"
        return next_parts(batches)

    trainer._next_parts = wait
    with pytest.raises(PreemptedError) as reason:
        trainer.fit()
    return str(reason.value), trainer.step, saved


def test_a_wait_that_a_signal_ends_in_one_process_ends_all_with_a_checkpoint(
    together, assembler, tiny_config, tmp_path
):
    main, other = together(2, wait_in_one, assembler, tiny_config, tmp_path)
    assert main == ("asked to stop by SIGTERM", 2, [("last.pt", 2)])
    assert other == ("asked to stop by SIGTERM", 2, [])


def evaluate_with_batch_norm(distributed, assemble, config, folder):
    """Batch norm statistics of the weights and of their average during an evaluation and at the end."""
    seen = []

    def evaluate(model) -> dict:
        seen.append({key: value.tolist() for key, value in model.state_dict().items() if "running_" in key})
        return fake_figures(model)

    overrides = ["model.backbone.norm=bn", "train.batch_size=1", "train.epochs=1", "train.ema_decay=0.9"]
    parts = {"metrics_logger": Recorder(), "evaluate": evaluate, "save": lambda state, name: None}
    trainer = assemble(config, folder, overrides, distributed=distributed, **parts)
    trainer.fit()
    return seen


def test_all_processes_evaluate_with_the_same_statistics(together, assembler, tiny_config, tmp_path):
    one, other = together(2, evaluate_with_batch_norm, assembler, tiny_config, tmp_path)
    assert len(one) == 2
    assert one == other
    assert any(value != 0 for key, values in one[0].items() if "mean" in key for value in values)
