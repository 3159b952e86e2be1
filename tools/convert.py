"""Convert a checkpoint of mmdetection, detectron2, PaddleDetection, torchvision or another project."""

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

import _clone

# isort: split
import torch
from _arguments import add_json, add_overrides, current_spellings, make_parser, refuse_unused
from _outputs import check_outputs

from data.files import atomic_file, write_json, write_text
from engine.building import build_model
from engine.config import RunConfig, as_override, dump_config, flatten, load_config, read_overrides, with_overrides
from engine.converters import (
    INPUT_FORMATS,
    SOURCES,
    Converted,
    Source,
    SourceCheckpoint,
    check_anchors,
    check_supported,
    choose_classes,
    classes_of,
    convert_backbone,
    convert_detector,
    detect_source,
    doubt_about_input,
    infer_eps,
    infer_input_format,
    infer_norm,
    infer_stride_in_1x1,
    read_source_checkpoint,
    settings_table,
)
from engine.devices import git_revision
from engine.display import counted, format_table
from engine.runs import save_checkpoint

MASK_SCALE = 2.0  # default of a backbone, as in the config

EPILOG = """examples:
  python tools/convert.py faster_rcnn_r50_fpn_mdconv.pth weights/mdconv.pth                   # the backbone only
  python tools/train.py --config r50_dcn.yaml model.backbone.weights=weights/mdconv.pth
  python tools/convert.py model_final.pkl weights/d2.pt --config r50_dcn.yaml model.backbone.modulation=false
  python tools/eval.py weights/d2.pt

With --config the tool converts the whole detector, and writes its config next to OUT, here weights/d2.yaml.
docs/tools/convert.md describes the differences between the frameworks."""


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__, EPILOG)
    parser.add_argument("checkpoint", type=Path, metavar="SOURCE", help=".pth, .pt, .pkl or .pdparams file")
    parser.add_argument("out", type=Path, metavar="OUT", help="file to write; must not exist")
    parser.add_argument(
        "--config", metavar="C", help="YAML file of the same detector (without it: convert the backbone)"
    )
    parser.add_argument(
        "--source", choices=[*SOURCES], help="source of the checkpoint (default: detected from the parameter names)"
    )
    parser.add_argument(
        "--input-format",
        choices=[*INPUT_FORMATS],
        help="input of the source network after subtracting the mean: RGB or BGR divided by ImageNet's standard "
        "deviations, or BGR in 0..255 (default: as the file states, otherwise the framework's default)",
    )
    parser.add_argument(
        "--stride",
        choices=("1x1", "3x3"),
        help="convolution of a bottleneck that has the stride (default: 1x1 for BGR in 0..255 without groups and group "
        "norm, otherwise 3x3)",
    )
    parser.add_argument(
        "--bn-eps", type=float, metavar="X", help="epsilon of the batch norms (default: 1e-5; torchvision on COCO: 0)"
    )
    parser.add_argument(
        "--mask-scale", type=float, metavar="X", help="mask_scale of the converted backbone (default: 2)"
    )
    parser.add_argument(
        "--classes", type=Path, metavar="FILE", help="COCO annotation file, or a text file with one class per line"
    )
    add_json(parser, "the mapping of each tensor")
    parser.add_argument("--verbose", action="store_true", help="print the mapping of each tensor")
    add_overrides(parser, "model.backbone.modulation=false, with --config")
    args = parser.parse_intermixed_args(current_spellings("convert"))
    if not args.config:
        refuse_unused(args, "a detector needs --config", "key=value", "--classes")
    if args.out.suffix in (".yaml", ".yml"):
        parser.error(f"OUT must be a weights file, for example weights.pt, got {args.out}")
    if args.config:
        refuse_unused(args, "with --config, write model.backbone.mask_scale=...", "--mask-scale")
        refuse_unused(args, "with --config, write model.backbone.stride_in_1x1=...", "--stride")
    return args


