"""A detector with another detector's weights computes the same for each matched class; errors."""

import copy
from functools import cache

import pytest
import torch
from torch import nn

from dcn import DeformConv2d
from engine.building.model import build_initialized_model, build_model
from engine.config.loading import load_config
from engine.config.options import ModelConfig, RunConfig
from engine.runs.checkpoint import Checkpoints
from engine.runs.folder import BEST, LAST
from engine.weights.transfer import Source, check_initial_weights, load_matching, read_source
from models import DETECTORS

SMALL = {
    "anchor_sizes": [16, 32, 64],
    "box_head_channels": 32,
    "mask_head_channels": 16,
    "rpn_pre_nms_top_n_test": 20,
    "rpn_post_nms_top_n_test": 20,
    "score_threshold": 0.0,
    "detections_per_image": 400,
}
THEIRS = ["nine", "ten", "jack", "queen"]
LAST_LAYERS = ("cls_score", "bbox_pred", "mask_fcn_logits", "cls_logits")
IMAGES = [torch.rand(3, 70, 90, generator=torch.Generator().manual_seed(0))]
DCN = "model.backbone.dcn_v2_stages=[2]"


def configured(config_file, detector, *overrides):
    """A small detector's config; each takes what it knows of `SMALL`."""
    section = {key: value for key, value in SMALL.items() if key in type(getattr(ModelConfig(), detector)).model_fields}
    options = [f"model.detector={detector}", f"model.{detector}={section}", "model.fpn.out_channels=64"]
    return load_config(config_file, [*options, *overrides])


def built(config, names, seed):
    return copy.deepcopy(_built(config.model_dump_json(), len(names), seed))


@cache
def _built(config, classes, seed):
    config = RunConfig.model_validate_json(config)
    torch.manual_seed(seed)
    return build_model(config.model, config.data, classes)[0].eval()


def source_of(config, names=THEIRS, seed=1):
    """A detector whose numbers all differ, its offsets too, and what it hands on."""
    model = built(config, names, seed)
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if tensor.is_floating_point() and (tensor.dim() == 1 or ".conv_offset." in key):
                tensor += 0.1 * torch.rand_like(tensor)
    tensors = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    return model, Source("there.pt", "weights of step 7", tensors, names, config.model_dump(mode="json"))


def start(config, source, names):
    """Return the detector with loaded weights, an equally initialised one without them, and the report."""
    model, fresh = (built(config, names, seed=2) for _ in range(2))
    return model, fresh, load_matching(model, source, names, config.model_dump(mode="json"))


@torch.inference_mode()
def detections(model):
    """In float64, where no rounding puts one before the other."""
    return copy.deepcopy(model).double()([image.double() for image in IMAGES])[0]


@torch.inference_mode()
def class_outputs(model) -> dict[str, torch.Tensor]:
    """Return the outputs of the last layers by label, `(labels, numbers)`, in torchvision's order."""
    layers = {
        name: module for name, module in model.named_modules() if name.endswith(LAST_LAYERS) and "rpn" not in name
    }
    found = {}
    for name, layer in layers.items():
        generator, kind = torch.Generator().manual_seed(3), name.rpartition(".")[2]
        size = (6, layer.in_features) if isinstance(layer, nn.Linear) else (2, layer.in_channels, 5, 7)
        outputs = layer(torch.randn(*size, generator=generator))
        if kind == "cls_logits":  # RetinaNetClassificationHead and FCOSClassificationHead: (N, anchors, labels, H, W)
            outputs = outputs.view(2, model.head.classification_head.num_anchors, -1, 5, 7).movedim(2, 0)
        elif kind == "bbox_pred":  # RoIHeads.postprocess_detections: (N, labels, 4); of a cascade one for all
            outputs = outputs.view(6, -1, 4).movedim(1, 0)
        else:
            outputs = outputs.movedim(1, 0)
        found[name] = outputs.flatten(1)
    return found


def test_the_same_classes_give_the_same_detections(detector, tiny_config):
    config = configured(tiny_config, detector, DCN)
    theirs, source = source_of(config)
    model, fresh, said = start(config, source, THEIRS)
    found, expected = detections(model), detections(theirs)
    assert len(expected["boxes"]) > 5
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert not torch.equal(detections(fresh)["scores"], expected["scores"])
    assert said.copied + said.copied_by_class == len(source.tensors)
    assert (said.matched_classes, said.new_classes, said.dropped_classes, said.new_offsets, said.options) == (
        THEIRS,
        [],
        [],
        0,
        [],
    )


