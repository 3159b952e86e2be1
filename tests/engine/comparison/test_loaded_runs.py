"""Reading finished runs, and grouping them by what was learned."""

import json
import logging
import shutil
from pathlib import Path

import pytest

from engine.comparison.loaded_runs import group_runs, option_differences, read_run
from engine.config.loading import load_config
from engine.display.progress import log

DCN = "model.backbone.dcn_v2_stages=[2]"


@pytest.fixture
def read(finish_run, tmp_path):
    """`read("plain_seed0", "seed=0", ...)`: a run as read from a folder of that name."""
    return lambda name, *overrides, **parts: read_run(finish_run(tmp_path / name, *overrides, weights=False, **parts))


def test_what_a_run_left(finish_run, tmp_path):
    folder = finish_run(tmp_path / "run", "seed=3", "train.lr=0.01", quality=0.9, weights=False)
    run = read_run(folder, ["data.val.images=elsewhere", "seed=4"])
    assert (run.folder, run.seed, run.steps, run.images_in_step) == (folder, 3, 12, 2)
    # what the command line says is for what comes, and changes nothing in what the run was
    assert run.config.data.val.images == "elsewhere"
    assert run.options["data.val.images"].endswith("/val")
    assert run.options["train.lr"] == 0.01
    assert run.options["model.backbone.dcn_v2_stages"] == []
    assert 0.5 < run.metrics["AP"] < 1
    assert run.step_s == 0.2
    assert run.data_share == pytest.approx(0.03 / 0.2)
    assert run.peak_gib == 2.0
    assert run.curve("train/loss") == ([4, 12], [2.0, 0.5])
    assert run.curve("val/AP") == ([6, 12], [0.125, 0.28])
    assert run.curve("no/such") == ([], [])
    told = run.as_json()
    assert told["config"] == run.options
    assert (told["parameters"], told["steps"], told["step_s"], told["peak_gib"]) == (769773, 12, 0.2, 2.0)
    assert told["figures"]["per_class"].keys() == {"bar", "cross", "star", "tee", "triangle"}


@pytest.mark.parametrize(
    ("state", "records", "said"),
    [
        ({"metrics": None, "last_eval_step": None}, None, "has no evaluation or no logged step"),
        ({}, [{"step": 12, "val/AP": 0.5}], "has no evaluation or no logged step; finish the run with --resume auto"),
        ({}, [{"step": 12, "time/step_s": 1.0, "time/data_s": None}], "has no evaluation or no logged step"),
        (
            {"last_eval_step": 6},
            None,
            "is at step 12, but was last evaluated at step 6; finish the run",
        ),
    ],
)
def test_unfinished_runs(finish_run, tmp_path, state, records, said):
    folder = finish_run(tmp_path / "run", state=state, records=records, weights=False)
    with pytest.raises(ValueError, match=said) as error:
        read_run(folder)
    assert str(error.value).startswith(str(folder))


def test_a_run_cut_short_after_an_evaluation_is_reported(finish_run, tmp_path, caplog):
    caplog.set_level(logging.WARNING, logger=log.name)
    assert read_run(finish_run(tmp_path / "whole", weights=False)).steps == 12
    assert not caplog.messages
    assert read_run(finish_run(tmp_path / "half", state={"epoch": 1}, weights=False)).steps == 12
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path / 'half'} ended at step 12, before the end of its schedule")


def test_folders_without_a_run(finish_run, tmp_path):
    with pytest.raises(ValueError, match=r"no/last.pt does not exist \(resolved: /"):
        read_run(tmp_path / "no")
    folder = finish_run(tmp_path / "run", weights=False)
    with pytest.raises(ValueError, match=r"/run/last.pt must be a run folder with .*, got a file"):
        read_run(folder / "last.pt")
    (folder / "metrics.jsonl").unlink()
    with pytest.raises(ValueError, match=r"metrics.jsonl does not exist \(resolved: /.* must contain it and last.pt"):
        read_run(folder)


def test_seeds_of_one_config_are_a_group(read):
    runs = [
        read("dcn_seed1", DCN, "seed=1"),
        read(
            "plain_seed1",
            "seed=1",
            "data.num_workers=3",
            "device=auto",
            "train.log_every_steps=7",
            "data.download_hint=x",
        ),
        read("dcn_seed0", DCN),
        read(
            "plain_seed0",
            "train.checkpoint_every_steps=9",
            "train.keep_last=1",
            "train.images_every_steps=8",
            "tta.flip=true",
        ),
        read("slow", "train.lr=0.001"),
    ]
    groups = group_runs(runs)
    assert {name: [run.folder.name for run in group] for name, group in groups.items()} == {
        "dcn": ["dcn_seed1", "dcn_seed0"],
        "plain": ["plain_seed1", "plain_seed0"],
        "slow": ["slow"],
    }
    assert [*groups] == ["dcn", "plain", "slow"]