def main() -> None:
    """Read, convert, write and report."""
    args = parse_arguments()
    check_arguments(args)
    checkpoint = read_source_checkpoint(args.checkpoint)
    source = detect_source(checkpoint.tensors, args.source)
    check_supported(checkpoint.tensors, source, whole=bool(args.config))
    input_format = args.input_format or infer_input_format(checkpoint, source)
    classes = classes_of(checkpoint.tensors, source)
    eps = infer_eps(checkpoint, source, classes) if args.bn_eps is None else args.bn_eps
    if args.config:
        converted, hints, stride_in_1x1 = write_detector(
            args, checkpoint, source, input_format=input_format, eps=eps, classes=classes
        )
    else:
        converted, hints, stride_in_1x1 = write_backbone(args, checkpoint, source, input_format=input_format, eps=eps)
    print(f"{args.checkpoint}: {source.title}, {counted(len(checkpoint.tensors), 'tensor')}\n")
    mask_scale = source.mask_scale if has_masks(converted) else None
    show(args, source, converted, settings_table(input_format, eps, mask_scale, stride_in_1x1=stride_in_1x1))
    print("\n" + "\n".join(hints))
    if checkpoint.unused:
        print(f"warning: the file contains more networks, which are not converted: {', '.join(checkpoint.unused)}")
    if doubt := doubt_about_input(converted.tensors, input_format):
        print(f"warning: {doubt}")


def check_arguments(args: argparse.Namespace) -> None:
    """Raise `ValueError` for values out of range and files that cannot be written, before the checkpoint is read."""
    for file in [args.out, args.out.with_suffix(".yaml")] if args.config else [args.out]:
        if file.exists():
            raise ValueError(f"{file} exists: remove it, or choose another OUT")
    yaml = args.out.with_suffix(".yaml") if args.config else None
    inputs = {"SOURCE": args.checkpoint, "--classes": args.classes, "--config": args.config and Path(args.config)}
    check_outputs({"OUT": args.out, "the config of OUT": yaml, "--json": args.json}, inputs)
    if args.mask_scale is not None and not 0 < args.mask_scale < float("inf"):
        raise ValueError(f"--mask-scale must be a positive number, got {args.mask_scale}")
    if args.bn_eps is not None and not 0 <= args.bn_eps < 1:
        raise ValueError(f"--bn-eps must be from 0 to below 1, got {args.bn_eps}")


def write_backbone(
    args: argparse.Namespace, checkpoint: SourceCheckpoint, source: Source, *, input_format: str, eps: float
) -> tuple[Converted, list[str], bool]:
    """Convert a backbone and write its state dict."""
    mask_scale = MASK_SCALE if args.mask_scale is None else args.mask_scale
    converted = convert_backbone(checkpoint.tensors, source, input_format=input_format, eps=eps, mask_scale=mask_scale)
    if not has_masks(converted):
        refuse_unused(args, f"{args.checkpoint} has no modulated deformable layers", "--mask-scale")
    with atomic_file(args.out) as file:
        torch.save(converted.tensors, file)
    weights = args.out if "/" in str(args.out) or args.out.suffix else f"./{args.out}"
    options = {key: value for key, value in converted.found.items() if value is not None}
    stride_in_1x1 = infer_stride_in_1x1(checkpoint, input_format) if args.stride is None else args.stride == "1x1"
    options |= {"stride_in_1x1": True} if stride_in_1x1 else {}
    options |= {"mask_scale": mask_scale} if has_masks(converted) else {}
    options |= {"norm": infer_norm(checkpoint), "weights": str(weights)}
    shown = [f"  {as_override(f'model.backbone.{key}', value)}" for key, value in options.items()]
    hints = [f"backbone: {args.out}; use it with", *shown]
    return converted, hints, stride_in_1x1