@pytest.mark.parametrize(
    "names",
    [
        ["queen", "nine", "jack", "ten"],
        ["ten"],
        ["king", "jack", "Ten", "ace", "nine", "two"],
    ],
)
def test_classes_find_their_numbers_by_name(detector, names, tiny_config):
    config = configured(tiny_config, detector)
    theirs, source = source_of(config)
    model, fresh, said = start(config, source, names)
    there, here, drawn = map(class_outputs, (theirs, model, fresh))
    for part, numbers in here.items():
        if len(there[part]) == 1:  # boxes that are moved alike for all classes
            assert torch.equal(numbers, there[part]), part
            continue
        pairs = [(0, there[part][0])]
        for label, name in enumerate(names, 1):
            pairs.append((label, there[part][THEIRS.index(name) + 1] if name in THEIRS else drawn[part][label]))
        assert len(numbers) == len(pairs) == len(names) + 1
        for label, expected in pairs:
            torch.testing.assert_close(numbers[label], expected, rtol=1e-4, atol=1e-5)
    assert (said.matched_classes, said.new_classes) == (
        [n for n in names if n in THEIRS],
        [n for n in names if n not in THEIRS],
    )
    assert said.dropped_classes == [name for name in THEIRS if name not in names]
    assert said.similar_classes == ([("Ten", "ten")] if "Ten" in names else [])
    own = model.state_dict()  # what has nothing to do with classes came too
    assert said.copied == sum(torch.equal(own[key], tensor) for key, tensor in source.tensors.items()) > 40
    assert said.copied_by_class == len(own) - said.copied > 0


def test_another_order_of_classes_gives_the_same_objects(detector, tiny_config):
    config = configured(tiny_config, detector)
    theirs, source = source_of(config)
    names = ["queen", "nine", "jack", "ten"]
    model, _, _ = start(config, source, names)
    found, expected = detections(model), detections(theirs)
    assert len(expected["boxes"]) > 5
    assert len(expected["labels"].unique()) > 1
    assert [names[label - 1] for label in found["labels"]] == [THEIRS[label - 1] for label in expected["labels"]]
    for name in found.keys() - {"labels"}:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("modulation", [True, False])
@pytest.mark.parametrize("detector", ["mask_rcnn", "cascade_rcnn", "retinanet", "fcos"])
def test_a_plain_detector_continues_with_deformable_layers(detector, modulation, tiny_config):
    plain = configured(tiny_config, detector)
    theirs, source = source_of(plain)
    added = [DCN, f"model.backbone.modulation={str(modulation).lower()}", "model.dcn_backend=torch"]
    added += ["model.fcos.num_dcn_convs=1"] if detector == "fcos" else []
    model, _, said = start(configured(tiny_config, detector, *added), source, THEIRS)
    layers = [module for module in model.modules() if isinstance(module, DeformConv2d)]
    assert said.new_offsets == len(layers) == (4 if detector == "fcos" else 2)
    assert not any(layer.conv_offset.weight.any() or layer.conv_offset.bias.any() for layer in layers)
    assert said.copied + said.copied_by_class == len(source.tensors)
    assert ("model.backbone.dcn_v2_stages", [], [2]) in said.options
    found, expected = detections(model), detections(theirs)
    assert len(expected["boxes"]) > 5
    assert torch.equal(found["labels"], expected["labels"])
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=1e-6)


def test_the_original_is_not_changed_by_what_started_from_it(tiny_config):
    config = configured(tiny_config, "faster_rcnn")
    theirs, source = source_of(config)
    model, _, _ = start(config, source, ["ten", "ace"])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(torch.equal(source.tensors[key], tensor) for key, tensor in theirs.state_dict().items())


@pytest.mark.parametrize(("there", "here"), [("bn", "frozen_bn"), ("frozen_bn", "bn")])
def test_batch_norms_may_be_frozen_and_freed(there, here, tiny_config):
    """The one has counters of batches, the other none; the numbers in use are the same."""
    theirs, source = source_of(configured(tiny_config, "retinanet", f"model.backbone.norm={there}"))
    model, _, said = start(configured(tiny_config, "retinanet", f"model.backbone.norm={here}"), source, THEIRS)
    torch.testing.assert_close(detections(model), detections(theirs), rtol=1e-6, atol=1e-6)
    assert said.options == [("model.backbone.norm", there, here)]


