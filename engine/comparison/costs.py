"""What a detector costs at inference: time and memory for an image, each measured fairly."""

import multiprocessing
from collections.abc import Callable, Iterable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..devices import autocast, to_device
from ..inference import restore_model
from ..runs import LAST
from ..weights import load_trained
from .measure import extra_memory, time_in_turns

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
    """Time detectors in turns on the same images, one image at a time.

    Args:
        models: by name, in eval mode; on `device` afterwards.
        images: uint8 `(3, h, w)`.
        device: to run on.
        amps: mixed precision of each, see `autocast`.
        rounds: turns of each.
        track: wraps the iteration over the rounds.

    Returns:
        Seconds for an image, means over the images, of every round.
    """
    inputs, _ = to_device(list(images), [], device)

    def pass_over(model: nn.Module, amp: str) -> None:
        with torch.inference_mode(), autocast(device, amp):
            for image in inputs:
                model([image])

    placed = {name: model.to(device) for name, model in models.items()}
    calls = {name: lambda model=model, amp=amps[name]: pass_over(model, amp) for name, model in placed.items()}
    seconds = time_in_turns(calls, rounds=rounds, device=device, turn_s=1e-9, track=track)
    return {name: [value / len(inputs) for value in values] for name, values in seconds.items()}


def inference_memory(
    folders: Mapping[str, Path], image: Tensor, *, device: torch.device, overrides: Sequence[str] = ()
) -> dict[str, int | None]:
    """Measure the most memory that each run's detector takes for one image, beyond its weights, in bytes.

    On a CPU that is done in a process of its own, because `extra_memory` forks, and a process that has run on several
    threads must not be forked.

    Args:
        folders: of the runs, by name.
        image: uint8 `(3, h, w)`.
        device: to run on.
        overrides: `key=value` for the configs.

    Returns:
        Bytes by name, None where the system cannot tell.
    """
    arguments = (dict(folders), image.numpy(), str(device), list(overrides))
    if device.type != "cpu":
        return _measure_all(*arguments)
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_measure_apart, args=(sender, torch.get_num_threads(), *arguments))
    child.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:  # it died, as where memory is short
        return dict.fromkeys(folders)
    finally:
        child.join()


def _measure_apart(sender: Connection, threads: int, *arguments: Any) -> None:
    torch.set_num_threads(threads)
    sender.send(_measure_all(*arguments))


def _measure_all(folders: dict[str, Path], image: Any, device: str, overrides: list[str]) -> dict[str, int | None]:
    def prepare(folder: Path) -> Callable[[], Any]:
        trained = load_trained(folder / LAST, overrides)
        model = restore_model(trained).to(device)
        inputs, _ = to_device([torch.from_numpy(image)], [], torch.device(device))

        @torch.inference_mode()
        def call() -> None:
            with autocast(torch.device(device), trained.config.train.amp):
                model(inputs)

        call()  # what is set up once, as kernels, is not the image's
        return call

    return {
        name: extra_memory(lambda folder=folder: prepare(folder), torch.device(device))
        for name, folder in folders.items()
    }
