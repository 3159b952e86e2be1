"""The training loop: golden first losses, steps by hand, resuming bit for bit, and stopping before a bad update.

After a change that is meant to alter the losses, record them again, and explain the reason in the change:
    UPDATE_GOLDEN=1 python -m pytest -k golden tests/test_configs.py tests/models tests/engine/training
"""

import copy
import itertools
import json
import logging
import math
import os
import re
import shutil
import signal
import time

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data import ImageError
from engine.display import guard
from engine.display.progress import log
from engine.distributed.preemption import PreemptedError, StopRequest
from engine.distributed.processes import DistributedContext
from engine.evaluation.coco_eval import COCO_METRICS
from engine.insight import health
from engine.insight.health import Health
from engine.runs.checkpoint import load_checkpoint, save_checkpoint
from engine.runs.folder import BEST, LAST
from engine.training.metrics_logger import METRICS_FILE
from engine.training.trainer import Trainer
from engine.training.update import NonFiniteError, StepRecord
from models.checkpoint import RENAMED_KEYS

DCN = "model.backbone.dcn_v2_stages=[2]"


def metrics(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]


def logged(folder, tag="train/loss") -> dict[int, float]:
    return {line["step"]: line[tag] for line in metrics(folder) if tag in line}


def copy_of(tensors: dict) -> dict:
    return {key: tensor.clone() for key, tensor in tensors.items()}


def assert_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    different = [key for key in one if not torch.equal(one[key], other[key])]
    assert not different


def fake_figures(model=None, ap=0.5) -> dict:
    return dict.fromkeys(COCO_METRICS, ap) | {"per_class": {"arrow": ap}}


def test_first_losses_are_golden(make_trainer, golden, tmp_path, formula_weights, float64_labels):
    """Losses of the first batch that do not depend on proposals, with unscaled images, in float64."""
    whole = ["data.min_size=80", "data.max_size=96"]
    trainer = make_trainer(tmp_path, "train.max_steps=1", *whole, dtype=torch.float64, evaluate=fake_figures)
    formula_weights(trainer.updater.model)
    trainer.fit()
    found = {tag: logged(tmp_path, f"train/{tag}")[1] for tag in ("loss_objectness", "loss_rpn_box_reg")}
    assert found == pytest.approx(golden("losses", "tiny", found), rel=1e-9)


def test_steps_are_those_of_a_plain_loop(make_trainer, tmp_path):
    """SGD in float64, by hand: momentum, weight decay, warm-up, and the smaller rate of offsets."""
    options = [DCN, "train.max_steps=4", "train.weight_decay=0.01", "train.lr=0.01"]
    trainer = make_trainer(tmp_path, *options, dtype=torch.float64, evaluate=fake_figures)
    model = copy.deepcopy(trainer.updater.model).train()
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    momenta = {name: torch.zeros_like(p) for name, p in parameters.items()}
    losses = {}
    trainer.loader.batch_sampler.set_position(0)
    for step, (batch, lr) in enumerate(zip(trainer.loader, (0.005, 0.0075, 0.01, 0.01), strict=False), start=1):
        model.zero_grad()
        targets = [target | {"boxes": target["boxes"].double()} for target in batch.targets]
        loss = sum(model([image.double() / 255 for image in batch.images], targets).values())
        loss.backward()
        losses[step] = loss.item()
        with torch.no_grad():
            for name, p in parameters.items():
                momenta[name] = 0.9 * momenta[name] + p.grad + 0.01 * p
                p -= lr * (0.1 if ".conv_offset." in name else 1) * momenta[name]
    trainer.fit()
    assert logged(tmp_path) == pytest.approx(losses, rel=1e-7)  # the objectness loss has a float32 part
    trained = trainer.updater.model.state_dict()
    for name, p in parameters.items():
        torch.testing.assert_close(trained[name], p.detach(), rtol=1e-7, atol=1e-9, msg=name)


def test_losses_of_a_step_add_up(make_trainer, tmp_path):
    make_trainer(tmp_path, "train.max_steps=2", evaluate=fake_figures).fit()
    for line in metrics(tmp_path)[:2]:
        parts = [value for tag, value in line.items() if tag.startswith("train/loss_")]
        assert len(parts) == 4
        assert line["train/loss"] == pytest.approx(sum(parts), rel=1e-6)


SQUARES = (
    "data.resize=letterbox",
    "data.min_size=[64, 48]",
    "data.augment.color_jitter=0.5",
    "data.weak_last_epochs=1",
)


