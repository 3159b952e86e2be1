"""tools/convert.py: files of others to files that the other tools take."""

import copy
import json
import os
import pickle
import re
import sys

import pytest
import torch
import yaml

from engine.building.model import build_model
from engine.config.loading import load_config
from engine.inference.restored import restore_model
from engine.runs.checkpoint import load_checkpoint
from engine.weights.loading import load_trained
from models import load_backbone_weights, resnet

DCN = "model.backbone.dcn_v2_stages=[2]"
# our names to mmdetection's, in this order
RENAMED = {
    "backbone.body.": "backbone.",
    r"backbone.fpn.inner_blocks.(\d).0": r"neck.lateral_convs.\1.conv",
    r"backbone.fpn.layer_blocks.(\d).0": r"neck.fpn_convs.\1.conv",
    "rpn.head.conv.0.0": "rpn_head.rpn_conv",
    "rpn.head.cls_logits": "rpn_head.rpn_cls",
    "rpn.head.bbox_pred": "rpn_head.rpn_reg",
    "roi_heads.box_head.fc6": "roi_head.bbox_head.shared_fcs.0",
    "roi_heads.box_head.fc7": "roi_head.bbox_head.shared_fcs.1",
    "roi_heads.box_predictor.cls_score": "roi_head.bbox_head.fc_cls",
    "roi_heads.box_predictor.bbox_pred": "roi_head.bbox_head.fc_reg",
}


class Evil:
    def __reduce__(self):
        return os.system, ("touch was_here",)


@pytest.fixture(scope="module")
def detector(tiny_config):
    """A small detector with random numbers everywhere, whose masks are sigmoids, as mmdetection's are."""
    config = load_config(
        tiny_config,
        [
            DCN,
            "model.backbone.norm=frozen_bn",
            "model.backbone.mask_scale=1.0",
            "model.faster_rcnn={roi_aligned: true, anchors: exact}",
        ],
    )
    torch.manual_seed(0)
    model, _ = build_model(config.model, config.data, 5, pretrained=False)
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if value.dim() == 1:
                value += 0.1 * torch.rand_like(value)
            elif ".conv_offset." in key:
                value.normal_(std=0.02)
        # what nothing reads, which others have not
        model.roi_heads.box_predictor.bbox_pred.weight[:4] = 0
        model.roi_heads.box_predictor.bbox_pred.bias[:4] = 0
    return model.eval()


@pytest.fixture(scope="module")
def theirs(detector):
    """Its tensors as mmdetection has them."""
    state = {}
    for key, value in detector.state_dict().items():
        name = key
        for pattern, new in RENAMED.items():
            name = re.sub(f"^{pattern}", new, name)
        if "fc_cls" in name:
            value = value.roll(-1, 0)  # the background comes last
        if "fc_reg" in name:
            value = value[4:]
        state[name] = value
        if name.endswith("running_var"):
            state[name.replace("running_var", "num_batches_tracked")] = torch.tensor(3)
    return state


@pytest.fixture(scope="module")
def checkpoint(theirs, tmp_path_factory):
    file = tmp_path_factory.mktemp("theirs") / "epoch_12.pth"
    torch.save({"state_dict": theirs, "meta": {"epoch": 12, "config": "bgr_to_rgb=True"}}, file)
    return file


@pytest.fixture(scope="module")
def converted(run_tool, checkpoint, tiny_config, shapes, tmp_path_factory):
    """What the tool said, and the folder that it wrote into."""
    folder = tmp_path_factory.mktemp("ours")
    classes = ["--classes", shapes / "annotations/train.json"]
    report = ["--json", folder / "report.json"]
    result = run_tool("convert", checkpoint, folder / "new/ours.pt", "--config", tiny_config, *classes, *report, DCN)
    return result, folder


