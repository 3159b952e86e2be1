"""Exported files detect what the detectors detect, in batches and images of other sizes than those of the export."""

import functools
import json
import subprocess
import sys

import onnx
import onnxruntime
import pytest
import torch

from dcn import DeformConv2d
from engine.export import (
    OUTPUTS,
    check_program,
    check_requirements,
    compare_detections,
    export_to,
    load_exported,
    output_names,
)
from engine.export import programs as module

METADATA = {"class_names": ["a", "b", "c", "ü"], "min_size": 64}
CASES = {  # file: opset; faster_rcnn and mask_rcnn go through the tool, in tests/tools/test_export.py
    "cascade_mask_rcnn.onnx": 19,
    "cascade_rcnn.pt2": 19,
    "mask_rcnn.pt2": 19,
    "fcos.onnx": 22,
}
OPTIONS = {"mask_rcnn.pt2": {"dcn_v2_stages": ()}}


@pytest.fixture(scope="module")
def blue(pictures):
    return pictures[0] * 0 + torch.tensor([0.0, 0, 1])[:, None, None]


@pytest.fixture(scope="module")
def exported(make_detector, choose_threshold, pictures, blue, tmp_path_factory):
    """`exported(name)`: the detector, its file and the operators in it; made once."""
    folder, made = tmp_path_factory.mktemp("exported"), {}

    def export(name):
        if name not in made:
            file = folder / name
            model = make_detector(file.stem, **OPTIONS.get(name, {}))
            if name == "mask_rcnn.pt2":  # nothing in blue, and something in the pictures
                choose_threshold(model, [blue, *pictures], some_at_most=0, some_at_least=20)
            made[name] = (model, file, export_to(file, file.stem, model, METADATA, opset=CASES[name]))
        return made[name]

    return export


@pytest.fixture(scope="module")
def loaded(exported):
    """`loaded(name)`: what `load_exported` gives; read once."""
    return functools.cache(lambda name: load_exported(exported(name)[1]))


def are_near(difference, images: int) -> bool:
    """Whether all is as near as `is_small` wants, but for two detections an image that rounding may decide."""
    return difference._replace(unmatched=0).is_small and difference.unmatched <= 2 * images


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_detects_what_the_detector_detects(name, exported, loaded, pictures):
    model, _, _ = exported(name)
    run, metadata = loaded(name)
    assert metadata == METADATA
    rows = check_program(model, run, [("", picture) for picture in pictures])
    assert [(row.size, row.images) for row in rows] == [((64, 90), 1), ((64, 90), 2), ((81, 64), 1), ((81, 64), 2)]
    assert all(row.difference.detections >= 10 * row.images for row in rows)
    assert all(are_near(row.difference, row.images) for row in rows), rows
    assert all((row.difference.mask is not None) == ("mask" in name) for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cascade_mask_rcnn.onnx", "fcos.onnx"])
def test_onnx_is_standard(name, exported):
    model, file, operators = exported(name)
    layers = {path for path, layer in model.named_modules() if isinstance(layer, DeformConv2d)}
    nodes = sum(1 + path.startswith("head") for path in layers)  # the head looks at 2 maps
    proto = onnx.load(file)
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", CASES[name])]
    assert not proto.functions
    assert not {node.domain for node in proto.graph.node} - {""}
    assert sum(node.op_type == "DeformConv" for node in proto.graph.node) == operators["DeformConv"] == nodes
    shapes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*proto.graph.input, *proto.graph.output)
    }
    masks = {"masks": ["batch", 40, 28, 28]} if "mask" in name else {}
    assert tuple(shapes) == ("images", *output_names(file.stem))
    assert shapes == masks | {
        "images": ["batch", 3, "height", "width"],
        "boxes": ["batch", 40, 4],
        "labels": ["batch", 40],
        "scores": ["batch", 40],
        "num_detections": ["batch"],
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_no_path_of_this_machine_goes_with_the_file(name, exported):
    content = exported(name)[1].read_bytes()
    assert module.__file__.encode() not in content
    assert b"site-packages" not in content


@pytest.mark.slow
def test_deformable_layers_keep_their_numbers(exported):
    nodes = [node for node in onnx.load(exported("fcos.onnx")[1]).graph.node if node.op_type == "DeformConv"]
    numbers = [{a.name: onnx.helper.get_attribute_value(a) for a in node.attribute} for node in nodes]
    # 3 in the backbone, and 2 in each tower of the head, on 2 maps
    assert [found["strides"] for found in numbers] == [[2, 2], *[[1, 1]] * (2 + 8)]
    assert all(found["offset_group"] == 2 and found["group"] == 1 for found in numbers)
    assert all(len([name for name in node.input if name]) <= 4 for node in nodes)  # DCNv1 has no mask


@pytest.mark.slow
def test_onnx_by_onnxruntime_alone(exported, pictures):
    """As a user of the file would run it."""
    model, file, _ = exported("cascade_mask_rcnn.onnx")
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["detector"]) == METADATA

    def run(images):
        found = session.run(list(output_names("cascade_mask_rcnn")), {"images": images.numpy()})
        return dict(zip(output_names("cascade_mask_rcnn"), map(torch.from_numpy, found), strict=True))

    rows = check_program(model, run, [("", pictures[0])])
    assert all(are_near(row.difference, row.images) for row in rows), rows