@pytest.mark.parametrize(("workers", "data"), [(0, ()), (2, ()), (0, SQUARES)])
def test_resume_in_the_middle_of_an_epoch_is_bit_for_bit(make_trainer, tmp_path, workers, data):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = [DCN, "train.max_steps=8", "train.checkpoint_every_steps=3", f"data.num_workers={workers}", *data]

    def save(state, name):
        save_checkpoint(whole / name, state)
        if name == LAST:
            save_checkpoint(whole / f"step_{state['step']}.pt", state)

    first = make_trainer(whole, *options, save=save)
    first.fit()

    state = load_checkpoint(whole / "step_3.pt")
    assert (state["step"], state["epoch"], state["batch"]) == (3, 0, 3)
    second = make_trainer(parts, *options, start=3)
    torch.rand(7)  # the state of the random generator has no effect
    second.load_state_dict(state)
    second.fit()

    assert list(logged(parts)) == [4, 5, 6, 7, 8]
    for tag in ("train/loss", "dcn_offset_p95_px/layer2.1.conv2", "dcn_grad_ratio/layer2.0.conv2"):
        assert logged(parts, tag) == {step: value for step, value in logged(whole, tag).items() if step > 3}
    assert_same(first.updater.model.state_dict(), second.updater.model.state_dict())
    for one, other in zip(first.updater.optimizer.state.values(), second.updater.optimizer.state.values(), strict=True):
        assert torch.equal(one["momentum_buffer"], other["momentum_buffer"])
    assert logged(parts, "val/AR100")[8] == logged(whole, "val/AR100")[8]
    assert (second.step, second.epoch, second.batch) == (8, 1, 2)


def test_a_checkpoint_of_version_0_1_resumes(make_trainer, tmp_path):
    old_names = {present: old for old, present in RENAMED_KEYS.items()}

    def save(state, name):
        save_checkpoint(tmp_path / name, {old_names.get(key, key): value for key, value in state.items()})

    options = ["train.max_steps=2", "train.log_every_steps=3"]
    first = make_trainer(tmp_path / "old", *options, save=save, evaluate=fake_figures)
    first.fit()
    assert torch.load(tmp_path / LAST, weights_only=True).keys() >= RENAMED_KEYS.keys()
    second = make_trainer(tmp_path / "new", *options, start=2)
    second.load_state_dict(load_checkpoint(tmp_path / LAST))
    assert second.is_finished
    for state in (first.state_dict(), second.state_dict()):
        assert (state["step"], state["last_eval_step"], state["evals_without_improvement"]) == (2, 2, 0)
        assert state["metrics"]["AP"] == state["best_ap"] == 0.5
        assert state["running_mean"] == first.state_dict()["running_mean"]


def test_a_run_without_workers_sees_what_one_with_workers_sees(make_trainer, tmp_path):
    for workers in (0, 1):
        options = [f"data.num_workers={workers}", "train.max_steps=2"]
        make_trainer(tmp_path / str(workers), *options, evaluate=fake_figures).fit()
    assert logged(tmp_path / "0") == logged(tmp_path / "1")


def plant_in_loss(trainer: Trainer) -> None:
    def spoil(model, arguments, out):
        return out | {"loss_box_reg": out["loss_box_reg"] * math.nan} if model.training else out

    trainer.updater.model.register_forward_hook(spoil)


def plant_in_gradient(trainer: Trainer) -> None:
    trainer.updater.model.backbone.body.layer1[0].conv1.weight.register_hook(lambda gradient: gradient * math.inf)


@pytest.mark.parametrize(
    ("plant", "culprit", "amp"),
    [
        (plant_in_loss, "loss_box_reg nan", "off"),
        (plant_in_loss, "loss_box_reg nan", "bf16"),
        (plant_in_loss, "loss_box_reg nan", "fp16"),  # a gradient alone would be skipped by the loss scaler
        (plant_in_gradient, "grad_norm (nan|inf)", "off"),
        (plant_in_gradient, "grad_norm (nan|inf)", "bf16"),
    ],
)
def test_a_step_that_is_not_finite_is_not_applied(make_trainer, tmp_path, plant, culprit, amp):
    trainer = make_trainer(tmp_path, "train.max_steps=1", f"train.amp={amp}", evaluate=fake_figures)
    trainer.fit()
    before, momenta = copy_of(trainer.updater.model.state_dict()), trainer.updater.optimizer.state_dict()["state"]
    momenta = {key: value["momentum_buffer"].clone() for key, value in momenta.items()}
    lr = trainer.updater.optimizer.param_groups[0]["lr"]
    plant(trainer)
    trainer.total_steps = 2
    with pytest.raises(NonFiniteError) as caught:
        trainer.fit()
    text = str(caught.value)
    assert text.startswith("step 2 is not finite and was not applied: loss ")
    for part in ("loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg", "lr backbone", "image ids"):
        assert part in text
    assert re.search(culprit, text)
    assert_same(before, trainer.updater.model.state_dict())
    after = {key: value["momentum_buffer"] for key, value in trainer.updater.optimizer.state_dict()["state"].items()}
    assert_same(momenta, after)
    assert (trainer.step, trainer.batch, trainer.updater.optimizer.param_groups[0]["lr"]) == (1, 1, lr)
    assert load_checkpoint(tmp_path / LAST)["step"] == 1


