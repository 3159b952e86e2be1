"""Mean and standard deviation of the channels of images that are not RGB."""

from collections.abc import Mapping
from typing import Any

from data import CocoAnnotations
from data.channel_statistics import ChannelStatistics, measure_channels
from models.detectors import RGB

from ..config import DataConfig, RunConfig
from ..display import Progress, counted


def statistics_of(
    data: DataConfig, train: CocoAnnotations, saved: Mapping[str, Any], progress: Progress
) -> ChannelStatistics | None:
    """Return the mean and standard deviation that a config leaves open, None if it does not.

    Args:
        data: options of the data set.
        train: training split, whose images are measured.
        saved: options of the data set in the checkpoint that a run resumes from, empty for a new run. Its numbers are
            used, because its weights belong to them.
        progress: progress display.

    Raises:
        ValueError: if an image cannot be read, or a channel is constant.
    """
    if data.channels == RGB or data.mean is not None:
        return None
    return saved_statistics(data, saved) or measure_channels(
        train,
        skip_unreadable=data.on_unreadable_image == "skip",
        progress=lambda items: progress.track(items, "measure channels"),
    )


def saved_statistics(data: DataConfig, saved: Mapping[str, Any]) -> ChannelStatistics | None:
    """Return the mean and standard deviation of a checkpoint for a config that leaves them open; otherwise None."""
    is_open = data.channels != RGB and data.mean is None
    if is_open and saved.get("channels") == data.channels and saved.get("mean") and saved.get("std"):
        return ChannelStatistics(saved["mean"], saved["std"], 0)
    return None


def with_statistics(config: RunConfig, statistics: ChannelStatistics | None) -> RunConfig:
    """Return a config with the result of `statistics_of`."""
    if statistics is None:
        return config
    data = config.data.model_copy(update={"mean": statistics.mean, "std": statistics.std})
    return config.model_copy(update={"data": data})


def with_any_statistics(config: RunConfig) -> RunConfig:
    """Return a config whose open mean and standard deviation have any values, to measure times."""
    count = config.data.channels
    is_open = count != RGB and config.data.mean is None
    return with_statistics(config, ChannelStatistics([0.5] * count, [0.25] * count, 0) if is_open else None)


def describe_channels(config: RunConfig, measured: int) -> str | None:
    """Describe the channels and their normalisation, None for RGB.

    Args:
        config: config with mean and standard deviation.
        measured: number of images that they were measured on, 0 if they were given.
    """
    data = config.data
    if data.channels == RGB:
        return None
    origin = f"measured on {counted(measured, 'training image')}" if measured else "as given"
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (data.mean, data.std))
    return f"{counted(data.channels, 'channel')}: mean {mean}; standard deviation {std} ({origin})"
