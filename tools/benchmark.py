"""Measure the speed of deformable convolution on this machine: the operator alone, or a whole training step."""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import _clone

# isort: split
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import deform_conv2d as torchvision_deform_conv2d

from dcn import BACKENDS, DeformConv2d, deform_conv2d
from engine.build import build_model, build_optimization
from engine.config_file import load_config
from engine.environment import describe, pick_device
from engine.measure import extra_memory, time_in_turns
from engine.precision import autocast
from engine.progress import Progress
from engine.tables import format_table

EPILOG = """examples:
  python tools/benchmark.py op
  python tools/benchmark.py op --sizes 800x1216 --batches 1 --backends torch torchvision --json op.json
  python tools/benchmark.py op --device cuda --amp bf16 --batches 16
  python tools/benchmark.py train
  python tools/benchmark.py train --config r101_dcn.yaml --size 800x1344 --device cuda --amp bf16
Times are medians of runs in turns. Let nothing else run meanwhile."""
LEGEND = """\
fwd: forward; f+b: forward and backward; faster: than torchvision's operator; /conv2d: over the time of F.conv2d;
MB: peak of memory beyond the inputs; share: of torchvision's"""
CONTROL, PEER = "F.conv2d", "torchvision"
# Stage of ResNet-50: stride and channels of its 3x3 convolutions.
STAGES = {"C3": (8, 128), "C4": (16, 256), "C5": (32, 512)}
OFFSET_PIXELS = 2.0  # standard deviation of the offsets
DTYPES = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DEFORMABLE = ("input", "weight", "offset", "mask")


class Case(NamedTuple):
    """One 3x3 convolution of a ResNet-50 on images of one size."""

    size: str
    batch: int
    stage: str

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of its input and output, `(B, C, H, W)`; images are padded to a multiple of 32, as in detection."""
        stride, channels = STAGES[self.stage]
        return self.batch, channels, *(math.ceil(n / 32) * 32 // stride for n in read_size(self.size))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--backends",
        nargs="+",
        metavar="NAME",
        help=f"of {', '.join(BACKENDS)} (default: all that can run here; train leaves out reference)",
    )
    common.add_argument("--device", default="auto", help='"auto", "cpu", "cuda", "cuda:1" (default: %(default)s)')
    common.add_argument("--amp", choices=DTYPES, default="off", help="mixed precision (default: %(default)s)")
    common.add_argument("--threads", type=positive, help="threads of the CPU (default: torch's choice)")
    common.add_argument("--json", type=Path, help="write all figures to this file")
    op = commands.add_parser(
        "op",
        parents=[common],
        help="the operator alone",
        description="Time the operator on the shapes of a ResNet-50, after a check that its results are right.",
    )
    op.add_argument(
        "--sizes",
        nargs="+",
        default=["800x1333", "512x512"],
        metavar="HxW",
        help="of the images (default: %(default)s)",
    )
    op.add_argument("--batches", nargs="+", type=positive, default=[1, 2], metavar="N", help="(default: %(default)s)")
    op.add_argument("--rounds", type=positive, default=7, help="turns of each candidate (default: %(default)s)")
    train = commands.add_parser(
        "train",
        parents=[common],
        help="a whole training step",
        description="Time a detector's training step, plain and with each backend, on random images and boxes.",
    )
    train.add_argument("--config", default="r50_dcn.yaml", help="with DCN stages (default: %(default)s)")
    train.add_argument("--size", default="512x512", metavar="HxW", help="of the images (default: %(default)s)")
    train.add_argument("--batch", type=positive, default=2, metavar="N", help="(default: %(default)s)")
    train.add_argument("--rounds", type=positive, default=5, help="turns of each candidate (default: %(default)s)")
    return parser.parse_args()


def positive(text: str) -> int:
    """Read a whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, got {text!r}")
    return int(text)


def read_size(text: str) -> tuple[int, int]:
    """Read "HxW".

    Raises:
        ValueError: if it is not of that form, or less than 32 pixels.
    """
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) >= 32 for part in parts):
        raise ValueError(f"an image size must be HxW with both from 32 on, as in 800x1333, got {text!r}")
    return int(parts[0]), int(parts[1])


