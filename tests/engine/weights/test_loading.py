"""A restored detector equals the trainer's detector, from a folder or a file; errors."""

import pytest
import torch

from dcn import DeformConv2d
from engine.config.loading import load_config
from engine.evaluation.coco_eval import COCO_METRICS
from engine.inference.restored import restore_model
from engine.runs.checkpoint import Checkpoints, load_checkpoint, save_checkpoint
from engine.runs.folder import BEST, LAST
from engine.weights.loading import load_trained
from models.checkpoint import choose_weights

OPTIONS = ["model.backbone.dcn_v2_stages=[2]", "train.max_steps=3", "train.lr=0.05", "seed=5"]
AVERAGED = [*OPTIONS, "train.ema_decay=0.4"]
IMAGES = [torch.rand(3, 70, 90, generator=torch.Generator().manual_seed(0))]


@pytest.fixture
def finish(make_trainer, tiny_config):
    """`finish(folder, options)`: a trainer after its few steps, which were saved as a run saves them."""

    def finish(folder, options):
        config = load_config(tiny_config, options)
        classes = {"class_names": ["a", "b", "c", "d", "e"], "category_ids": [1, 2, 3, 4, 5]}
        about = {"config": config.model_dump(mode="json")} | classes
        figures = dict.fromkeys(COCO_METRICS, 0.5) | {"per_class": {}}
        save = Checkpoints(folder, about).save
        trainer = make_trainer(folder, *options, save=save, evaluate=lambda model: figures)
        trainer.fit()
        return trainer

    return finish


def outputs(model):
    with torch.inference_mode():
        return model.eval()(IMAGES)[0]


def assert_same_outputs(one, other):
    found, expected = outputs(one), outputs(other)
    assert len(expected["boxes"]) > 0
    assert all(torch.equal(found[name], expected[name]) for name in ("boxes", "labels", "scores"))


def test_raw_and_averaged_weights_are_those_of_the_trainer(finish, tmp_path):
    trainer = finish(tmp_path, AVERAGED)
    raw, average = trainer.updater.model, trainer.updater.ema.model
    assert not torch.equal(outputs(raw)["scores"], outputs(average)["scores"])
    trained = load_trained(tmp_path)
    assert_same_outputs(restore_model(trained, weights="raw"), raw)
    assert_same_outputs(restore_model(trained, weights="ema"), average)
    assert_same_outputs(restore_model(trained), average)  # the evaluated weights
    model = restore_model(trained)
    assert not model.training
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert sum(isinstance(module, DeformConv2d) for module in model.modules()) == 2


def test_without_an_average_the_weights_are_the_raw_ones(finish, tmp_path):
    trainer = finish(tmp_path, OPTIONS)
    trained = load_trained(tmp_path)
    assert_same_outputs(restore_model(trained), trainer.updater.model)
    with pytest.raises(ValueError, match=rf"{tmp_path / LAST} does not contain EMA weights, .* --weights raw"):
        restore_model(trained, weights="ema")


def test_a_folder_means_its_last_checkpoint(finish, tmp_path):
    trainer = finish(tmp_path, OPTIONS)
    state = load_checkpoint(tmp_path / LAST)
    for tensor in state["model"].values():
        tensor.zero_()
    save_checkpoint(tmp_path / BEST, state | {"step": 1})
    last, file, best = (load_trained(path) for path in (tmp_path, tmp_path / LAST, tmp_path / BEST))
    assert last.path == file.path == tmp_path / LAST
    assert best.path == tmp_path / BEST
    assert (last.state["step"], file.state["step"], best.state["step"]) == (3, 3, 1)
    assert_same_outputs(restore_model(file), trainer.updater.model)
    assert not restore_model(best).backbone.body.conv1.weight.any()


def test_the_config_is_that_of_the_run_with_overrides(finish, tiny_config, tmp_path):
    finish(tmp_path, AVERAGED)
    plain = load_trained(tmp_path)
    assert plain.config == load_config(tiny_config, AVERAGED)
    other = load_trained(
        tmp_path, ["data.num_workers=7", "model.dcn_backend=reference", "model.faster_rcnn.score_threshold=0.9"]
    )
    assert (other.config.data.num_workers, other.config.seed) == (7, 5)
    assert other.state["config"] == plain.state["config"] == plain.config.model_dump(mode="json")
    model = restore_model(other)
    assert {m.backend for m in model.modules() if isinstance(m, DeformConv2d)} == {"reference"}
    assert model.roi_heads.score_thresh == 0.9
    assert torch.equal(model.rpn.head.conv[0][0].weight, restore_model(plain).rpn.head.conv[0][0].weight)


def test_pretrained_weights_are_not_loaded(finish, tmp_path):
    trainer = finish(tmp_path, OPTIONS)
    gone = load_trained(tmp_path, ["model.backbone.weights=/nowhere/resnet18.pth"])
    assert_same_outputs(restore_model(gone), trainer.updater.model)


@pytest.mark.parametrize(
    ("epoch", "step", "judged", "stale", "options", "finished"),
    [
        (1, 3, 3, 0, ["train.epochs=1"], True),
        (0, 3, 3, 0, ["train.epochs=1"], False),
        (0, 3, 3, 0, ["train.epochs=9", "train.max_steps=3"], True),
        (0, 3, 3, 0, ["train.epochs=9", "train.max_steps=4"], False),
        (1, 3, 3, 2, ["train.epochs=9", "train.early_stopping_patience=2"], True),
        (1, 3, 3, 1, ["train.epochs=9", "train.early_stopping_patience=2"], False),
        (1, 3, 2, 0, ["train.epochs=1"], False),  # not evaluated since
        (1, 3, None, 0, ["train.epochs=1"], False),
    ],
)
def test_a_run_is_finished_after_its_last_evaluation(
    tiny_config, tmp_path, epoch, step, judged, stale, options, finished
):
    config = load_config(tiny_config, ["train.max_steps=null", *options]).model_dump(mode="json")
    progress = {"epoch": epoch, "step": step, "last_eval_step": judged, "evals_without_improvement": stale}
    save_checkpoint(tmp_path / LAST, {"config": config, **progress})
    assert load_trained(tmp_path, needed=["config"]).is_finished is finished


def test_a_trainer_that_ended_and_its_checkpoint_agree(finish, tmp_path):
    trainer = finish(tmp_path, OPTIONS)
    assert trainer.is_finished
    assert load_trained(tmp_path).is_finished
    assert not load_trained(tmp_path, ["train.max_steps=5"]).is_finished


@pytest.mark.parametrize(("asked", "ema", "chosen"), [(None, None, "raw"), (None, {}, "ema"), ("raw", {}, "raw")])
def test_default_weights_are_the_evaluated_ones(asked, ema, chosen, tmp_path):
    assert choose_weights({"ema": ema}, asked, tmp_path) == chosen


def test_missing_and_damaged_checkpoints_are_errors(finish, tmp_path):
    with pytest.raises(ValueError, match=rf"{tmp_path / LAST} does not exist"):
        load_trained(tmp_path)
    with pytest.raises(ValueError, match=r"none\.pt does not exist"):
        load_trained(tmp_path / "none.pt")
    finish(tmp_path, OPTIONS)
    with pytest.raises(ValueError, match=r"data.num_workers"):
        load_trained(tmp_path, ["data.num_workers=-1"])
    with pytest.raises(ValueError, match=r"data.worker"):
        load_trained(tmp_path, ["data.worker=1"])
    content = bytearray((tmp_path / LAST).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / LAST).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{tmp_path / LAST} cannot be read: it is damaged"):
        load_trained(tmp_path)