@pytest.mark.slow
def test_a_program_finds_nothing_in_one_image(loaded, pictures, blue):
    """And something in the other one of the batch."""
    run, _ = loaded("mask_rcnn.pt2")
    for images in ([blue], [blue, pictures[0]]):
        found = run(torch.stack(images))
        counts = found["num_detections"].tolist()
        assert found["masks"].shape == (len(images), 40, 28, 28)
        assert counts[0] == 0 < min([*counts[1:], 1])
        assert all(found["masks"][i].flatten(1).any(1).sum() == count for i, count in enumerate(counts))
        assert not any(values[0].any() for values in found.values())


@pytest.mark.slow
def test_onnx_finds_nothing(exported, pictures):
    """The file, with the threshold of scores raised."""
    proto = onnx.load(exported("cascade_mask_rcnn.onnx")[1])
    suppression = [node for node in proto.graph.node if node.op_type == "NonMaxSuppression"][-1]
    threshold = onnx.numpy_helper.from_array(torch.tensor([2.0]).numpy(), "above_all")
    proto.graph.initializer.append(threshold)
    suppression.input[4] = threshold.name
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for images in ([pictures[1]], [pictures[1], pictures[1].flip(-1)]):
        found = session.run(None, {"images": torch.stack(images).numpy()})
        assert found[-1].shape == (len(images), 40, 28, 28)
        assert not any(values.any() for values in found)


PROGRAM = """
import sys, torch, torchvision
images, found = torch.load("images.pt"), {}
program = torch.export.load(sys.argv[1])
torch.save(program.module()(images), "found.pt")
assert not {"dcn", "models", "engine"} & {*sys.modules}
"""


@pytest.mark.slow
def test_program_runs_without_the_project(exported, pictures, tmp_path):
    model, file, operators = exported("cascade_rcnn.pt2")
    assert operators["torchvision.deform_conv2d.default"] == 2
    images = torch.stack([pictures[1], pictures[1].flip(-1), pictures[1].roll(9, -1)])
    torch.save(images, tmp_path / "images.pt")
    subprocess.run([sys.executable, "-P", "-c", PROGRAM, str(file)], cwd=tmp_path, check=True)
    found = torch.load(tmp_path / "found.pt")
    assert tuple(found) == OUTPUTS
    with torch.inference_mode():
        for i, expected in enumerate(model(list(images))):
            count = found["num_detections"][i]
            difference = compare_detections(
                expected, {key: found[key][i, :count] for key in ("boxes", "labels", "scores")}
            )
            assert are_near(difference, 1), difference


@pytest.mark.parametrize(
    ("name", "opset", "message"),
    [
        ("a.onnx", 18, "the opset must be 19, the first with DeformConv, to .*, got 18"),
        ("a.onnx", 1000, "got 1000"),
        ("a.pt", 19, "must end in .onnx or .pt2, got a.pt"),
    ],
)
def test_errors(name, opset, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        export_to(module.Path(name), "faster_rcnn", torch.nn.Identity(), {}, opset=opset)
    assert not [*tmp_path.iterdir()]


def test_missing_packages_are_reported(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "find_spec", lambda name: None if name != "onnx" else True)
    with pytest.raises(
        ValueError, match=r"ONNX needs onnxscript, onnxruntime: pip install -r requirements-export\.txt"
    ):
        check_requirements(tmp_path / "a.onnx")
    check_requirements(tmp_path / "a.pt2")  # PyTorch alone does these