def test_max_steps_within_and_beyond_an_epoch(make_trainer, tmp_path, caplog):
    trainer = make_trainer(tmp_path / "a", "train.max_steps=4", "train.epochs=1", evaluate=fake_figures)
    assert trainer.total_steps == 4
    caplog.set_level(logging.INFO, logger=log.name)
    trainer.fit()
    assert list(logged(tmp_path / "a")) == [1, 2, 3, 4]
    assert list(logged(tmp_path / "a", "val/AP")) == [4]
    assert trainer.is_finished
    assert "epoch 1/1 step 4: AP 50.0" in caplog.text

    # more steps continue within the epoch
    more = make_trainer(tmp_path / "a", "train.max_steps=100", "train.epochs=1", start=4, evaluate=fake_figures)
    assert more.total_steps == 6
    more.load_state_dict(load_checkpoint(tmp_path / "a" / LAST))
    assert not more.is_finished
    more.fit()
    assert list(logged(tmp_path / "a")) == [1, 2, 3, 4, 5, 6]
    assert (more.epoch, more.batch) == (1, 0)
    whole = make_trainer(tmp_path / "b", "train.epochs=1", evaluate=fake_figures)
    whole.fit()
    assert_same(more.updater.model.state_dict(), whole.updater.model.state_dict())

    again = make_trainer(
        tmp_path / "a", "train.epochs=1", start=6, evaluate=lambda model: pytest.fail("evaluated again")
    )
    again.load_state_dict(load_checkpoint(tmp_path / "a" / LAST))
    assert again.is_finished
    assert again.fit() == fake_figures()


def test_a_run_cut_off_before_its_last_evaluation_is_evaluated_on_resume(make_trainer, tmp_path):
    def broken(model):
        raise OSError("the annotation file is gone")

    with pytest.raises(OSError, match="gone"):
        make_trainer(tmp_path, "train.epochs=1", evaluate=broken).fit()
    trainer = make_trainer(tmp_path, "train.epochs=1", start=6, evaluate=fake_figures)
    trainer.load_state_dict(load_checkpoint(tmp_path / LAST))
    assert not trainer.is_finished
    assert trainer.fit() == fake_figures()
    assert list(logged(tmp_path)) == [1, 2, 3, 4, 5, 6]
    assert list(logged(tmp_path, "val/AP")) == [6]
    assert (trainer.epoch, trainer.batch) == (1, 0)


@pytest.mark.parametrize(
    ("every", "evaluated"), [(1, [2, 4, 6, 8, 10]), (2, [4, 8, 10]), (3, [6, 10]), (5, [10]), (9, [10])]
)
def test_eval_every(make_trainer, tmp_path, every, evaluated):
    options = ["train.batch_size=6", "train.epochs=5", f"train.eval_every_epochs={every}"]
    judged, drawn = [], []
    trainer = make_trainer(
        tmp_path,
        *options,
        evaluate=lambda model: judged.append(trainer.step) or fake_figures(),
        draw=lambda model: drawn.append(trainer.step) or {"val/detections": torch.zeros(3, 4, 4, dtype=torch.uint8)},
    )
    trainer.updater = Pretender()
    trainer.fit()
    assert judged == evaluated
    assert drawn == [10]


class Pretender:
    """Counts steps without computing them."""

    model = ema = None
    device = torch.device("cpu")

    def __init__(self, losses=None) -> None:
        self.step, self.losses = 0, iter(losses or itertools.repeat(1.0))

    def __call__(self, parts, *, error, is_signalled) -> StepRecord:
        self.step += 1
        numbers = {"loss": next(self.losses), "grad_norm": 1.0}
        return StepRecord(numbers, {"backbone": 0.1}, is_signalled(), 0)

    def state_dict(self) -> dict:
        return {"step": self.step}


def test_checkpoints_figures_and_log_lines_at_their_intervals(make_trainer, tmp_path):
    saved, drawn = [], []
    options = [
        "train.log_every_steps=4",
        "train.checkpoint_every_steps=4",
        "train.images_every_steps=5",
        "train.epochs=2",
    ]
    trainer = make_trainer(
        tmp_path,
        *options,
        evaluate=fake_figures,
        draw=lambda model: drawn.append(trainer.step) or {"val/detections": torch.zeros(3, 4, 4, dtype=torch.uint8)},
        save=lambda state, name: saved.append((name, state["step"])),
    )
    trainer.updater = Pretender()
    trainer.fit()
    assert [step for name, step in saved if name == LAST] == [
        4,
        6,
        6,
        8,
        12,
        12,
        12,
    ]  # steps, before and after evaluation
    assert [step for name, step in saved if name == BEST] == [6]  # equally good is not better
    assert drawn == [5, 10, 12]
    assert list(logged(tmp_path)) == [4, 8, 12]


def test_a_record_is_the_mean_since_the_last(make_trainer, tmp_path):
    trainer = make_trainer(tmp_path, "train.log_every_steps=3", "train.epochs=1", evaluate=fake_figures)
    trainer.updater = Pretender([1.0, 2.0, 6.0, 10.0, 20.0, 60.0])
    trainer.fit()
    assert logged(tmp_path) == {3: 3.0, 6: 30.0}


