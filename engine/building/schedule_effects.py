"""Options of the schedule that cannot take effect in a run of this length."""

from collections.abc import Iterator

from ..config import RunConfig, TrainConfig, changed_options
from ..display import counted
from ..training import warmup
from .training import images_in_step


def schedule_warnings(config: RunConfig, *, steps: int, epoch_steps: int, images: int, processes: int) -> list[str]:
    """Return warnings about a learning rate that is not the intended one, usually because the data set is small.

    Args:
        config: config of the run.
        steps: number of steps of the run.
        epoch_steps: number of steps of an epoch.
        images: number of training images.
        processes: number of processes that train together.
    """
    train, found = config.train, []
    if train.warmup_steps >= steps and train.warmup_factor < 1:
        reached = 100 * warmup(steps - 1, train.warmup_steps, train.warmup_factor)
        found.append(
            f"the warm-up of {counted(train.warmup_steps, 'step')} (train.warmup_steps) is not shorter than the run of "
            f"{counted(steps, 'step')}: the learning rate only reaches {reached:.3g} % of its value. Reduce "
            "train.warmup_steps, or train longer"
        )
    asked = images_in_step(train, processes)
    if asked > images:
        found.append(
            f"a step has {asked} images (train.batch_size x train.grad_accum_steps x processes), but the data set has "
            f"{counted(images, 'training image')}: every step is smaller, and the learning rate is for {asked} images"
        )
    return found


def options_beyond_run(config: RunConfig, *, steps: int, epoch_steps: int) -> dict[str, str]:
    """Return the reason for each option without effect, by dotted key; arguments as of `schedule_warnings`.

    Intervals count only if they differ from their default.
    """
    train, data, changed = config.train, config.data, changed_options(config)
    epochs = -(-steps // epoch_steps)
    length = f"the run has {counted(steps, 'step')} in {counted(epochs, 'epoch')}"
    why = dict(_schedule_beyond_run(train, steps, epoch_steps, length))
    evaluations = -(-steps // (epoch_steps * train.eval_every_epochs))
    if train.early_stopping_patience and train.early_stopping_patience > evaluations - 2:
        why["train.early_stopping_patience"] = (
            f"the run has {counted(evaluations, 'evaluation')}, and the first one always counts as better"
        )
    if train.max_steps and train.max_steps > train.epochs * epoch_steps:
        why["train.max_steps"] = f"train.epochs ends the run earlier, after {counted(steps, 'step')}"
    strong = train.epochs - data.weak_last_epochs
    if data.weak_last_epochs and strong <= 0:
        for key in data.augment.strong_keys:
            why[f"data.augment.{key}"] = f"data.weak_last_epochs {data.weak_last_epochs} covers all epochs"
    elif data.weak_last_epochs and strong * epoch_steps >= steps:
        why["data.weak_last_epochs"] = f"{length}, and the first {strong} of train.epochs are not weak"
    intervals = ("log_every_steps", "checkpoint_every_steps", "images_every_steps")
    for name, limit in {"eval_every_epochs": epochs, **dict.fromkeys(intervals, steps)}.items():
        if f"train.{name}" in changed and getattr(train, name) > limit:
            why[f"train.{name}"] = f"it is {getattr(train, name)}, and {length}"
    return why


def _schedule_beyond_run(train: TrainConfig, steps: int, epoch_steps: int, length: str) -> Iterator[tuple[str, str]]:
    """Yield options of the learning rate and of the EMA without effect, with the reason."""
    if train.lr_schedule == "step":
        unit_steps = epoch_steps if train.lr_schedule_unit == "epoch" else 1
        late = [f"{milestone:g}" for milestone in train.milestones if round(milestone * unit_steps) >= steps]
        if late:
            yield "train.milestones", f"{length}, and {', '.join(late)} ({train.lr_schedule_unit}) come after its end"
        elif train.milestones and train.gamma == 1:
            yield "train.milestones", "train.gamma is 1"
    elif train.lr_schedule_unit == "epoch" and steps <= epoch_steps:
        yield "train.lr_schedule", f"cosine changes the rate after each epoch, and {length}; set lr_schedule_unit=step"
    if train.warmup_steps and train.warmup_factor == 1:
        yield "train.warmup_steps", "train.warmup_factor is 1"
    if train.ema_decay:
        reached = round((10 * train.ema_decay - 1) / (1 - train.ema_decay))
        if reached >= steps:
            yield "train.ema_decay", f"the first {counted(reached, 'step')} use a smaller decay, and {length}"