def test_places_do_not_matter_but_what_lies_there_does(read, shapes, tmp_path):
    shutil.copytree(shapes, tmp_path / "moved")
    moved = [f"data.{split}.images={tmp_path}/moved/{split}" for split in ("train", "val")]
    moved += [f"data.{split}.annotations={tmp_path}/moved/annotations/{split}.json" for split in ("train", "val")]
    one, two = read("a_0"), read("a_1", *moved, "seed=1")
    assert [*group_runs([one, two])] == ["a"]
    other = read("a_2", "seed=2", state={"annotations": one.annotations | {"train": "0" * 64}})
    assert [*group_runs([one, two, other])] == ["a", "a_2"]
    larger = read("a_3", "seed=3", state={"images_in_step": 4})
    assert [*group_runs([one, two, larger])] == ["a", "a_3"]


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["plain_seed0", "plain_seed1"], ["plain"]),
        (["plain-s0", "plain-s1"], ["plain"]),
        (["r50_0", "r50.1"], ["r50"]),
        (["plain/0", "plain/1"], ["plain"]),
        (["plain/seed0", "plain/seed1"], ["plain"]),
        (["one", "two"], ["one and 1 more"]),
        (["r500", "r501"], ["r500 and 1 more"]),
        (["plain_seed0"], ["plain_seed0"]),
    ],
)
def test_name_of_a_group(read, folders, names):
    runs = [read(folder, f"seed={seed}") for seed, folder in enumerate(folders)]
    assert [*group_runs(runs)] == names


def test_groups_of_one_name_get_longer_ones(read, tmp_path):
    groups = group_runs([read("x/run"), read("y/run", DCN)])
    assert [*groups] == [str(tmp_path / "x/run"), str(tmp_path / "y/run")]


def test_the_folder_that_one_is_in(finish_run, tmp_path, monkeypatch):
    monkeypatch.chdir(finish_run(tmp_path / "here", weights=False))
    assert [*group_runs([read_run(Path())])] == ["here"]


def test_one_run_twice(read):
    one, same = read("a", "seed=5"), read("b", "seed=5", "data.num_workers=2")
    with pytest.raises(ValueError, match=r"/a and .*/b have the same config and seed \(5\)"):
        group_runs([one, same])
    with pytest.raises(ValueError, match="the same run twice"):
        group_runs([one, one])


def test_different_val_splits(read):
    one = read("a")
    other = read("b", "seed=1", state={"annotations": one.annotations | {"val": "0" * 64}})
    with pytest.raises(ValueError, match=r"/a and .*/b were evaluated on different annotation files.*same val split"):
        group_runs([one, other])


def test_options_that_differ(read):
    groups = group_runs(
        [read("a_0"), read("a_1", "seed=1", "data.num_workers=2"), read("b", DCN, "train.clip_grad_norm=null")]
    )
    found = option_differences(groups)
    assert found == {
        "data.num_workers": ["0, 2", "0"],
        "model.backbone.dcn_v2_stages": ["[]", "[2]"],
        "train.clip_grad_norm": ["35.0", "null"],
    }
    assert [json.loads(cells[0]) for cells in [*found.values()][1:]] == [[], 35.0]
    assert option_differences(group_runs([read("c_0"), read("c_1", "seed=1")])) == {}


def test_keys_that_came_after_a_run_have_their_defaults(read, tiny_config):
    """A run of before `tta.flip`, FCOS and others existed is a seed of the config that it would be today."""
    old = load_config(tiny_config).model_dump(mode="json")
    for section, key in ((old, "tta"), (old["model"], "fcos"), (old["model"]["backbone"], "dcn_every")):
        del section[key]
    runs = [read("a_0", state={"config": old}), read("a_1", "seed=1")]
    assert [*group_runs(runs)] == ["a"]
    assert option_differences(group_runs(runs)) == {}
    assert runs[0].options["tta.flip"] is False
    assert runs[0].options.keys() == runs[1].options.keys()
    other = read("b", "model.backbone.dcn_every=2", "seed=2")
    assert option_differences(group_runs([*runs, other])) == {"model.backbone.dcn_every": ["1", "2"]}
    # what the command line says is none of them
    assert read_run(runs[0].folder, ["tta.flip=true"]).options["tta.flip"] is False


def test_a_run_with_old_names_is_a_seed_of_the_same_config(read, tiny_config):
    old = load_config(tiny_config).model_dump(mode="json")
    for section, name, former in (
        (old["train"], "grad_accum_steps", "accumulate"),
        (old["train"], "clip_grad_norm", "clip_norm"),
        (old["data"], "keep_images_without_boxes", "keep_empty"),
        (old["data"], "num_workers", "workers"),
        (old["model"]["fpn"], "out_channels", "channels"),
        (old, "tta", "test"),
    ):
        section[former] = section.pop(name)
    runs = [read("a_0", state={"config": old}), read("a_1", "seed=1")]
    assert [*group_runs(runs)] == ["a"]
    assert option_differences(group_runs(runs)) == {}
    assert runs[0].options == runs[1].options | {"seed": 0}


def test_options_of_other_detectors_do_not_count(read):
    one = read("a_0", "model.fcos.num_dcn_convs=2", "model.retinanet={topk_candidates: 7}")
    two, narrow = read("a_1", "seed=1"), read("b", "model.faster_rcnn.box_head_channels=8")
    groups = group_runs([one, two, narrow])
    assert {name: len(group) for name, group in groups.items()} == {"a": 2, "b": 1}
    assert option_differences(groups).keys() == {"model.faster_rcnn.box_head_channels"}
    assert {key.split(".")[1] for key in one.options if key.startswith("model.")} == {
        *("detector", "weights", "dcn_backend", "backbone", "fpn", "faster_rcnn")
    }
    fcos = read(
        "c", "model.detector=fcos", "model.fcos.num_dcn_convs=2", "model.fpn={levels: [3, 4, 5], out_channels: 64}"
    )
    found = option_differences(group_runs([two, fcos]))
    assert found["model.detector"] == ['"faster_rcnn"', '"fcos"']
    assert found["model.fcos.num_dcn_convs"] == ["-", "2"]
    assert found["model.faster_rcnn.box_head_channels"][1] == "-"
    assert not {key for key in found if key.startswith(("model.retinanet", "model.cascade"))}