def main() -> None:
    """Measure and show."""
    args = parse_arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = pick_device(args.device)
    figures = {"machine": describe(device), "amp": args.amp}
    print(f"{figures['machine']}; amp {args.amp}")
    if args.command == "op":
        print(LEGEND)
    figures |= benchmark_operator(args, device) if args.command == "op" else benchmark_step(args, device)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")
        print(f"\nfigures: {args.json}")


def choose_backends(names: list[str] | None, probe: Tensor) -> list[str]:
    """Backends to measure: those asked for, or all that can run; says which cannot, and why.

    Raises:
        ValueError: if one that was asked for does not exist or cannot run.
    """
    for name in names or []:
        if name not in BACKENDS:
            raise ValueError(f"unknown DCN backend {name!r}, known: {', '.join(BACKENDS)}")
        if (reason := BACKENDS[name].can_run(probe)) is not None:
            raise ValueError(f"DCN backend {name!r} cannot run here: {reason}")
    for name, backend in BACKENDS.items():
        if not names and (reason := backend.can_run(probe)) is not None:
            print(f"without {name}: {reason}")
    return names or [name for name, backend in BACKENDS.items() if backend.can_run(probe) is None]


# --- the operator alone


def benchmark_operator(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Check and time every backend on every shape; peak memory comes first, see `extra_memory`."""
    dtype = DTYPES[args.amp]
    backends = choose_backends(args.backends, torch.empty(0, dtype=dtype, device=device))
    names = [CONTROL, PEER, *(name for name in backends if name != PEER)]
    cases = [
        Case(*read) for size in args.sizes for read in ((size, n, stage) for n in args.batches for stage in STAGES)
    ]
    for case in cases:
        read_size(case.size)
    track = Progress().track

    memory = {
        (case, name, backward): extra_memory(prepare_call(case, name, device, dtype, backward=backward), device)
        for case in track(cases, "memory")
        for name in names
        for backward in (False, True)
    }
    wrong = {name: error for name in track(backends, "check") if (error := find_error(name, device, dtype))}
    for name, error in wrong.items():
        print(f"WRONG RESULTS of {name}: {error}; its speed is not shown")

    rows = []
    for case in track(cases, "time"):
        tensors = make_tensors(case.shape, device, dtype)
        forward = time_in_turns(
            {name: bind(name, tensors, backward=False) for name in names}, rounds=args.rounds, device=device
        )
        both = time_in_turns(
            {name: bind(name, tensors, backward=True) for name in names}, rounds=args.rounds, device=device
        )
        for name in names:
            if name in wrong:
                continue
            row: dict[str, Any] = dict(zip(("size", "batch", "stage", "backend"), (*case, name), strict=True))
            row["shape"] = "x".join(map(str, case.shape))
            for key, seconds, backward in (("forward", forward, False), ("step", both, True)):
                middle = median(seconds[name])
                row[f"{key}_ms"] = 1000 * middle
                row[f"{key}_speedup"] = median(seconds[PEER]) / middle
                row[f"{key}_over_conv2d"] = middle / median(seconds[CONTROL])
                row[f"{key}_memory_bytes"] = memory[case, name, backward]
                row[f"{key}_memory_ratio"] = divide(memory[case, name, backward], memory[case, PEER, backward])
            rows.append(row)
        if case.stage == list(STAGES)[-1]:
            show_operator([row for row in rows if (row["size"], row["batch"]) == case[:2]])
    if wrong:
        raise SystemExit(1)
    return {"offset_pixels": OFFSET_PIXELS, "rounds": args.rounds, "rows": rows}


def make_tensors(shape: tuple[int, int, int, int], device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Draw input, weight, offset, mask and the output's gradient of a 3x3 convolution that keeps the shape."""
    generator = torch.Generator(device).manual_seed(0)
    batch, channels, *size = shape

    def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)

    tensors = {
        "input": draw(*shape, dtype=dtype),
        "weight": draw(channels, channels, 3, 3).mul_((9 * channels) ** -0.5),
        "offset": draw(batch, 18, *size).mul_(OFFSET_PIXELS),
        "mask": draw(batch, 9, *size).sigmoid_(),
    }
    return {name: t.requires_grad_() for name, t in tensors.items()} | {"seed": draw(*shape, dtype=dtype)}