def test_the_best_weights_are_kept(make_trainer, tmp_path):
    options = ["train.batch_size=6", "train.epochs=4"]
    for aps, best in (([0.1, 0.3, 0.2, 0.3], 4), ([0.0] * 4, 2), ([math.nan] * 4, 8)):
        folder = tmp_path / str(best)
        order = iter(aps)
        trainer = make_trainer(folder, *options, evaluate=lambda model, order=order: fake_figures(ap=next(order)))
        trainer.updater = Pretender()
        trainer.fit()
        state = load_checkpoint(folder / BEST)
        assert state["step"] == best
        assert (state["epoch"], state["batch"]) == (best // 2, 0)
        assert state["metrics"]["AP"] == pytest.approx(aps[best // 2 - 1], nan_ok=True)


def test_logged_rates_are_those_of_the_steps(make_trainer, tmp_path):
    options = [
        DCN,
        "train.batch_size=6",
        "train.epochs=3",
        "train.lr=0.01",
    ]  # 2 steps an epoch, a drop after 1.5 epochs
    make_trainer(tmp_path, *options, "train.warmup_steps=2", "train.warmup_factor=0.5", evaluate=fake_figures).fit()
    factors = [0.5, 0.75, 1, 0.1, 0.1, 0.1]
    for group, lr in (("backbone", 0.01), ("head", 0.01), ("conv_offset", 0.001)):
        expected = {step: pytest.approx(lr * factor) for step, factor in enumerate(factors, start=1)}
        assert logged(tmp_path, f"lr/{group}") == expected


def test_going_on_takes_the_rates_of_now(make_trainer, tmp_path):
    make_trainer(tmp_path, "train.max_steps=3", evaluate=fake_figures).fit()
    options = ["train.max_steps=5", "train.lr=0.001", "train.weight_decay=0.5", "train.momentum=0.1"]
    trainer = make_trainer(tmp_path, *options, "train.amp=fp16", start=3, evaluate=fake_figures)
    trainer.load_state_dict(load_checkpoint(tmp_path / LAST))
    trainer.updater.amp, trainer.updater.scaler = "off", torch.amp.GradScaler("cpu", enabled=False)
    trainer.fit()
    rates = [0.0025, 0.00375, 0.005, 0.001, 0.001]
    assert list(logged(tmp_path, "lr/backbone").values()) == pytest.approx(rates)
    assert all(
        (group["weight_decay"], group["momentum"]) == (0.5, 0.1) for group in trainer.updater.optimizer.param_groups
    )


def test_the_gradient_is_clipped_over_all_parameters(make_trainer, tmp_path):
    options = ["train.max_steps=1", "train.warmup_steps=0", "train.weight_decay=0", "train.lr=0.5"]
    trainer = make_trainer(tmp_path, *options, "train.clip_grad_norm=0.01", evaluate=fake_figures)
    before = copy_of(dict(trainer.updater.model.named_parameters()))
    trainer.fit()
    moved = [(p.detach() - before[key]).norm() for key, p in trainer.updater.model.named_parameters()]
    assert torch.stack(moved).norm().item() == pytest.approx(0.5 * 0.01, rel=1e-3)
    assert logged(tmp_path, "train/grad_norm")[1] > 1  # what is logged is the norm before


def test_offsets_are_learned(make_trainer, tmp_path):
    trainer = make_trainer(tmp_path, DCN, "train.max_steps=3", evaluate=fake_figures)
    offsets = {key: p for key, p in trainer.updater.model.named_parameters() if ".conv_offset." in key}
    assert len(offsets) == 4
    assert not any(p.any() for p in offsets.values())
    trainer.fit()
    for key, p in offsets.items():
        # offsets and masks both
        assert p[:18].abs().max() > 1e-7, key
        assert p[18:].abs().max() > 1e-7, key


def test_plain_and_dcn_runs_have_the_same_tags(make_trainer, tmp_path):
    tags = {}
    for name, overrides in (("plain", []), ("dcn", [DCN])):
        trainer = make_trainer(tmp_path / name, "train.max_steps=2", *overrides)
        trainer.fit()
        trainer.metrics_logger.close()
        events = EventAccumulator(str(tmp_path / name)).Reload()
        tags[name] = set(events.Tags()["scalars"])
        lines = metrics(tmp_path / name)
        assert [line["step"] for line in lines] == [1, 2, 2]
        in_lines = {tag for line in lines for tag, value in line.items() if value is not None} - {"step"}
        assert tags[name] == in_lines
        for line in lines[:2]:
            for event in events.Scalars("train/loss"):
                if event.step == line["step"]:
                    assert event.value == pytest.approx(line["train/loss"])
        assert sorted(events.Tags()["images"]) == ["val/detections", "val/receptive_field"]
    assert tags["plain"] - tags["dcn"] == set()
    own = tags["dcn"] - tags["plain"] - {"lr/conv_offset"}
    assert {tag for tag in own if not tag.startswith("dcn")} == set()
    figures = {"offset_mean_px", "offset_p95_px", "offset_max_px", "outside_frac", "outside_frac_vs_regular"}
    figures |= {"mask_mean", "mask_std", "mask_frac_lt_0.1"}
    figures |= {"grad_norm_conv_offset", "grad_norm_weight", "grad_ratio"}
    layers = ("layer2.0.conv2", "layer2.1.conv2")
    over_layers = {f"dcn_{name}/{'max' if name == 'offset_max_px' else 'mean'}" for name in figures}
    assert own == over_layers | {f"dcn_{name}/{layer}" for name in figures for layer in layers}
    expected = {"train/loss", "train/loss_classifier", "train/loss_box_reg", "train/loss_objectness"}
    expected |= {"train/loss_rpn_box_reg", "train/grad_norm", "lr/backbone", "lr/head", "memory/peak_gib"}
    expected |= {"time/step_s", "time/data_s", "time/compute_s", "time/images_per_s", "time/eval_s"}
    expected |= {"val/AP", "val/AP50", "val/AR100", "val_per_class/star"}
    assert expected <= tags["plain"]
    assert {tag.partition("/")[0] for tag in tags["plain"]} == {"train", "lr", "time", "memory", "val", "val_per_class"}


def hooks_in_each_step(trainer: Trainer) -> list[bool]:
    """Return for each step whether the sampling of the deformable layers is captured."""
    watched = []
    offset = trainer.updater.model.backbone.body.layer2[0].conv2.conv_offset

    def note(*_) -> None:
        if trainer.updater.model.training:
            watched.append(bool(offset._forward_hooks))

    offset.register_forward_pre_hook(note)
    return watched


def test_sampling_is_captured_only_in_recorded_steps(make_trainer, tmp_path):
    """A step has two passes, of which the last one counts; training is not affected."""
    options = [DCN, "train.max_steps=8", "train.epochs=9", "train.grad_accum_steps=2", "train.log_every_steps=3"]
    trainer = make_trainer(tmp_path / "a", *options, "train.images_every_steps=4", evaluate=fake_figures)
    watched = hooks_in_each_step(trainer)
    trainer.fit()
    trainer.metrics_logger.close()
    assert watched[::2] == watched[1::2] == [step in (3, 4, 6, 8) for step in range(1, 9)]
    events = EventAccumulator(str(tmp_path / "a"), size_guidance={"histograms": 0}).Reload()
    assert [event.step for event in events.Scalars("dcn_offset_mean_px/mean")] == [3, 6, 8]
    expected = {f"dcn_{what}/layer2.{block}.conv2" for what in ("offset_px", "mask") for block in (0, 1)}
    assert {*events.Tags()["histograms"]} == expected
    for tag in expected:
        assert [event.step for event in events.Histograms(tag)] == [4, 8]
    for figure, spread in (("offset_max_px", "offset_px"), ("mask_mean", "mask")):
        value = events.Scalars(f"dcn_{figure}/layer2.0.conv2")[-1].value
        histogram = events.Histograms(f"dcn_{spread}/layer2.0.conv2")[-1].histogram_value
        assert histogram.num == 2 * (18 if spread == "offset_px" else 9) * 8 * 12
        if figure == "mask_mean":
            assert histogram.sum / histogram.num == pytest.approx(value)
        else:
            assert 0 < max(-histogram.min, histogram.max) <= value

    other = make_trainer(tmp_path / "b", *options, "train.images_every_steps=99", evaluate=fake_figures)
    other.health = Health(None, total_steps=8, warmup_steps=0)
    watched = hooks_in_each_step(other)
    other.fit()
    assert not any(watched)
    assert not [tag for line in metrics(tmp_path / "b") for tag in line if tag.startswith("dcn")]
    assert logged(tmp_path / "b") == logged(tmp_path / "a")


def test_what_is_logged_of_deformable_layers(make_trainer, tmp_path):
    """The gradients are those of the optimizer, after clipping, which does not change their ratio."""
    logs = []
    for clip in ("null", "0.01"):
        options = [DCN, "train.max_steps=1", f"train.clip_grad_norm={clip}"]
        trainer = make_trainer(tmp_path / clip, *options, evaluate=fake_figures)
        trainer.fit()
        logs.append(metrics(tmp_path / clip)[0])
        layer = trainer.updater.model.backbone.body.layer2[1].conv2
        offset = torch.cat([parameter.grad.flatten() for parameter in layer.conv_offset.parameters()]).norm()
        assert logs[-1]["dcn_grad_norm_conv_offset/layer2.1.conv2"] == pytest.approx(offset.item(), rel=1e-5)
        assert logs[-1]["dcn_grad_norm_weight/layer2.1.conv2"] == pytest.approx(layer.weight.grad.norm().item())
    whole, clipped = logs
    for name in ("conv_offset", "weight"):
        tag = f"dcn_grad_norm_{name}/layer2.0.conv2"
        assert clipped[tag] == pytest.approx(whole[tag] * 0.01 / whole["train/grad_norm"], rel=1e-3)
    assert clipped["dcn_grad_ratio/layer2.0.conv2"] == pytest.approx(whole["dcn_grad_ratio/layer2.0.conv2"], rel=1e-4)
    # as it starts: the plain network
    assert whole["dcn_offset_max_px/max"] == 0
    for tag, value in (("outside_frac_vs_regular", 0), ("mask_mean", 1), ("mask_std", 0)):
        assert whole[f"dcn_{tag}/mean"] == value
    inside = (3 * 8 - 2) * (3 * 12 - 2) / (9 * 8 * 12)
    assert whole["dcn_outside_frac/layer2.0.conv2"] == pytest.approx(1 - inside)


def test_offset_health_is_logged(make_trainer, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(health, "MOVED_BY_STEPS", 3)
    options = [DCN, "train.max_steps=12", "train.warmup_steps=4", "train.log_every_steps=3"]
    trainer = make_trainer(tmp_path, *options, "train.offset_lr_factor=0", evaluate=fake_figures)
    assert trainer.health.moved_by == 4
    caplog.set_level(logging.WARNING, logger=log.name)
    trainer.fit()
    (message,) = caplog.messages
    assert message.startswith(
        "offsets are still close to 0 after 6 steps: mean |offset| in pixels is 0 in layer2.0.conv2, 0 in"
    )
    assert message.endswith("or a longer run")


def test_only_the_main_process_captures(tiny_config, tmp_path, assembler):
    for rank in (0, 1):
        trainer = assembler(tiny_config, tmp_path, [DCN], distributed=DistributedContext(rank=rank, size=1))
        with trainer.health.capture(True) as seen:
            trainer.updater.model.backbone(torch.rand(1, 3, 64, 96))
        assert bool(seen) is (rank == 0)
        trainer.metrics_logger.close()


def test_times_make_sense(make_trainer, tmp_path):
    make_trainer(tmp_path, "train.max_steps=2", evaluate=fake_figures).fit()
    for line in metrics(tmp_path)[:2]:
        assert line["time/step_s"] == pytest.approx(line["time/data_s"] + line["time/compute_s"])
        assert line["time/images_per_s"] == pytest.approx(2 / line["time/step_s"])
        assert 0 < line["time/data_s"] < line["time/compute_s"]


def test_bfloat16_trains(make_trainer, tmp_path):
    trainer = make_trainer(tmp_path, DCN, "train.max_steps=1", "train.amp=bf16", evaluate=fake_figures)
    before = copy_of(dict(trainer.updater.model.named_parameters()))
    trainer.fit()
    make_trainer(tmp_path / "full", DCN, "train.max_steps=1", evaluate=fake_figures).fit()
    for tag in ("train/loss_objectness", "train/loss_rpn_box_reg"):  # other proposals are drawn
        half, full = logged(tmp_path, tag)[1], logged(tmp_path / "full", tag)[1]
        assert half == pytest.approx(full, rel=0.02)
        assert half != full
    assert all(p.dtype == torch.float32 for p in trainer.updater.model.parameters())
    assert any(not torch.equal(p, before[key]) for key, p in trainer.updater.model.named_parameters())


@pytest.mark.parametrize(
    "option", ["train.channels_last=true", "train.compile=true", "model.backbone.activation_checkpointing=true"]
)
def test_how_it_is_computed_changes_no_loss(make_trainer, tmp_path, monkeypatch, option):
    """In float64, so that another order of sums does not select other proposals."""
    compiled = []

    def compile_fast(module, **options):
        compiled.append(module)
        compile_module(module, backend="aot_eager", **options)  # all but the making of machine code

    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", compile_fast)
    common = {"dtype": torch.float64, "evaluate": fake_figures}
    trainer = make_trainer(tmp_path / "other", DCN, "train.max_steps=3", option, **common)
    trainer.fit()
    make_trainer(tmp_path / "eager", DCN, "train.max_steps=3", **common).fit()
    for tag in ("train/loss", "train/grad_norm"):
        assert logged(tmp_path / "other", tag) == pytest.approx(logged(tmp_path / "eager", tag), rel=1e-6)
    assert compiled == ([trainer.updater.model.backbone] if "compile" in option else [])


def test_a_stop_request_is_obeyed_after_the_step_with_a_checkpoint(make_trainer, tmp_path):
    stop = StopRequest()
    trainer = make_trainer(tmp_path, stop=stop)
    update = trainer.updater

    class Interrupted:
        def __getattr__(self, name):
            return getattr(update, name)

        def __call__(self, parts, **options):
            if update.step == 3:
                stop.received = "SIGTERM"  # within the fourth step
            return update(parts, **options)

    trainer.updater = Interrupted()
    with pytest.raises(PreemptedError, match="asked to stop by SIGTERM"):
        trainer.fit()
    assert trainer.step == 4
    state = load_checkpoint(tmp_path / LAST)
    assert (state["step"], state["epoch"], state["batch"]) == (4, 0, 4)
    assert list(logged(tmp_path)) == [1, 2, 3, 4]


def test_a_stop_request_ends_the_wait_for_a_batch_that_never_comes(make_trainer, tmp_path):
    stop = StopRequest()
    trainer = make_trainer(tmp_path, stop=stop)
    read = trainer.loader.dataset.dataset.read
    steps = []

    def read_or_hang(*arguments):
        if trainer.step == 3:
            steps.append(trainer.step)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(600)
        return read(*arguments)

    trainer.loader.dataset.dataset.read = read_or_hang
    with stop.listen(), pytest.raises(PreemptedError, match="asked to stop by SIGTERM"):
        trainer.fit()
    state = load_checkpoint(tmp_path / LAST)
    assert (trainer.step, state["step"], state["batch"], steps) == (3, 3, 3, [3])


def test_a_stop_request_ends_an_evaluation(make_trainer, tmp_path):
    stop = StopRequest()
    trainer = make_trainer(tmp_path, "train.epochs=1", stop=stop)
    draw_batches = trainer.evaluate

    def evaluate(model):
        stop.received = "SIGUSR1"
        return draw_batches(model)

    trainer.evaluate = evaluate
    with pytest.raises(PreemptedError, match="asked to stop by SIGUSR1"):
        trainer.fit()
    state = load_checkpoint(tmp_path / LAST)
    assert (state["step"], state["batch"], state["metrics"]) == (6, 6, None)


def test_training_ends_early_when_the_ap_no_longer_rises(make_trainer, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger=log.name)
    options = ["train.batch_size=6", "train.epochs=9", "train.early_stopping_patience=2"]
    aps = [0.1, 0.3, 0.2, 0.4, 0.4, 0.3, 0.9]
    order, drawn = iter(aps), []

    def trainer(start):
        made = make_trainer(
            tmp_path,
            *options,
            start=start,
            evaluate=lambda model: fake_figures(ap=next(order)),
            draw=lambda model: drawn.append(start) or {"val/detections": torch.zeros(3, 4, 4, dtype=torch.uint8)},
        )
        made.updater = Pretender()
        return made

    first = trainer(0)
    first.fit()
    assert first.step == 2 * 6
    assert (first.best_ap, first.evals_without_improvement, first.is_finished, drawn) == (0.4, 2, True, [0])
    assert "early stopping: AP has not improved in 2 evaluations" in caplog.text
    assert load_checkpoint(tmp_path / BEST)["step"] == 2 * 4

    again = trainer(12)
    again.updater.load_state_dict = lambda state: setattr(again.updater, "step", state["step"])
    again.load_state_dict(load_checkpoint(tmp_path / LAST))
    assert again.is_finished


def test_a_record_continues_after_a_resume(make_trainer, tmp_path):
    """A record of 4 steps that is interrupted in the middle has the mean of an uninterrupted one."""
    options = ["train.log_every_steps=4", "train.max_steps=4"]
    make_trainer(tmp_path / "whole", *options, evaluate=fake_figures).fit()

    states = []
    trainer = make_trainer(tmp_path / "cut", *options, "train.checkpoint_every_steps=3", evaluate=fake_figures)
    trainer.save = lambda state, name: states.append(copy.deepcopy(state))
    trainer.fit()
    (state,) = (state for state in states if state["step"] == 3)
    second = make_trainer(tmp_path / "parts", *options, start=3, evaluate=fake_figures)
    second.load_state_dict(state)
    second.fit()
    for tag in ("train/loss", "train/grad_norm", "train/loss_objectness"):
        assert logged(tmp_path / "parts", tag) == logged(tmp_path / "whole", tag)


def test_averaged_and_raw_weights_are_evaluated(make_trainer, tmp_path):
    judged = []

    def evaluate(model):
        judged.append(model)
        return fake_figures(ap=0.7 if len(judged) == 1 else 0.2)

    drawn = []
    trainer = make_trainer(
        tmp_path,
        "train.epochs=1",
        "train.ema_decay=0.9",
        evaluate=evaluate,
        draw=lambda model: drawn.append(model) or {"val/detections": torch.zeros(3, 4, 4, dtype=torch.uint8)},
    )
    figures = trainer.fit()
    assert judged == [trainer.updater.ema.model, trainer.updater.model]
    assert drawn == [trainer.updater.ema.model]
    assert figures["AP"] == trainer.best_ap == 0.7
    assert logged(tmp_path, "val/AP") == {6: 0.7}
    assert logged(tmp_path, "val_no_ema/AP") == {6: 0.2}
    state = load_checkpoint(tmp_path / BEST)
    assert_same(state["ema"]["model"], trainer.updater.ema.model.state_dict())
    assert_same(state["model"], trainer.updater.model.state_dict())


def test_unreadable_images_are_logged_once_and_counted(make_trainer, shapes, tmp_path, caplog):
    folder = shutil.copytree(shapes / "train", tmp_path / "train")
    options = [f"data.train.images={folder}", "data.on_unreadable_image=skip", "train.epochs=2"]
    trainer = make_trainer(tmp_path / "run", *options, evaluate=fake_figures)
    (folder / "000003.png").unlink()  # it was there when the run began
    (folder / "000007.png").write_bytes(b"no picture")
    caplog.set_level(logging.INFO, logger=log.name)
    trainer.fit()
    assert sorted(trainer.unreadable.values()) == [2, 2]
    assert [*logged(tmp_path / "run")] == [*range(1, 13)]
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2
    assert any("000003.png does not exist" in text for text in warnings)
    (line,) = (text for text in caplog.messages if "epoch 2/2 step 12: loss" in text)
    assert line.endswith(" 4 images skipped")
    assert any("000007.png cannot be read" in text for text in warnings)
    trainer.unreadable.clear()
    trainer.load_state_dict(load_checkpoint(tmp_path / "run" / LAST))  # a resumed run continues to count
    assert sorted(trainer.unreadable.values()) == [2, 2]


def test_an_unreadable_image_ends_the_run_by_default(make_trainer, shapes, tmp_path):
    folder = shutil.copytree(shapes / "train", tmp_path / "train")
    sizes = ["data.min_size=96", "data.max_size=120"]
    trainer = make_trainer(tmp_path / "run", f"data.train.images={folder}", *sizes, evaluate=fake_figures)
    (folder / "000003.png").unlink()

    def refuse_small(module, images):
        """Raise like a detector with a minimum size: this error would hide that of the image."""
        if min(images[0].shape[-2:]) < 96:
            raise ValueError("too small for this detector")

    trainer.updater.model.backbone.register_forward_pre_hook(refuse_small)
    with pytest.raises(ImageError, match=r"000003\.png does not exist"):
        trainer.fit()


def test_metrics_of_masks_are_logged_and_the_box_ap_selects_the_best(make_trainer, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger=log.name)
    boxes, masks = iter([0.4, 0.3]), iter([0.1, 0.2])

    def judge(model):
        ap = next(masks)
        of_masks = {f"mask_{name}": ap for name in COCO_METRICS} | {"mask_per_class": {"arrow": ap}}
        return fake_figures(ap=next(boxes)) | of_masks

    trainer = make_trainer(tmp_path, evaluate=judge)
    assert trainer.fit()["mask_AP"] == 0.2
    assert logged(tmp_path, "val/AP") == {6: 0.4, 12: 0.3}
    for tag in ("val/mask_AP", "val/mask_ARl", "val_mask_per_class/arrow"):
        assert logged(tmp_path, tag) == {6: 0.1, 12: 0.2}
    assert "val/mask_per_class" not in {tag for line in metrics(tmp_path) for tag in line}
    trainer.metrics_logger.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.value for event in events.Scalars("val/mask_AP")] == pytest.approx([0.1, 0.2])
    assert "AP 40.0, AP50 40.0, AP75 40.0, mask AP 10.0 (evaluated in" in caplog.text
    assert load_checkpoint(tmp_path / BEST)["step"] == 6
    assert load_checkpoint(tmp_path / LAST)["metrics"]["mask_per_class"] == {"arrow": 0.2}


def test_metrics_of_masks_of_averaged_and_raw_weights(make_trainer, tmp_path):
    def judge(model):
        ap = 0.25 if model is trainer.updater.ema.model else 0.125
        return fake_figures(ap=ap) | {"mask_AP": ap / 2, "mask_per_class": {"arrow": ap / 2}}

    trainer = make_trainer(tmp_path, "train.ema_decay=0.9", "train.max_steps=2", evaluate=judge)
    trainer.fit()
    assert logged(tmp_path, "val/mask_AP") == {2: 0.125}
    assert logged(tmp_path, "val_no_ema/mask_AP") == {2: 0.0625}
    assert logged(tmp_path, "val_mask_per_class/arrow") == {2: 0.125}


@pytest.mark.parametrize("part", ["figures", "histograms", "statistics"])
def test_an_error_in_what_is_only_shown_ends_no_training(make_trainer, tmp_path, caplog, monkeypatch, part):
    monkeypatch.setattr(guard, "_warned", set())
    saved = []

    def fail(*_):
        saved_at.append(saved[-1:])
        raise ValueError("x1 must be greater than or equal to x0")

    saved_at = []
    names = {"histograms": "histograms", "statistics": "report"}
    options = {"draw": fail} if part == "figures" else {}
    trainer = make_trainer(
        tmp_path,
        *[DCN, "train.max_steps=4", "train.images_every_steps=2", "train.checkpoint_every_steps=2"],
        evaluate=fake_figures,
        save=lambda state, name: saved.append(state["step"]),
        **options,
    )
    if part in names:
        monkeypatch.setattr(trainer.health, names[part], fail)
    caplog.set_level(logging.WARNING, logger=log.name)
    trainer.fit()
    assert trainer.step == 4
    assert len([message for message in caplog.messages if "ValueError: x1 must be" in message]) == 1
    assert caplog.messages[0].startswith(part)
    assert list(logged(tmp_path)) == [1, 2, 3, 4]
    if part == "figures":
        assert saved_at == [[2], [4], [4]]  # saved first
