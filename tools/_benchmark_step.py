"""`benchmark.py train`: a whole training step, plain and with each backend."""

import argparse
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from _benchmark_op import DTYPES, OFFSET_PIXELS, PEER, choose_backends, read_size
from torch import Tensor, nn
from torch.optim import Optimizer

from dcn import DeformConv2d
from engine.building import build_model, build_optimization, with_any_statistics
from engine.comparison import time_interleaved
from engine.config import RunConfig, load_config, options_that_deform
from engine.devices import autocast
from engine.display import Progress, format_table


def benchmark_step(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Time the training step of a config's detector: without DCN, and with each backend."""
    height, width = read_size(args.size)
    overrides = [
        f"data.min_size={min(height, width)}",
        f"data.max_size={max(height, width)}",
        f"train.batch_size={args.batch_size}",
        "model.backbone.weights=null",
        "train.lr=1.0e-6",
    ]
    config = load_config(args.config, overrides)
    if not config.model.backbone.dcn_v2_stages:
        raise ValueError(f"{args.config} has no deformable stages: set model.backbone.dcn_v2_stages")
    backends = choose_backends(args.backends, torch.empty(0, dtype=DTYPES[args.amp], device=device))
    if not args.backends:
        backends.remove("reference")  # it would need gigabytes
    plain = [f"{key}={value}" for key, value in options_that_deform().items()]
    variants = {"plain": plain} | {f"DCN {name}": [f"model.dcn_backend={name}"] for name in backends}
    channels = load_config(args.config, overrides).data.channels
    batch = make_batch(args.batch_size, (channels, height, width), device)
    steps = {
        name: make_step(load_config(args.config, overrides + extra), batch, device, args.amp)
        for name, extra in Progress().track(variants.items(), "build")
    }
    seconds = time_interleaved(
        steps, rounds=args.rounds, device=device, track=lambda rounds: Progress().track(rounds, "time")
    )
    times = {name: median(values) for name, values in seconds.items()}
    peer = times.get(f"DCN {PEER}")
    rows = [
        {
            "model": name,
            "step_s": time,
            "images_per_s": args.batch_size / time,
            "over_plain": time / times["plain"],
            "speedup": None if peer is None or name == "plain" else peer / time,
        }
        for name, time in times.items()
    ]
    print(f"\n{args.config}, images {args.size}, batch {args.batch_size}")
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
    return {"config": args.config, "size": args.size, "batch": args.batch_size, "rounds": args.rounds, "rows": rows}


def make_batch(count: int, size: tuple[int, int, int], device: torch.device) -> tuple[list[Tensor], list[dict]]:
    """Generate noise images of (channels, height, width) with eight boxes each."""
    generator = torch.Generator().manual_seed(0)
    _, height, width = size
    images, targets = [], []
    for _ in range(count):
        corners = torch.rand(8, 2, generator=generator) * torch.tensor([width, height]) / 2
        extents = (0.1 + 0.4 * torch.rand(8, 2, generator=generator)) * torch.tensor([width, height])
        images.append(torch.rand(size, generator=generator).to(device))
        targets.append(
            {
                "boxes": torch.cat((corners, corners + extents), dim=1).to(device),
                "labels": torch.randint(1, 81, (8,), generator=generator).to(device),
            }
        )
    return images, targets


def make_step(
    config: RunConfig, batch: tuple[list[Tensor], list[dict]], device: torch.device, amp: str
) -> Callable[[], Any]:
    """Build a detector with offsets away from zero, and return its training step."""
    torch.manual_seed(0)
    config = with_any_statistics(config)
    model, _ = build_model(config.model, config.data, 80, pretrained=False)
    for module in model.modules():
        if isinstance(module, DeformConv2d):
            nn.init.normal_(module.conv_offset.bias[: module.offset_channels], std=OFFSET_PIXELS)
    model.to(device).train()
    optimizer, _ = build_optimization(config, model, steps_per_epoch=1000)
    step = bare_step(model, optimizer, device, amp)
    return lambda: step(*batch)


def bare_step(
    model: nn.Module, optimizer: Optimizer, device: torch.device, amp: str
) -> Callable[[list[Tensor], list[dict]], Tensor]:
    """Return a function that runs forward, backward and the optimizer, and returns the loss."""
    scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")

    def step(images: list[Tensor], targets: list[dict]) -> Tensor:
        optimizer.zero_grad()
        with autocast(device, amp):
            loss = sum(model(images, targets).values())
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss.detach()

    return step