def test_a_detector_is_the_same_afterwards(converted, detector):
    (code, out, err), folder = converted
    assert (code, err) == (0, "")
    trained = load_trained(folder / "new/ours.pt")
    model = restore_model(trained)
    assert trained.config.model.backbone.mask_scale == 2.0  # the config's, to which the weights were folded
    assert trained.config.model.faster_rcnn.roi_aligned  # which the config does not say
    assert trained.config.model.faster_rcnn.anchors == "exact"
    assert trained.config.model.backbone.norm == "frozen_bn"  # where the config says gn
    picture = torch.rand(3, 64, 80, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():  # in float64, where rounding suppresses no other boxes
        (our,), (their,) = model.double()([picture]), copy.deepcopy(detector).double()([picture])
    assert len(their["boxes"]) > 5
    for name in ("boxes", "labels", "scores"):
        torch.testing.assert_close(our[name], their[name], rtol=1e-9, atol=1e-9)  # weights are halved, which is exact
    assert "detector of 5 classes" in out
    assert "anchors" not in out  # which are exact
    assert "P7" not in out  # of RetinaNet


def test_the_other_tools_take_it(converted, run_tool, shapes):
    _, folder = converted
    files = ["--config", folder / "new/ours.yaml", "--checkpoint", folder / "new/ours.pt"]
    code, out, err = run_tool("eval", *files, "--json", folder / "figures.json")
    assert (code, err) == (0, "")
    assert "(weights of step 0) on 6 images" in out
    assert "AP" in json.loads((folder / "figures.json").read_text())
    # training cannot resume from it
    code, _, err = run_tool(
        "train", "--config", folder / "new/ours.yaml", "--run-dir", folder / "run", "--resume", folder / "new/ours.pt"
    )
    assert code == 2
    assert "was converted from mmdetection and contains only weights" in err
    assert f"start a new run with model.weights={folder / 'new/ours.pt'}" in err


def test_a_training_starts_from_it(converted, run_tool, tmp_path):
    _, folder = converted
    weights, still = f"model.weights={folder / 'new/ours.pt'}", ["train.lr=1e-12", "train.weight_decay=0"]
    options = ["--config", folder / "new/ours.yaml", "--run-dir", tmp_path / "run", weights, *still]
    code, out, err = run_tool("train", *options, "train.max_steps=1", "train.eval_every_epochs=9")
    assert (code, err) == (0, "")
    assert f"initial weights from {folder / 'new/ours.pt'} (converted from mmdetection):" in out
    theirs, ours = (load_checkpoint(file)["model"] for file in (folder / "new/ours.pt", tmp_path / "run/last.pt"))
    assert theirs.keys() == ours.keys()
    for key, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[key], rtol=1e-5, atol=1e-6)
    # what the converted weights need and the config does not say
    code, _, err = run_tool(
        "train", *options[:2], "--run-dir", tmp_path / "b", weights, "model.faster_rcnn.roi_aligned=false"
    )
    assert code == 2
    assert "model.faster_rcnn.roi_aligned: True in the file, False in the config" in err


def test_options_of_the_command_line_stay_in_either_form(run_tool, checkpoint, tiny_config, shapes, tmp_path):
    """A mapping sets its keys, as dotted keys do."""
    given = ["model.faster_rcnn={anchors: torchvision, roi_sampling_ratio: 0}", "model.faster_rcnn.roi_aligned=false"]
    classes = ["--classes", shapes / "annotations/train.json"]
    code, _, err = run_tool("convert", checkpoint, tmp_path / "a.pt", "--config", tiny_config, *classes, DCN, *given)
    assert (code, err) == (0, "")
    heads = load_config(tmp_path / "a.yaml").model.faster_rcnn
    assert (heads.anchors, heads.roi_sampling_ratio, heads.roi_aligned) == ("torchvision", 0, False)