def compute(name: str, input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
    """Convolve by a backend, by torchvision's own function, or plainly as the control."""
    if name == CONTROL:
        return F.conv2d(input, weight.to(input.dtype), padding=1)
    if name == PEER:  # which knows no half precision; this is what it does under autocast
        output = torchvision_deform_conv2d(input.float(), offset, weight, padding=1, mask=mask)
        return output.to(input.dtype)
    return deform_conv2d(input, offset, weight, padding=1, mask=mask, backend=name)


def bind(name: str, tensors: dict[str, Tensor], *, backward: bool) -> Callable[[], Any]:
    """Make the call to measure."""
    arguments = {key: tensors[key] for key in DEFORMABLE}
    wanted = [tensors[key] for key in (DEFORMABLE[:2] if name == CONTROL else DEFORMABLE)]

    def forward() -> Tensor:
        with torch.no_grad():
            return compute(name, **arguments)

    def forward_and_backward() -> tuple[Tensor, ...]:
        return torch.autograd.grad(compute(name, **arguments), wanted, tensors["seed"])

    return forward_and_backward if backward else forward


def prepare_call(
    case: Case, name: str, device: torch.device, dtype: torch.dtype, *, backward: bool
) -> Callable[[], Callable[[], Any]]:
    """Make what `extra_memory` takes: warms up on a small shape, then gives the call on the case's."""

    def prepare() -> Callable[[], Any]:
        bind(name, make_tensors((1, 32, 8, 8), device, dtype), backward=backward)()
        return bind(name, make_tensors(case.shape, device, dtype), backward=backward)

    return prepare


def find_error(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Compare a backend's output and gradients with the reference in float64 on the CPU, for each stage's channels."""
    for _, channels in STAGES.values():
        tensors = make_tensors((2, channels, 13, 18), device, dtype)
        exact = {key: t.detach().double().cpu().requires_grad_() for key, t in tensors.items()}
        got = [compute(name, **{key: tensors[key] for key in DEFORMABLE}), *bind(name, tensors, backward=True)()]
        expected = deform_conv2d(
            exact["input"], exact["offset"], exact["weight"], padding=1, mask=exact["mask"], backend="reference"
        )
        expected = [expected, *torch.autograd.grad(expected, [exact[key] for key in DEFORMABLE], exact["seed"])]
        tolerance = 1e-4 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
        for key, a, b in zip(("output", *DEFORMABLE), got, expected, strict=True):
            error = ((a.detach().double().cpu() - b.detach()).abs().max() / b.detach().abs().max()).item()
            if not error <= tolerance:
                return (
                    f"{key} of {channels} channels is off by {error:.1e} of its largest number, allowed {tolerance:.1e}"
                )
    return None


def show_operator(rows: list[dict[str, Any]]) -> None:
    """Print the table of one image size and batch."""
    header = ["stage", "shape", "backend"]
    for name in ("fwd", "f+b"):
        header += [f"{name} ms", "faster", "/conv2d"]
    header += ["fwd MB", "share", "f+b MB", "share"]
    lines = []
    for row in rows:
        line = [row["stage"], row["shape"], row["backend"]]
        for key in ("forward", "step"):
            line += [f"{row[f'{key}_ms']:.1f}", f"{row[f'{key}_speedup']:.1f}x", f"{row[f'{key}_over_conv2d']:.1f}"]
        for key in ("forward", "step"):
            used, ratio = row[f"{key}_memory_bytes"], row[f"{key}_memory_ratio"]
            line += ["-", "-"] if used is None else [f"{used / 2**20:.0f}", "-" if ratio is None else f"{ratio:.2f}"]
        lines.append(line)
    print(f"\nimages {rows[0]['size']}, batch {rows[0]['batch']}")
    print(format_table(header, lines))


def divide(part: int | None, whole: int | None) -> float | None:
    """Ratio, None where a figure is missing."""
    return part / whole if part is not None and whole else None


# --- a training step


def benchmark_step(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Time the training step of a config's detector: without DCN, and with each backend."""
    height, width = read_size(args.size)
    overrides = [
        f"data.min_size={min(height, width)}",
        f"data.max_size={max(height, width)}",
        f"train.batch_size={args.batch}",
        "model.backbone.weights=null",
        "train.lr=1.0e-6",
    ]
    config = load_config(args.config, overrides)
    if not config.model.backbone.dcn_v2_stages:
        raise ValueError(f"{args.config} has no DCN stages to measure, choose one with model.backbone.dcn_v2_stages")
    backends = choose_backends(args.backends, torch.empty(0, dtype=DTYPES[args.amp], device=device))
    if not args.backends:
        backends.remove("reference")  # which would hold gigabytes
    plain = ["model.backbone.dcn_v2_stages=[]"]
    variants = {"plain": plain} | {f"DCN {name}": [f"model.dcn_backend={name}"] for name in backends}
    batch = make_batch(args.batch, (height, width), device)
    steps = {
        name: make_step(load_config(args.config, overrides + extra), batch, device, args.amp)
        for name, extra in Progress().track(variants.items(), "build")
    }
    seconds = time_in_turns(
        steps, rounds=args.rounds, device=device, track=lambda rounds: Progress().track(rounds, "time")
    )
    times = {name: median(values) for name, values in seconds.items()}
    peer = times.get(f"DCN {PEER}")
    rows = [
        {
            "model": name,
            "step_s": time,
            "images_per_s": args.batch / time,
            "over_plain": time / times["plain"],
            "speedup": None if peer is None or name == "plain" else peer / time,
        }
        for name, time in times.items()
    ]
    print(f"\n{args.config}, images {args.size}, batch {args.batch}")
    print(
        format_table(
            ("model", "step, s", "images/s", "over plain", "faster than torchvision"),
            [
                (
                    row["model"],
                    f"{row['step_s']:.3f}",
                    f"{row['images_per_s']:.2f}",
                    f"{row['over_plain']:.2f}",
                    "-" if row["speedup"] is None else f"{row['speedup']:.2f}x",
                )
                for row in rows
            ],
        )
    )
    return {"config": args.config, "size": args.size, "batch": args.batch, "rounds": args.rounds, "rows": rows}


def make_batch(count: int, size: tuple[int, int], device: torch.device) -> tuple[list[Tensor], list[dict]]:
    """Draw images of noise with eight boxes each."""
    generator = torch.Generator().manual_seed(0)
    height, width = size
    images, targets = [], []
    for _ in range(count):
        corners = torch.rand(8, 2, generator=generator) * torch.tensor([width, height]) / 2
        extents = (0.1 + 0.4 * torch.rand(8, 2, generator=generator)) * torch.tensor([width, height])
        images.append(torch.rand(3, height, width, generator=generator).to(device))
        targets.append(
            {
                "boxes": torch.cat((corners, corners + extents), dim=1).to(device),
                "labels": torch.randint(1, 81, (8,), generator=generator).to(device),
            }
        )
    return images, targets


def make_step(config: Any, batch: tuple[list[Tensor], list[dict]], device: torch.device, amp: str) -> Callable[[], Any]:
    """Build a detector with offsets away from zero, and give its training step."""
    torch.manual_seed(0)
    model, _ = build_model(config.model, config.data, 80, pretrained=False)
    for module in model.modules():
        if isinstance(module, DeformConv2d):
            nn.init.normal_(module.conv_offset.bias[: module.offset_channels], std=OFFSET_PIXELS)
    model.to(device).train()
    optimizer, _ = build_optimization(config.train, model, steps_per_epoch=1000)
    scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")
    images, targets = batch

    def step() -> None:
        optimizer.zero_grad()
        with autocast(device, amp):
            loss = sum(model(images, targets).values())
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


if __name__ == "__main__":
    _clone.run(main)
