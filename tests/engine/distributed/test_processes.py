"""Processes that train together: what they say to each other, and that a split changes nothing."""

import pytest
import torch
from torch import nn

from engine.distributed.processes import ALONE, OtherProcessError, World, read_world
from engine.evaluation.coco_eval import COCO_FIGURES
from engine.training.board import NoBoard

DCN = "model.backbone.dcn_v2_stages=[2]"


def test_alone_without_torchrun(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert read_world() == ALONE == World(0, 1, 0, 1)
    monkeypatch.setenv("RANK", "3")  # some schedulers set one of them
    assert read_world() == ALONE


def test_alone_there_is_nobody_to_talk_to():
    values = torch.ones(2)
    with ALONE.joined(), ALONE.together():
        assert ALONE.sum(values) is values
        assert (ALONE.gather(5), ALONE.gather_on_main(5), ALONE.from_main(lambda: 6)) == ([5], [5], 6)
    assert values.tolist() == [1, 1]
    with pytest.raises(KeyError), ALONE.together():
        raise KeyError


def talk(world):
    return (
        (world.rank, world.size, world.local_rank, world.is_main),
        world.sum(torch.tensor([1.0, world.rank])).tolist(),
        world.gather({"rank": world.rank}),
        world.gather_on_main(world.rank),
        world.from_main(lambda: f"from {world.rank}"),
    )


def test_what_processes_say_to_each_other(together):
    for rank, heard in enumerate(together(3, talk)):
        place, total, gathered, on_main, told = heard
        assert place == (rank, 3, rank, rank == 0)
        assert total == [3, 3]
        assert gathered == [{"rank": 0}, {"rank": 1}, {"rank": 2}]
        assert on_main == ([0, 1, 2] if rank == 0 else None)
        assert told == "from 0"


def fail_on_main(world):
    def make():
        raise ValueError("no such file")

    world.from_main(make)


def fail_in(world, *ranks):
    with world.together():
        if world.rank in ranks:
            raise ValueError(f"mistake in {world.rank}")
    return "passed"


def fail_on_main_within(world):
    with world.together():
        fail_on_main(world)


def test_nobody_waits_for_one_that_failed(together):
    for function in (fail_on_main, fail_on_main_within):
        main, other = together(2, function)
        assert isinstance(main, ValueError)
        assert str(main) == "no such file"
        assert isinstance(other, OtherProcessError)


@pytest.mark.parametrize(("ranks", "said"), [((1,), "mistake in 1"), ((0, 1), "mistake in 0")])
def test_all_processes_pass_or_none(together, ranks, said):
    main, other = together(2, fail_in, *ranks)
    assert isinstance(main, ValueError)  # told once, by the main process
    assert str(main) == said
    assert isinstance(other, OtherProcessError)


def fail_by_a_bug(world):
    with world.together():
        if world.rank == 1:
            raise KeyError("a bug")


def test_a_bug_comes_up_where_it_is(together):
    main, other = together(2, fail_by_a_bug)
    assert isinstance(main, OtherProcessError)
    assert isinstance(other, KeyError)


def test_all_pass(together):
    assert together(2, fail_in) == ["passed", "passed"]


def average(world):
    model = nn.Sequential(nn.BatchNorm2d(2), nn.GroupNorm(1, 2), nn.BatchNorm2d(3))
    for index, norm in ((0, model[0]), (2, model[2])):
        norm.running_mean.fill_(world.rank + index)
        norm.running_var.fill_(10.0 * (world.rank + 1))
    nn.init.constant_(model[1].weight, world.rank)
    world.average_statistics(model)
    return {key: value.tolist() for key, value in model.state_dict().items()}


def test_statistics_of_batch_norms_are_averaged(together):
    for rank, state in enumerate(together(2, average)):
        assert state["0.running_mean"] == [0.5] * 2
        assert state["2.running_mean"] == [2.5] * 3
        assert state["0.running_var"] == [15.0] * 2
        assert state["2.running_var"] == [15.0] * 3
        assert state["1.weight"] == [rank] * 2  # nothing else


def fake_figures(model) -> dict:
    return dict.fromkeys(COCO_FIGURES, 0.5) | {"per_class": {}}


class Recorder(NoBoard):
    """Keeps the scalars of the steps."""

    def __init__(self) -> None:
        self.lines = {}

    def scalars(self, step, values) -> None:
        self.lines[step] = self.lines.get(step, {}) | dict(values)


def train(world, assemble, config, folder, overrides):
    board = Recorder()
    parts = {"board": board, "evaluate": fake_figures, "save": lambda state, name: None}
    trainer = assemble(config, folder, overrides, dtype=torch.float64, world=world, **parts)
    trainer.fit()
    tags = ("train/loss", "train/loss_rpn_box_reg", "train/grad_norm", "lr/backbone")
    steps = [[line[tag] for tag in tags] for step, line in sorted(board.lines.items()) if "train/loss" in line]
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
    common = [DCN, "train.epochs=2", "train.reference_batch=8", "train.ema_decay=0.9", "train.clip_norm=1"]
    whole = train(ALONE, assembler, tiny_config, tmp_path, [*common, f"train.batch_size={images}"])
    split = [*common, f"train.batch_size={batch}", f"train.accumulate={accumulate}"]
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


def judge_with_batch_norm(world, assemble, config, folder):
    """Statistics that the weights and their average have when they are judged, and at the end."""
    seen = []

    def evaluate(model) -> dict:
        seen.append({key: value.tolist() for key, value in model.state_dict().items() if "running_" in key})
        return fake_figures(model)

    overrides = ["model.backbone.norm=bn", "train.batch_size=1", "train.epochs=1", "train.ema_decay=0.9"]
    parts = {"board": Recorder(), "evaluate": evaluate, "save": lambda state, name: None}
    trainer = assemble(config, folder, overrides, world=world, **parts)
    trainer.fit()
    return seen


def test_all_processes_judge_with_the_same_statistics(together, assembler, tiny_config, tmp_path):
    one, other = together(2, judge_with_batch_norm, assembler, tiny_config, tmp_path)
    assert len(one) == 2
    assert one == other
    assert any(value != 0 for key, values in one[0].items() if "mean" in key for value in values)
