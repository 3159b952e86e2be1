"""Peak memory of training with one batch size, in a separate process: `python -m engine.building.batch_probe`.

A process that the system kills for its memory is then only a batch that does not fit. The input is a JSON object, the
output the peak in bytes: of the tensors on a GPU, or of the process on a CPU.
"""

import sys

import torch

from data import Batch
from data.json_file import parse_json

from ..config import check_config
from ..devices import peak_memory_gib, set_tf32
from .model import build_model
from .training import build_updater

STEPS = 2  # the optimizer has its state from the first one


def main() -> None:
    """Train on random images of the given size."""
    asked = parse_json(sys.stdin.buffer.read(), "the input")
    config = check_config(asked["config"], "the config")
    device = torch.device(asked["device"])
    set_tf32(config.train.tf32)
    torch.manual_seed(0)
    model, _ = build_model(config.model, config.data, asked["classes"], pretrained=False)
    updater = build_updater(config, model.to(device), steps_per_epoch=STEPS, device=device)
    height, width = asked["height"], asked["width"]
    count = asked["boxes"]
    corners = torch.rand(count, 2) * torch.tensor([width / 2, height / 2])
    target = {
        "boxes": torch.cat([corners, corners + torch.tensor([width / 4, height / 4])], dim=1),
        "labels": torch.randint(1, asked["classes"] + 1, (count,)),
        "image_id": 0,
        "seed": 0,
    }
    if config.model.spec.has_masks:
        target["masks"] = torch.ones(count, height, width, dtype=torch.uint8)
    images = [torch.randint(256, (asked["channels"], height, width), dtype=torch.uint8) for _ in range(asked["batch"])]
    for _ in range(STEPS):
        updater([Batch(images, [dict(target) for _ in images], 1.0, True, [])])
    sys.stdout.write(f"{int(peak_memory_gib(device) * 2**30)}\n")


if __name__ == "__main__":
    main()