def write_detector(
    args: argparse.Namespace,
    checkpoint: SourceCheckpoint,
    source: Source,
    *,
    input_format: str,
    eps: float,
    classes: int | None,
) -> tuple[Converted, list[str], bool]:
    """Convert a whole detector and write its checkpoint and its config."""
    config = adapted(args, checkpoint, source, input_format)
    model = config.model
    if classes is None:
        raise ValueError(
            f"{args.checkpoint} of {source.title} does not contain the classifier of a known detector: omit --config "
            "to convert the backbone"
        )
    names, kept = choose_classes(checkpoint, source, classes, args.classes)
    detector, _ = build_model(model, config.data, len(names), pretrained=False)
    generator = getattr(getattr(detector, "rpn", detector), "anchor_generator", None)
    check_anchors(checkpoint.tensors, generator.cell_anchors if generator else [])
    converted = convert_detector(
        checkpoint.tensors,
        source,
        detector.state_dict(),
        input_format=input_format,
        eps=eps,
        mask_scale=model.backbone.mask_scale,
        kept=kept,
        ratios=len(getattr(getattr(model, model.detector), "aspect_ratios", [1.0])),
        asked=dict(flatten({"backbone": model.backbone.model_dump(), "fpn": model.fpn.model_dump()})),
    )
    detector.load_state_dict(converted.tensors)
    state = {
        "config": config.model_dump(mode="json"),
        "class_names": [*names.values()],
        "category_ids": [*names],
        "revision": git_revision(),
        "parameters": sum(parameter.numel() for parameter in detector.parameters()),
        "converted_from": source.title,
        "step": 0,
        "epoch": 0,
        "model": converted.tensors,
        # the other entries of a training checkpoint
        "ema": None,
        "optimizer": None,
        "metrics": None,
        "last_eval_step": None,
        "evals_without_improvement": 0,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(args.out, state)
    yaml = args.out.with_suffix(".yaml")
    write_text(yaml, dump_config(config))
    remaining = [f"  - {text}" for text in source.remaining(model.detector)]
    hints = [
        f"detector of {counted(len(names), 'class')}: {args.out}",
        f"config: {yaml}",
        *(["remaining differences:", *remaining] if remaining else []),
        f"evaluate: python tools/eval.py {args.out}",
    ]
    return converted, hints, model.backbone.stride_in_1x1


def adapted(args: argparse.Namespace, checkpoint: SourceCheckpoint, source: Source, input_format: str) -> RunConfig:
    """Read the config, and set the options that the source needs, unless the command line sets them."""
    config = load_config(args.config, args.overrides)
    model = config.model
    values: dict[str, Any] = {
        "model.backbone.norm": infer_norm(checkpoint),
        "model.backbone.weights": None,
        "model.backbone.stride_in_1x1": infer_stride_in_1x1(checkpoint, input_format),
    }
    own = getattr(model, model.detector)
    values |= {f"model.{model.detector}.{key}": value for key, value in source.options().items() if hasattr(own, key)}
    given = {key for key, _ in flatten(read_overrides(args.overrides, is_silent=True))}
    forced = [as_override(key, value) for key, value in values.items() if key not in given]
    return with_overrides(config.model_dump(mode="json"), forced, str(args.config))


def has_masks(converted: Converted) -> bool:
    """Whether there are layers of DCNv2."""
    return bool(converted.found.get("modulation"))


def show(args: argparse.Namespace, source: Source, converted: Converted, settings: Any) -> None:
    """Print how the tensors were mapped, and write it to a file if asked for."""
    entries = converted.entries
    if args.verbose:
        rows = [(entry.status, entry.source or "-", entry.ours or "-", entry.why) for entry in entries]
        print(format_table(("status", "source", "ours", "why"), rows) + "\n")
    counts = Counter((entry.status, part_of(entry.ours) if entry.ours else entry.why) for entry in entries)
    rows = [(status, what, number) for (status, what), number in counts.items()]
    rows.sort(key=lambda row: (row[0] != "mapped", row[0]))
    print(format_table(("status", "what", "tensors"), rows) + "\n")
    print(format_table(("assumed setting", "value"), settings))
    if args.json:
        totals = Counter(entry.status for entry in entries)
        lines = [entry._asdict() for entry in entries]
        write_json(
            args.json,
            {
                "source": source.title,
                "settings": dict(settings),
                "counts": {status: totals[status] for status in ("mapped", "new", "dropped")},
                "tensors": lines,
            },
        )


def part_of(key: str) -> str:
    """Return the part of the network that a parameter belongs to."""
    if ".conv_offset." in key:
        return "offsets and masks"
    parts = {"backbone.fpn": "pyramid", "backbone.": "backbone", "rpn": "RPN", "roi_heads": "RoI heads", "head": "head"}
    return next((part for start, part in parts.items() if key.startswith(start)), "backbone")


if __name__ == "__main__":
    _clone.run(main)