def test_the_report_names_each_tensor_once(converted, theirs, detector):
    (_, out, _), folder = converted
    report = json.loads((folder / "report.json").read_text())
    assert report["source"] == "mmdetection"
    assert sorted(line["source"] for line in report["tensors"] if line["source"]) == sorted(theirs)
    assert sorted(line["ours"] for line in report["tensors"] if line["ours"]) == sorted(detector.state_dict())
    counters = sum(name.endswith("num_batches_tracked") for name in theirs)
    assert report["counts"] == {"mapped": len(theirs) - counters, "new": 0, "dropped": counters}
    assert re.search(rf"^  dropped  batch norm counter +{counters}$", out, re.MULTILINE)
    assert re.search(r"^  mapped +offsets and masks +4$", out, re.MULTILINE)
    assert re.search(r"^  mask scale +1$", out, re.MULTILINE)
    assert re.search(r"^  stride of stages +in the 3x3 convolution$", out, re.MULTILINE)


def test_a_mask_scale_without_masks_is_an_error(run_tool, tmp_path):
    torch.save(resnet("resnet18").state_dict(), tmp_path / "plain.pth")
    code, _, err = run_tool("convert", "plain.pth", "ours.pth", "--mask-scale", 2, cwd=tmp_path)
    assert code == 2
    assert "--mask-scale has no effect: plain.pth has no modulated deformable layers" in err
    assert not (tmp_path / "ours.pth").exists()


def test_a_backbone_is_what_the_config_asks_for(run_tool, tmp_path):
    source = resnet("resnet18", dcn_v2_stages=[4], mask_scale=1.0, norm="bn")
    with torch.no_grad():
        for key, value in source.state_dict().items():
            if value.dtype.is_floating_point:
                value += 0.05 * torch.rand_like(value)
            if ".conv_offset." in key:
                value += 0.3
    state = {f"backbone.{key}": value for key, value in source.state_dict().items() if not key.startswith("fc.")}
    torch.save({"state_dict": state | {"neck.gn.weight": torch.zeros(3)}}, tmp_path / "theirs.pth")
    code, out, err = run_tool("convert", tmp_path / "theirs.pth", "ours.pth", "--verbose", cwd=tmp_path)
    assert (code, err) == (0, "")
    said = re.findall(r"^  model\.backbone\.(\S+)=(\S+)$", out, re.MULTILINE)
    options = {key: yaml.safe_load(value) for key, value in said}
    weights = options.pop("weights")
    assert options.pop("name") == "resnet18"
    network = resnet("resnet18", **options)
    assert (options["dcn_v2_stages"], options["mask_scale"], options["norm"]) == ([4], 2.0, "frozen_bn")
    report = load_backbone_weights(network, "resnet18", str(tmp_path / weights))
    assert {*report.new} == {"fc.weight", "fc.bias"}
    assert not report.dropped
    x = torch.rand(1, 3, 64, 96)
    for layer in (source, network):
        layer.fc = torch.nn.Identity()
        layer.eval()
    with torch.no_grad():
        torch.testing.assert_close(network(x), source(x), rtol=1e-4, atol=1e-4)
    lines = re.findall(r"^  (mapped|dropped) +(\S+\.\S+) ", out, re.MULTILINE)
    assert sorted(name for _, name in lines) == sorted([*state, "neck.gn.weight"])


