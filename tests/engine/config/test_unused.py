"""Options that nothing uses are found, and no option that something uses is called so."""

from dataclasses import replace

import pytest

from engine.config.files import CONFIG_DIR, find_config
from engine.config.loading import load_config
from engine.config.unused import describe_unused, unused_options, unused_overrides
from models import DETECTORS

PLAIN = "model.backbone.dcn_v2_stages=[]"
STUDIES = ("study.yaml", "study_gpu.yaml")
CONFIGS = sorted(file.name for file in CONFIG_DIR.glob("*.yaml") if file.name not in STUDIES)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_is_quiet_with_and_without_dcn(name):
    assert unused_options(load_config(name)) == {}
    found = unused_options(load_config(name, [PLAIN]), [PLAIN])
    # what makes it DCNv1 is a change that goes for nothing
    assert set(found) == ({"model.backbone.modulation"} if name == "r50_dcnv1.yaml" else set())


@pytest.mark.parametrize(
    ("name", "overrides", "found"),
    [
        # modifiers of what is deformable, without it
        ("r50", ["model.backbone.dcn_every=2"], {"model.backbone.dcn_every": "dcn_v2_stages is empty"}),
        ("r50_dcn", ["model.backbone.dcn_every=2"], {}),
        (
            "r50",
            ["model.backbone.activation_checkpointing=true"],
            {"model.backbone.activation_checkpointing": "is empty"},
        ),
        ("r50", ["model.backbone.offset_groups=2"], {"model.backbone.offset_groups": "no layer is deformable"}),
        ("r50", ["model.backbone.mask_scale=1.0"], {"model.backbone.mask_scale": "no layer is deformable"}),
        ("r50", ["model.backbone.mask_scale=2.0"], {}),
        ("r50", ["model.dcn_backend=torch"], {"model.dcn_backend": "no layer is deformable"}),
        ("r50", ["train.offset_lr_factor=1.0"], {"train.offset_lr_factor": "no layer is deformable"}),
        ("r50_dcnv1", ["model.backbone.mask_scale=1.0"], {"model.backbone.mask_scale": "DCNv1 has no mask"}),
        # a deformable head alone uses the options of layers, not those of stages
        ("fcos_r50", ["model.fcos.num_dcn_convs=1", "model.backbone.mask_scale=1.0"], {}),
        (
            "fcos_r50",
            ["model.fcos.num_dcn_convs=1", "model.backbone.dcn_every=2"],
            {"model.backbone.dcn_every": "empty"},
        ),
        # options of other choices, given on the command line
        ("r50", ["model.fcos.nms_threshold=0.4"], {"model.fcos.nms_threshold": "model.detector is faster_rcnn"}),
        ("r50", ["model.fcos={nms_threshold: 0.4}"], {"model.fcos.nms_threshold": "is faster_rcnn"}),
        ("r50", ["model.fcos.nms_threshold=0.6"], {}),
        ("fcos_r50", ["model.fcos.nms_threshold=0.4"], {}),
        ("fcos_r50_dcn", ["model.detector=retinanet"], {}),
        ("r50", ["train.lr_schedule=cosine", "train.gamma=0.5"], {"train.gamma": "train.lr_schedule is cosine"}),
        ("demo", ["train.lr_schedule=cosine"], {}),
        ("demo", ["train.min_lr_factor=0.1"], {"train.min_lr_factor": "train.lr_schedule is step"}),
        ("demo", ["train.lr_schedule=cosine", "train.min_lr_factor=0.1"], {}),
        ("r50", ["train.warmup_steps=0", "train.warmup_factor=0.5"], {"train.warmup_factor": "warmup_steps is 0"}),
        # sizes that are drawn from, where another scaling takes their place
        (
            "r50",
            ["data.min_size=[640, 800]", "data.augment.large_scale_jitter={}"],
            {"data.min_size": "evaluation uses only the last size"},
        ),
        (
            "r50",
            ["data.min_size=640", "data.augment.large_scale_jitter={}", "data.eval_size=800"],
            {"data.min_size": "evaluation uses data.eval_size"},
        ),
        (
            "r50",
            [
                "data.min_size=640",
                "data.augment.large_scale_jitter={}",
                "data.eval_size=800",
                "data.weak_last_epochs=1",
            ],
            {},
        ),
        ("r50", ["data.min_size=640", "data.augment.large_scale_jitter={}"], {}),
        ("r50", ["data.min_size=[640, 800]"], {}),
    ],
)
def test_what_nothing_uses(name, overrides, found):
    why = unused_options(load_config(name, overrides), overrides)
    assert set(why) == set(found)
    assert all(reason in why[key] for key, reason in found.items())


def test_old_names_of_the_command_line_count_as_current_ones():
    overrides = ["model.fcos.dcn_convs=2"]
    with pytest.warns(FutureWarning, match="dcn_convs is deprecated"):
        config = load_config("r50", overrides)
    assert unused_options(config, overrides) == {"model.fcos.num_dcn_convs": "model.detector is faster_rcnn"}


def test_a_pyramid_is_unused_by_detectors_without_one(monkeypatch):
    monkeypatch.setitem(DETECTORS, "fcos", replace(DETECTORS["fcos"], uses_fpn=False))
    overrides = ["model.fpn.out_channels=64"]
    config = load_config("fcos_r50", overrides)  # fcos_r50 sets the levels
    assert unused_options(config, overrides) == {"model.fpn.out_channels": "fcos has no feature pyramid"}
    assert unused_options(config) == {}


def test_unused_options_of_a_file_exclude_other_detectors_of_its_base(tmp_path):
    file = tmp_path / "mine.yaml"
    said = "model: {detector: fcos, backbone: {dcn_every: 3}, mask_rcnn: {mask_head_channels: 64}}"
    file.write_text(f"base: {find_config('r50.yaml')}\n{said}\n")
    assert set(unused_options(load_config(file))) == {"model.backbone.dcn_every"}


def test_unused_overrides_are_those_of_the_command_line():
    overrides = ["model.backbone.dcn_every=2", "model.fcos.score_threshold=0.5"]
    config = load_config("r50.yaml", overrides)
    assert set(unused_overrides(config, overrides[1:])) == {"model.fcos.score_threshold"}
    assert unused_overrides(config, []) == {}


def test_overrides_that_a_tool_does_not_read_are_unused():
    overrides = ["train.lr=0.1", "data.augment.horizontal_flip=0", "model.backbone.dcn_every=2"]
    config = load_config("r50.yaml", overrides)
    found = unused_overrides(config, overrides, lambda key: key.startswith("model."))
    assert found == {
        "train.lr": "this tool does not read it",
        "data.augment.horizontal_flip": "this tool does not read it",
        "model.backbone.dcn_every": "model.backbone.dcn_v2_stages is empty",
    }


def test_in_words():
    shown = describe_unused({"a.b": "c is empty", "d": "e"})
    assert shown == "these options have no effect:\n  - a.b: c is empty\n  - d: e"
