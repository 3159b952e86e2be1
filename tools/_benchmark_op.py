"""`benchmark.py op`: the deformable convolution alone, on the shapes of a ResNet-50."""

import argparse
import math
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import deform_conv2d as torchvision_deform_conv2d

from dcn import BACKENDS, deform_conv2d
from engine.comparison import peak_memory, time_interleaved
from engine.display import Progress, format_table

LEGEND = """\
fwd: forward; f+b: forward and backward; faster: speedup over torchvision; /conv2d: time relative to F.conv2d;
MB: peak memory without the inputs; ratio: memory relative to torchvision"""
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
        """Shape of input and output, `(B, C, H, W)`; images are padded to a multiple of 32, as in detection."""
        stride, channels = STAGES[self.stage]
        return self.batch, channels, *(math.ceil(n / 32) * 32 // stride for n in read_size(self.size))


def read_size(text: str) -> tuple[int, int]:
    """Read "HxW".

    Raises:
        ValueError: if the text has another form, or a side is below 32 pixels.
    """
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) >= 32 for part in parts):
        raise ValueError(f"an image size must be HxW with both sides at least 32, for example 800x1333, got {text!r}")
    return int(parts[0]), int(parts[1])


def choose_backends(names: list[str] | None, probe: Tensor) -> list[str]:
    """Return the backends to measure: the requested ones, or all available ones; print the unavailable ones.

    Raises:
        ValueError: if a requested backend does not exist or is not available.
    """
    for name in names or []:
        if name not in BACKENDS:
            raise ValueError(f"unknown DCN backend {name!r}, known: {', '.join(BACKENDS)}")
        if (reason := BACKENDS[name].unavailable_reason(probe)) is not None:
            raise ValueError(f"DCN backend {name!r} is not available: {reason}")
    for name, backend in BACKENDS.items():
        if not names and (reason := backend.unavailable_reason(probe)) is not None:
            print(f"skipped {name}: {reason}")
    return names or [name for name, backend in BACKENDS.items() if backend.unavailable_reason(probe) is None]


def benchmark_operator(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Check and time every backend on every shape; peak memory comes first, see `peak_memory`."""
    print(LEGEND)
    dtype = DTYPES[args.amp]
    backends = choose_backends(args.backends, torch.empty(0, dtype=dtype, device=device))
    names = [CONTROL, PEER, *(name for name in backends if name != PEER)]
    cases = [
        Case(*read) for size in args.sizes for read in ((size, n, stage) for n in args.batch_sizes for stage in STAGES)
    ]
    for case in cases:
        read_size(case.size)
    track = Progress().track

    memory = {
        (case, name, backward): peak_memory(prepare_call(case, name, device, dtype, backward=backward), device)
        for case in track(cases, "memory")
        for name in names
        for backward in (False, True)
    }
    wrong = {name: error for name in track(backends, "check") if (error := find_error(name, device, dtype))}
    for name, error in wrong.items():
        print(f"WRONG RESULTS of {name}: {error}; no speed is shown")

    rows = []
    for case in track(cases, "time"):
        tensors = make_tensors(case.shape, device, dtype)
        forward = time_interleaved(
            {name: bind(name, tensors, backward=False) for name in names}, rounds=args.rounds, device=device
        )
        both = time_interleaved(
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
    """Generate input, weight, offset, mask and output gradient of a 3x3 convolution that keeps the shape."""
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
    """Run the convolution of a backend, of torchvision, or the plain one as the control."""
    if name == CONTROL:
        return F.conv2d(input, weight.to(input.dtype), padding=1)
    if name == PEER:  # supports no half precision; under autocast it does this
        output = torchvision_deform_conv2d(input.float(), offset, weight, padding=1, mask=mask)
        return output.to(input.dtype)
    return deform_conv2d(input, offset, weight, padding=1, mask=mask, backend=name)


def bind(name: str, tensors: dict[str, Tensor], *, backward: bool) -> Callable[[], Any]:
    """Return the call to measure."""
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
    """Return the argument of `peak_memory`: it warms up on a small shape, then returns the call on the case's shape."""

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
                    f"{key} of {channels} channels differs by {error:.1e} relative to the largest value, "
                    f"tolerance {tolerance:.1e}"
                )
    return None


def show_operator(rows: list[dict[str, Any]]) -> None:
    """Print the table of one image size and batch."""
    header = ["stage", "shape", "backend"]
    for name in ("fwd", "f+b"):
        header += [f"{name} ms", "faster", "/conv2d"]
    header += ["fwd MB", "ratio", "f+b MB", "ratio"]
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
    """Return the ratio, or None if a value is missing."""
    return part / whole if part is not None and whole else None