def test_of_classes_that_stand_twice_each_has_its_own(tiny_config):
    config = configured(tiny_config, "faster_rcnn")
    theirs, source = source_of(config, ["cup", "box", "cup"])
    model, fresh, said = start(config, source, ["cup", "cup", "box", "cup"])
    there, here, drawn = (class_outputs(one)["roi_heads.box_predictor.cls_score"] for one in (theirs, model, fresh))
    torch.testing.assert_close(here, torch.cat([there[[0, 1, 3, 2]], drawn[4:]]))
    assert (said.matched_classes, said.new_classes, said.dropped_classes) == (["cup", "cup", "box"], ["cup"], [])


def refusal(config_file, theirs, ours, detectors=("faster_rcnn", "faster_rcnn"), names=THEIRS) -> list[str]:
    """The message, after a look that nothing was loaded."""
    _, source = source_of(configured(config_file, detectors[0], *theirs))
    config = configured(config_file, detectors[1], *ours)
    model, fresh = (built(config, names, seed=2) for _ in range(2))
    with pytest.raises(ValueError, match=r"there\.pt") as caught:
        load_matching(model, source, names, config.model_dump(mode="json"))
    for tensor, drawn in zip(model.state_dict().values(), fresh.state_dict().values(), strict=True):
        assert torch.equal(tensor, drawn)
    return str(caught.value).splitlines()


def test_the_error_about_shapes_lists_the_options(tiny_config):
    lines = refusal(tiny_config, ["model.fpn.out_channels=32"], [])
    assert lines == [
        "the weights of there.pt do not fit the config's detector:",
        "  - model.fpn.out_channels: 32 in the file, 64 in the config",
        "  - 13 tensors have other shapes:",
        "      backbone.fpn.inner_blocks.0.0.weight [32, 64, 1, 1] in the file, [64, 64, 1, 1] in the config",
        "      backbone.fpn.inner_blocks.0.0.bias [32] in the file, [64] in the config",
        "      backbone.fpn.inner_blocks.1.0.weight [32, 128, 1, 1] in the file, [64, 128, 1, 1] in the config",
        "      backbone.fpn.inner_blocks.1.0.bias [32] in the file, [64] in the config",
        "      backbone.fpn.layer_blocks.0.0.weight [32, 32, 3, 3] in the file, [64, 64, 3, 3] in the config",
        "      backbone.fpn.layer_blocks.0.0.bias [32] in the file, [64] in the config",
        "      backbone.fpn.layer_blocks.1.0.weight [32, 32, 3, 3] in the file, [64, 64, 3, 3] in the config",
        "      backbone.fpn.layer_blocks.1.0.bias [32] in the file, [64] in the config",
        "      and 5 more",
    ]


@pytest.mark.parametrize(
    ("detector", "option", "layer"),
    [
        ("faster_rcnn", "box_head_channels=16", "roi_heads.box_predictor.cls_score.weight"),
        ("retinanet", "scales_per_octave=2", "head.classification_head.cls_logits.weight"),
    ],
)
def test_layers_of_classes_may_differ_in_classes_alone(detector, option, layer, tiny_config):
    lines = refusal(tiny_config, [], [f"model.{detector}.{option}"], (detector, detector), ["ten", "ace"])
    assert lines[1].startswith(f"  - model.{detector}.{option.partition('=')[0]}: ")
    assert any(line.startswith(f"      {layer} [") for line in lines[3:])


def test_missing_tensors_are_an_error(tiny_config):
    lines = refusal(tiny_config, [], [], ("faster_rcnn", "mask_rcnn"))
    assert "  - model.detector: 'faster_rcnn' in the file, 'mask_rcnn' in the config" in lines
    at = lines.index("  - 12 tensors of the config's detector are missing in the file:")
    assert lines[at + 1] == "      roi_heads.mask_head.0.0.weight [16, 64, 3, 3] in the config"
    assert lines[at + 9 :] == ["      and 4 more"]


