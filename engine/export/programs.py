"""Exported files: `torch.export` programs and ONNX."""

import json
import warnings
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from data.files import atomic_file
from data.json_file import parse_json

from .graphs import build_graph, min_image_side, num_channels, output_names
from .suppression import suppress, suppress_as_operator

# DeformConv was added in opset 19
MIN_OPSET = 19
# key of the metadata in the file
METADATA = "detector"
_METADATA_FILE = f"{METADATA}.json"
_NEEDS = ("onnx", "onnxscript", "onnxruntime")

Run = Callable[[Tensor], dict[str, Tensor]]


def check_requirements(path: Path, opset: int = MIN_OPSET) -> None:
    """Check that a file of this format can be written.

    Raises:
        ValueError: if the suffix or the opset is not supported, or packages are missing.
    """
    if path.suffix not in FORMATS:
        raise ValueError(f"the output file must end in {' or '.join(FORMATS)}, got {path}")
    if path.suffix != ".onnx":
        return
    missing = [name for name in _NEEDS if find_spec(name) is None]
    if missing:
        raise ValueError(f"ONNX needs {', '.join(missing)}: pip install -r requirements-export.txt")
    import onnx

    newest = onnx.defs.onnx_opset_version()
    if not MIN_OPSET <= opset <= newest:
        raise ValueError(
            f"the opset must be {MIN_OPSET}, the first with DeformConv, to {newest}, the newest that the "
            f"installed onnx knows, got {opset}"
        )


def export_to(
    path: Path, detector: str, model: nn.Module, metadata: dict[str, Any], *, opset: int = MIN_OPSET
) -> Counter[str]:
    """Write a detector to a `.onnx` or `.pt2` file, with dynamic batch size and image size.

    Note: both sides of the images must be at least `min_image_side`.

    Args:
        path: output file; the suffix selects the format.
        detector: name of the detector in `models.DETECTORS`.
        model: detector on the CPU.
        metadata: plain values, stored as JSON in the file.
        opset: ONNX opset version.

    Returns:
        Number of operators of each type.

    Raises:
        ValueError: if the suffix, the detector or the opset is not supported, or packages are missing.
        OSError: if the file cannot be written; it names the file.
    """
    check_requirements(path, opset)
    with atomic_file(path) as file:
        return FORMATS[path.suffix][0](file, detector, model, json.dumps(metadata), opset)


def load_exported(path: Path) -> tuple[Run, dict[str, Any]]:
    """Read an exported file.

    Returns:
        A function from images `(B, channels, H, W)` in [0, 1] to the outputs of `output_names`, and the metadata.
    """
    run, metadata = FORMATS[path.suffix][1](path)
    return run, parse_json(metadata.encode(), f"metadata of {path}")


def _trace(graph: nn.Module) -> ExportedProgram:
    """Export with dynamic sizes, and remove stack traces, which contain local paths."""
    least = min_image_side(graph.model)
    sizes = {0: Dim("batch", min=1), 2: Dim("height", min=least), 3: Dim("width", min=least)}
    # not 0 or 1, which the exporter specialises
    example = torch.rand(2, num_channels(graph.model), least + 31, least + 63)
    with warnings.catch_warnings():
        # deprecated calls inside torchvision and PyTorch's exporter
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        program = torch.export.export(graph, (example,), dynamic_shapes={"images": sizes})
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
    return program


def _write_program(file: BinaryIO, detector: str, model: nn.Module, metadata: str, opset: int) -> Counter[str]:
    program = _trace(build_graph(detector, model, suppress))
    torch.export.save(program, file, extra_files={_METADATA_FILE: metadata})
    return Counter(str(node.target) for node in program.graph.nodes if node.op == "call_function")


def _read_program(path: Path) -> tuple[Run, str]:
    extra = {_METADATA_FILE: ""}
    return torch.export.load(path, extra_files=extra).module(), extra[_METADATA_FILE]


def _write_onnx(file: BinaryIO, detector: str, model: nn.Module, metadata: str, opset: int) -> Counter[str]:
    import onnx

    from .translations import TRANSLATIONS

    program = _trace(build_graph(detector, model, suppress_as_operator))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            opset_version=opset,
            custom_translation_table=TRANSLATIONS,
            input_names=["images"],
            output_names=output_names(detector),
        )
    proto = exported.model_proto
    _tidy(proto)
    onnx.helper.set_model_props(proto, {METADATA: metadata})
    onnx.checker.check_model(proto)
    onnx.save(proto, file)
    return Counter(f"{node.domain}::{node.op_type}".removeprefix("::") for node in proto.graph.node)


def _tidy(proto: Any) -> None:
    """Name the dynamic dimensions, and remove the exporter's debug metadata, which contains local paths."""
    graph = proto.graph
    open_sizes = [(graph.input[0], {0: "batch", 2: "height", 3: "width"})]
    for value, names in open_sizes + [(value, {0: "batch"}) for value in graph.output]:
        for axis, name in names.items():
            value.type.tensor_type.shape.dim[axis].dim_param = name
    del graph.value_info[:], graph.metadata_props[:]
    for part in (*graph.input, *graph.output, *graph.node, *graph.initializer):
        del part.metadata_props[:]


def _read_onnx(path: Path) -> tuple[Run, str]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    metadata = session.get_modelmeta().custom_metadata_map[METADATA]

    def run(images: Tensor) -> dict[str, Tensor]:
        found = session.run(names, {"images": images.numpy()})
        return dict(zip(names, map(torch.from_numpy, found), strict=True))

    return run, metadata


# suffix -> functions that write and read the file
FORMATS = {".onnx": (_write_onnx, _read_onnx), ".pt2": (_write_program, _read_program)}
