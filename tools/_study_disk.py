"""What `tools/study.py` takes on the disk: told before it starts, and given back as its runs end."""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from data.synthetic import SHAPES
from engine.building import build_model
from engine.config import RunConfig
from engine.runs import BEST, LAST, step_files

# Copies of the weights that an optimizer keeps; of one that is not known yet, and refused later, as of adamw.
MOMENTS = {"sgd": 1, "adamw": 2}
# Of a run, beside its checkpoints: events with pictures, logs and detections.
OTHER_BYTES = 10_000_000
# Of a drawn picture: its noise cannot be compressed.
BYTES_PER_PIXEL = 3


def checkpoint_bytes(config: RunConfig) -> int:
    """Estimate a checkpoint of a run: weights, their average if there is one, and what the optimizer keeps."""
    model, _ = build_model(config.model, config.data, len(SHAPES), pretrained=False)
    weights = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    copies = 1 + MOMENTS.get(config.train.optimizer, max(MOMENTS.values())) + (config.train.ema_decay is not None)
    return copies * weights


def needed_bytes(checkpoints: Mapping[Path, tuple[int, int]], jobs: int) -> tuple[int, int]:
    """Give the bytes that trainings add to the disk while they last at most, and those of them that stay.

    A run that ended keeps one checkpoint. One under way has `train.keep_last`, the best, and one that is being written.

    Args:
        checkpoints: by folder, the bytes of one and `train.keep_last`; what lies there already is not counted again.
        jobs: trainings at a time.
    """
    there = sum(file.stat().st_size for folder in checkpoints for file in folder.glob("*.pt"))
    kept = sum(size + OTHER_BYTES for size, _ in checkpoints.values())
    beside = sorted((size * (keep + 1) for size, keep in checkpoints.values()), reverse=True)
    return max(0, kept + sum(beside[:jobs]) - there), kept


def check_space(needs: Iterable[tuple[Path, int]]) -> None:
    """Raise `ValueError` where a disk has less room than is needed.

    Args:
        needs: folders, which may not exist yet, and bytes to be written to each.
    """
    disks: dict[int, tuple[Path, int]] = {}
    for folder, size in needs:
        place = existing(folder)
        disk = place.stat().st_dev
        first, total = disks.get(disk, (folder, 0))
        disks[disk] = first, total + size
    for folder, total in disks.values():
        free = shutil.disk_usage(existing(folder)).free
        if free < total:
            raise ValueError(
                f"the disk of {folder} must have {total / 1e9:.2f} GB free for this study, and has {free / 1e9:.2f}: "
                "make room, or choose other folders by --out and --data, or fewer --seeds, --networks or --jobs"
            )


def existing(folder: Path) -> Path:
    """The folder itself, or the nearest above it that exists."""
    return next(place for place in (folder, *folder.absolute().parents) if place.exists())


def tidy(folder: Path) -> None:
    """Remove the checkpoints of a finished run but the last, which is all that a study reads."""
    if (folder / LAST).is_file():
        for file in (folder / BEST, *step_files(folder).values()):
            file.unlink(missing_ok=True)