def test_unexpected_tensors_are_an_error(tiny_config):
    lines = refusal(tiny_config, [], [], ("mask_rcnn", "faster_rcnn"))
    at = lines.index("  - 12 tensors of the file are unexpected in the config's detector:")
    assert lines[at + 1] == "      roi_heads.mask_head.0.0.weight [16, 64, 3, 3] in the file"
    assert lines[at + 9 :] == ["      and 4 more"]


def test_deformable_layers_cannot_be_removed(tiny_config):
    lines = refusal(tiny_config, ["model.backbone.dcn_v2_stages=[1, 2]"], [DCN])
    assert "  - model.backbone.dcn_v2_stages: [1, 2] in the file, [2] in the config" in lines
    assert "  - 4 tensors of the file are unexpected in the config's detector:" in lines
    assert "      backbone.body.layer1.0.conv2.conv_offset.weight [27, 64, 3, 3] in the file" in lines
    assert lines[-1].startswith("Deformable layers can be added to a plain detector but not removed")


def test_other_offsets_have_other_shapes(tiny_config):
    lines = refusal(tiny_config, [DCN], [DCN, "model.backbone.modulation=false"])
    assert "  - model.backbone.modulation: True in the file, False in the config" in lines
    assert any(
        "conv_offset.weight [27, 128, 3, 3] in the file, [18, 128, 3, 3] in the config" in line for line in lines
    )


def test_group_norms_are_no_batch_norms(tiny_config):
    lines = refusal(tiny_config, [], ["model.backbone.norm=bn"])
    assert lines[1] == "  - model.backbone.norm: 'gn' in the file, 'bn' in the config"
    assert "      backbone.body.bn1.running_mean [64] in the config" in lines
    assert not any("num_batches_tracked" in line for line in lines)


@pytest.mark.parametrize(
    ("options", "key", "there", "here"),
    [
        (["model.backbone.stride_in_1x1={}"], "model.backbone.stride_in_1x1", False, True),
        (["model.faster_rcnn.roi_aligned={}"], "model.faster_rcnn.roi_aligned", True, False),
        (["model.faster_rcnn.roi_sampling_ratio={}"], "model.faster_rcnn.roi_sampling_ratio", 0, 2),
        (["model.faster_rcnn.anchors={}"], "model.faster_rcnn.anchors", "torchvision", "exact"),
        ([DCN, "model.backbone.mask_scale={}"], "model.backbone.mask_scale", 1.0, 2.0),
        (["model.fpn.extra_levels={}"], "model.fpn.extra_levels", "p6p7_from_c5", "p6p7"),
    ],
)
def test_options_that_change_the_meaning_of_weights_are_errors(options, key, there, here, tiny_config):
    """The pyramid of the last is as wide as its last stage, so that all shapes are the same."""
    common = []
    if "stride" in key:
        common = ["model.backbone.name=resnet50"]
    if "levels" in key:
        levels = "model.fpn={levels: [2, 3, 4, 5], out_channels: 512}"
        common = [levels, "model.faster_rcnn.anchor_sizes=[16, 24, 32, 48, 64, 96]"]
    theirs, ours = ([*common, *(option.format(str(value).lower()) for option in options)] for value in (there, here))
    assert refusal(tiny_config, theirs, ours) == [
        "with these options of the config, the weights of there.pt would compute something else:",
        f"  - {key}: {there!r} in the file, {here!r} in the config",
    ]


def test_a_mask_scale_without_masks_means_nothing(tiny_config):
    _, source = source_of(configured(tiny_config, "faster_rcnn"))
    _, _, said = start(configured(tiny_config, "faster_rcnn", "model.backbone.mask_scale=1.0"), source, THEIRS)
    assert said.options == [("model.backbone.mask_scale", 2.0, 1.0)]


def test_options_that_may_differ_are_reported(tiny_config):
    _, source = source_of(configured(tiny_config, "faster_rcnn"))
    options = ["model.faster_rcnn.anchor_sizes=[8, 16, 32]", "model.backbone.frozen_stages=1", "train.lr=1e-4"]
    options += ["model.faster_rcnn.score_threshold=0.1", "model.weights=there.pt"]
    _, _, said = start(configured(tiny_config, "faster_rcnn", *options), source, THEIRS)
    assert said.options == [
        ("model.backbone.frozen_stages", -1, 1),
        ("model.faster_rcnn.anchor_sizes", [16, 32, 64], [8, 16, 32]),
    ]


