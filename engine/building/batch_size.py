"""The number for `train.batch_size: auto`: the largest batch that fits, measured in separate processes."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data import CocoAnnotations
from models import build_resize

from ..config import RunConfig, check_config
from ..devices import available_memory
from ..display import counted
from ..distributed import DistributedContext
from ..training import GIB, largest_batch

AUTO = "auto"
MOST_ON_GPU, MOST_ON_CPU = 64, 16
# An epoch has at least this many steps.
MIN_STEPS = 4
ROOT = Path(__file__).resolve().parents[2]
_MEMORY_ERRORS = ("out of memory", "OutOfMemoryError", "can't allocate memory", "MemoryError")


def with_batch_size(config: RunConfig, size: int) -> RunConfig:
    """Return a config with a number as `train.batch_size`."""
    values = config.model_dump(mode="json")
    values["train"]["batch_size"] = size
    return check_config(values, "the config")


def choose_batch_size(
    config: RunConfig,
    train: CocoAnnotations,
    state: Mapping[str, Any] | None,
    *,
    device: torch.device,
    distributed: DistributedContext,
) -> tuple[int, str]:
    """Return the images per batch for `train.batch_size: auto`, and the reason, in all processes.

    A resumed run keeps the number of its checkpoint. Otherwise it is the smallest number of all processes.

    Raises:
        ValueError: if a batch of one image does not fit, or cannot be trained on.
    """
    if state is not None:
        size = state["config"]["train"]["batch_size"]
        return size, f"batch size {size}: that of the checkpoint"
    with distributed.raise_together():
        height, width = largest_image(config, train)
        counts = train.arrays.counts
        asked = {
            "device": str(device),
            "classes": len(train.class_names),
            "channels": config.data.channels,
            "height": height,
            "width": width,
            "boxes": int(counts.max()),
        }
        most = MOST_ON_CPU if device.type == "cpu" else MOST_ON_GPU
        used = int((counts > 0).sum())
        most = max(1, min(most, used // (MIN_STEPS * config.train.grad_accum_steps * distributed.size)))
        memory = available_memory(device) // (distributed.local_size if device.type == "cpu" else 1)
        found = largest_batch(lambda size: _peak(config, asked, size), memory, most)
    size = min(distributed.gather(found.size))
    reason = f"largest that fits {memory / GIB:.1f} GiB" if size < most else f"the maximum for {used:,} training images"
    fixed = "" if config.train.base_batch_size else ". train.lr does not follow: train.base_batch_size is null"
    return size, (
        f"batch size {size}: {reason} (measured {found.fixed / GIB:.1f} GiB + {found.per_image / GIB:.2f} GiB per "
        f"image of {width} x {height} pixels with {counted(asked['boxes'], 'box')}){fixed}"
    )


def largest_image(config: RunConfig, train: CocoAnnotations) -> tuple[int, int]:
    """Return (height, width) of the largest padded batch of resized training images; wide and tall ones are apart."""
    resize = build_resize(config.model.spec, config.data.model_dump())
    largest = max(resize.sizes)
    if jitter := config.data.augment.large_scale_jitter:
        return jitter.size, jitter.size
    if resize.kind != "shortest":
        return largest, largest
    sizes = train.arrays.sizes[train.arrays.sizes.min(axis=1) > 0]
    if not len(sizes):  # the annotation file has no sizes
        return largest, resize.max_size
    scale = np.minimum(largest / sizes.min(axis=1), resize.max_size / sizes.max(axis=1))
    scaled = np.ceil(sizes * scale[:, None]).astype(int)
    is_wide = scaled[:, 0] >= scaled[:, 1]
    batches = [scaled[group].max(axis=0) for group in (is_wide, ~is_wide) if group.any()]
    width, height = max(batches, key=np.prod).tolist()
    return height, width


def _peak(config: RunConfig, asked: dict[str, Any], size: int) -> int | None:
    """Return the peak bytes of a batch, or None if memory was not sufficient."""
    values = with_batch_size(config, size).model_dump(mode="json")
    done = subprocess.run(
        [sys.executable, "-m", "engine.building.batch_probe"],
        input=json.dumps(asked | {"config": values, "batch": size}),
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    if done.returncode == 0:
        return int(done.stdout.split()[-1])
    if done.returncode == -9 or any(word in done.stderr for word in _MEMORY_ERRORS):
        return None
    reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    raise ValueError(f"train.batch_size auto: a batch of {size} cannot be trained on: {reason}")