def test_other_input_is_folded_and_reported(run_tool, tmp_path):
    state = resnet("resnet18", norm="bn").state_dict()
    torch.save(state, tmp_path / "theirs.pth")
    files = [tmp_path / "theirs.pth", tmp_path / "ours.pth"]
    code, out, _ = run_tool("convert", *files, "--input-format", "bgr", "--bn-eps", "0.001")
    assert code == 0
    assert re.search(r"^  input +BGR - mean, in 0\.\.255$", out, re.MULTILINE)
    ours = torch.load(tmp_path / "ours.pth", weights_only=True)
    factors = torch.tensor([58.395, 57.12, 57.375]).view(1, 3, 1, 1)  # deviations of red, green, blue
    torch.testing.assert_close(ours["conv1.weight"], state["conv1.weight"].flip(1) * factors)
    torch.testing.assert_close(ours["bn1.running_var"], state["bn1.running_var"] + 0.00099)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "{config}"], r"has 5 classes without names: add --classes"),
        (["--config", "{config}", "--classes", "missing.txt"], "class file missing.txt does not exist"),
        (
            ["--config", "{config}", "--classes", "{classes}"],
            r"differs from the config:\n  - model.backbone.dcn_v2_stages: \[\] in the config, \[2\] in the",
        ),
        (["--config", "{config}", "--classes", "{classes}", "model.fpn.levels=[2]"], "anchor_sizes"),
        (["--config", "missing.yaml"], "config missing.yaml does not exist"),
        (["--source", "detectron2"], "the detectron2 checkpoint does not contain a complete ResNet"),
        (["--mask-scale", "0"], "--mask-scale must be a positive number"),
        (["--bn-eps=-1e-5"], "--bn-eps must be from 0 to below 1, got -1e-05"),
        (["--json", "{classes}/x.json"], r"x\.json must be in a writable folder, got .*train\.json"),
        (["model.fpn.out_channels=3"], "a detector needs --config"),
        (["--config", "{config}", "--mask-scale", "1"], "write model.backbone.mask_scale=..."),
    ],
)
def test_errors_end_with_code_2_and_write_nothing(
    arguments, message, run_tool, checkpoint, tiny_config, shapes, tmp_path
):
    places = {"config": tiny_config, "classes": shapes / "annotations/train.json"}
    given = [argument.format(**places) for argument in arguments]
    code, out, err = run_tool("convert", checkpoint, "folder/ours.pt", *given, cwd=tmp_path)
    assert code == 2
    assert re.search(message, err), err
    assert "Traceback" not in err
    assert out == ""
    assert not [*tmp_path.iterdir()]


def test_weights_are_no_yaml(run_tool, checkpoint, tmp_path):
    code, _, err = run_tool("convert", checkpoint, tmp_path / "ours.yaml")
    assert code == 2
    assert "OUT must be a weights file" in err


@pytest.mark.parametrize("whole", [False, True])
def test_a_place_that_cannot_be_written_is_reported_before_the_work(run_tool, tiny_config, tmp_path, whole):
    # not even the checkpoint is looked for; a file, as root may write into any folder
    (tmp_path / "taken").write_text("precious")
    given = ["--config", tiny_config] if whole else []
    code, _, err = run_tool("convert", "missing.pth", "taken/deep/ours.pt", *given, cwd=tmp_path)
    place = tmp_path / "taken"
    message = f"OUT taken/deep/ours.pt must be in a writable folder, got {place}"
    assert (code, err) == (2, f"error: {message}\n")
    assert [*tmp_path.iterdir()] == [place]


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of the system")
def test_a_file_that_cannot_be_written_is_named_and_nothing_is_left(run_tool, tmp_path, small_files):
    torch.save(resnet("resnet18").state_dict(), tmp_path / "r18.pth")
    with small_files(20_000):
        code, out, err = run_tool("convert", "r18.pth", "ours.pt", cwd=tmp_path)
    assert (code, out, err) == (2, "", "error: [Errno 27] File too large: 'ours.pt'\n")
    assert [path.name for path in tmp_path.iterdir()] == ["r18.pth"]


def test_nothing_is_overwritten(run_tool, checkpoint, tiny_config, tmp_path):
    for name, arguments in (("ours.pt", []), ("ours.yaml", ["--config", tiny_config])):
        (tmp_path / name).write_text("precious")
        code, _, err = run_tool("convert", checkpoint, tmp_path / "ours.pt", *arguments)
        assert (code, err) == (2, f"error: {tmp_path / name} exists: remove it, or choose another OUT\n")
        assert (tmp_path / name).read_text() == "precious"
        (tmp_path / name).unlink()


def test_code_in_a_file_is_not_run(run_tool, tmp_path):
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"model": {"stem.conv1.weight": Evil()}}))
    code, _, err = run_tool("convert", "model.pkl", "ours.pth", cwd=tmp_path)
    assert code == 2
    assert err.startswith("error: checkpoint model.pkl cannot be read: it contains posix.system, but only arrays")
    assert [file.name for file in tmp_path.iterdir()] == ["model.pkl"]
