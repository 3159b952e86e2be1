"""Inference cost of a detector: time and memory per image."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..devices import autocast, to_device
from .timing import peak_memory, time_interleaved

ROUNDS = 10


@torch.inference_mode()
def time_inference(
    models: Mapping[str, nn.Module],
    images: Sequence[Tensor],
    *,
    device: torch.device,
    amps: Mapping[str, str],
    rounds: int = ROUNDS,
    track: Callable[[Iterable], Iterable] = iter,
) -> dict[str, list[float]]:
    """Time detectors in interleaved rounds on the same images, one image at a time.

    Args:
        models: detectors by name, in eval mode; moved to `device`.
        images: `(channels, h, w)`, see `to_device`.
        device: device to run on.
        amps: mixed precision of each detector, see `autocast`.
        rounds: number of rounds.
        track: wraps the iteration over the rounds.

    Returns:
        Seconds per image of every round, averaged over the images.
    """
    inputs, _ = to_device(list(images), [], device)

    def pass_over(model: nn.Module, amp: str) -> None:
        with torch.inference_mode(), autocast(device, amp):
            for image in inputs:
                model([image])

    placed = {name: model.to(device) for name, model in models.items()}
    calls = {name: lambda model=model, amp=amps[name]: pass_over(model, amp) for name, model in placed.items()}
    seconds = time_interleaved(calls, rounds=rounds, device=device, turn_s=1e-9, track=track)
    return {name: [value / len(inputs) for value in values] for name, values in seconds.items()}


def inference_memory(
    models: Mapping[str, nn.Module], image: Tensor, *, device: torch.device, amps: Mapping[str, str]
) -> dict[str, int]:
    """Measure the peak GPU memory of detectors for one image in bytes, without the weights.

    Args:
        models: detectors by name, in eval mode, on `device`.
        image: `(channels, h, w)`, see `to_device`.
        device: device to run on.
        amps: mixed precision of each detector, see `autocast`.

    Returns:
        Bytes by name; empty if the device is not a GPU.
    """
    if device.type != "cuda":
        return {}
    inputs, _ = to_device([image], [], device)
    found = {}
    for name, model in models.items():
        with torch.inference_mode(), autocast(device, amps[name]):
            model(inputs)  # one-time set-up, such as kernels, does not count
            found[name] = peak_memory(lambda model=model: lambda: model(inputs), device)
    return found