def saved(folder, config, name, step, **more):
    """A checkpoint with two sets of weights, as a run with an average leaves one."""
    raw, average = (built(config, THEIRS, seed).state_dict() for seed in (step, step + 1))
    state = {"step": step, "model": raw, "ema": None} | more
    if state["ema"] == "average":
        state["ema"] = {"model": average}
    about = {"config": config.model_dump(mode="json"), "class_names": THEIRS, "category_ids": [1, 2, 3, 4]}
    folder.mkdir(exist_ok=True)
    Checkpoints(folder, about).save(state, name)
    return raw, average


def assert_same(tensors, expected):
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[key], tensor) for key, tensor in expected.items())


def test_the_weights_are_those_that_a_run_was_evaluated_with(tiny_config, tmp_path):
    config = configured(tiny_config, "fcos")
    raw, _ = saved(tmp_path / "plain", config, LAST, 4)
    best, _ = saved(tmp_path / "plain", config, BEST, 2)
    _, average = saved(tmp_path / "averaged", config, LAST, 6, ema="average")
    _, _ = saved(tmp_path / "others", config, LAST, 0, converted_from="detectron2")
    for place, told, tensors in (
        ("plain", "weights of step 4", raw),
        ("plain/last.pt", "weights of step 4", raw),
        ("plain/best.pt", "weights of step 2", best),
        ("averaged", "averaged weights of step 6", average),
        ("others/last.pt", "converted from detectron2", None),
    ):
        source = read_source(str(tmp_path / place))
        assert (source.description, source.class_names) == (told, THEIRS)
        assert source.path == tmp_path / (place if place.endswith(".pt") else f"{place}/last.pt")
        assert source.config == config.model_dump(mode="json")
        if tensors is not None:
            assert_same(source.tensors, tensors)


def test_a_file_that_is_not_a_checkpoint_is_an_error(tiny_config, tmp_path):
    head = r"^model\.weights must name a checkpoint of tools/train\.py or of tools/convert\.py --config .*"
    with pytest.raises(ValueError, match=head + r"none\.pt does not exist"):
        read_source(str(tmp_path / "none.pt"))
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "resnet.pth")
    with pytest.raises(ValueError, match=head + r"resnet\.pth was not written by .*; it contains \['conv1\.weight'\]"):
        read_source(str(tmp_path / "resnet.pth"))
    saved(tmp_path / "run", configured(tiny_config, "fcos"), LAST, 1)
    content = bytearray((tmp_path / "run/last.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "run/last.pt").write_bytes(content)
    with pytest.raises(ValueError, match=head + r"last\.pt cannot be read: it is damaged"):
        read_source(str(tmp_path / "run"))


def test_two_files_of_initial_weights_are_an_error(tiny_config):
    both = ["model.weights=runs/a/best.pt", "model.backbone.weights=./r18.pth"]
    with pytest.raises(
        ValueError, match=r"model\.weights 'runs/a/best\.pt' contains .* got '\./r18\.pth': set one of them"
    ):
        check_initial_weights(load_config(tiny_config, both).model)
    for alone in (both[:1], both[1:], [], [both[0], "model.backbone.weights=IMAGENET1K_V1"]):
        check_initial_weights(load_config(tiny_config, alone).model)


def test_a_detector_that_starts_reads_no_weights_of_the_backbone(tiny_config):
    """Nothing is downloaded, and a file need not be there."""
    config = configured(tiny_config, "faster_rcnn", "model.backbone.weights=/nowhere/r18.pth")
    theirs, source = source_of(configured(tiny_config, "faster_rcnn"))
    model, said = build_initialized_model(config, THEIRS, source)
    assert_same(model.state_dict(), theirs.state_dict())
    assert model.training
    assert said.path == "there.pt"
    model, said = build_initialized_model(config, THEIRS, None, pretrained=False)
    assert said is None
    with pytest.raises(ValueError, match=r"/nowhere/r18\.pth does not exist"):
        build_initialized_model(config, THEIRS, None)


@pytest.fixture(params=DETECTORS)
def detector(request) -> str:
    """Each name of the table of detectors."""
    return request.param
