"""What is logged of a run: TensorBoard events, and the same scalars in metrics.jsonl."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

METRICS_FILE = "metrics.jsonl"


class Board:
    """Writes scalars, pictures and texts of a run into its folder.

    Tags are the same in every run, so that TensorBoard lays runs over each other: `train/loss`, `train/loss_*`,
    `train/grad_norm`, `lr/<group>`, `time/{step_s,data_s,compute_s,images_per_s}`, `memory/peak_gib`,
    `val/<COCO figure>`, `val_per_class/<name>`.

    Args:
        folder: run folder.
        step: step that the run starts or goes on from; what was logged after it is removed.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        self._metrics = _reopen(folder / METRICS_FILE, step)
        self._writer = SummaryWriter(folder, purge_step=step + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log scalars by tag; one that is not finite becomes null in metrics.jsonl and is left out of TensorBoard."""
        finite = {tag: float(value) for tag, value in values.items() if math.isfinite(value)}
        for tag, value in finite.items():
            self._writer.add_scalar(tag, value, step)
        self._metrics.write(json.dumps({"step": step, **{tag: finite.get(tag) for tag in values}}) + "\n")
        self._metrics.flush()

    def picture(self, step: int, tag: str, image: Tensor) -> None:
        """Log a picture, `(3, H, W)` uint8."""
        self._writer.add_image(tag, image, step)
        self._writer.flush()

    def text(self, tag: str, text: str) -> None:
        """Log a text, shown in a fixed-width face."""
        self._writer.add_text(tag, "\n".join(f"    {line}" for line in text.splitlines()))

    def outcome(self, options: Mapping[str, Any], figures: Mapping[str, float]) -> None:
        """Log the options of a run for TensorBoard's hparams table, beside the final `val/<COCO figure>`."""
        shown = {
            key: value if isinstance(value, bool | int | float | str) else json.dumps(value)
            for key, value in options.items()
        }
        finite = {f"val/{name}": value for name, value in figures.items() if math.isfinite(value)}
        for summary in hparams(shown, finite):  # names the metrics; TensorBoard takes their values from the scalars
            self._writer.file_writer.add_summary(summary)
        self._writer.flush()

    def close(self) -> None:
        """Write out everything."""
        self._writer.close()
        self._metrics.close()


def _reopen(path: Path, step: int):
    """Open metrics.jsonl for appending, without what a run that was cut off wrote after `step`."""
    kept = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except ValueError:
                break  # the last line of a run that was killed
    if step == 0:
        kept = []
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    partial.replace(path)
    return path.open("a", encoding="utf-8")
