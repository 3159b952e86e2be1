"""A trainer of the tiny config, put together without the tools."""

import pytest
import torch

from engine.board import Board
from engine.build import build_eval_loader, build_model, build_optimization, build_train_loader, read_split
from engine.checkpoint import save_checkpoint
from engine.config_file import load_config
from engine.evaluator import evaluate
from engine.preemption import StopRequest
from engine.progress import Progress
from engine.trainer import Cadence, Trainer


@pytest.fixture
def make_trainer(tiny_config):
    """`make_trainer(folder, *overrides)`: a trainer that logs and saves into `folder`; `parts` replace its own."""
    boards = []

    def make(folder, *overrides, start=0, **parts) -> Trainer:
        config = load_config(tiny_config, overrides)
        settings = config.train
        train, val = (read_split(config.data, split) for split in ("train", "val"))
        torch.manual_seed(config.seed)
        model, _ = build_model(config.model, config.data, len(train.class_names))
        loader = build_train_loader(config, train, pin_memory=False)
        eval_loader = build_eval_loader(config, val, pin_memory=False)
        optimizer, schedule = build_optimization(settings, model, steps_per_epoch=len(loader))
        device = torch.device("cpu")
        folder.mkdir(parents=True, exist_ok=True)
        boards.append(Board(folder, start))
        defaults = {
            "device": device,
            "epochs": settings.epochs,
            "max_steps": settings.max_steps,
            "amp": settings.amp,
            "clip_norm": settings.clip_norm,
            "cadence": Cadence(
                settings.log_every, settings.checkpoint_every, settings.eval_every, settings.picture_every
            ),
            "evaluate": lambda: evaluate(model, eval_loader, val.category_ids, val.raw, device=device),
            "draw": lambda: torch.zeros(3, 4, 4, dtype=torch.uint8),
            "save": lambda state, name: save_checkpoint(folder / name, state),
            "board": boards[-1],
            "progress": Progress(),
            "stop": StopRequest(),
        }
        return Trainer(model, optimizer, schedule, loader, **(defaults | parts))

    yield make
    for board in boards:
        board.close()
