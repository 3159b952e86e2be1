"""Training in several processes, started by torchrun; with one process nothing here does anything.

Every process runs the same program. Process 0, the main one, writes files and talks; what only it can know or fail at
goes through `DistributedContext.run_on_main_and_broadcast`, so that no process waits
for one that has failed.
"""

import contextlib
import inspect
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from .preemption import PreemptedError

T = TypeVar("T")
# The main process judges alone while the others wait; pycocotools takes minutes for a large validation set.
TIMEOUT = timedelta(hours=2)


class OtherProcessError(Exception):
    """Another process failed, and says why; this one only ends."""


@dataclass(frozen=True)
class DistributedContext:
    """The processes of a training.

    Attributes:
        rank: number of this process, from 0.
        size: how many there are.
        local_rank: number of this process on its machine.
        local_size: how many there are on its machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and talks."""
        return self.rank == 0

    @contextlib.contextmanager
    def process_group(self) -> Iterator[None]:
        """Connect the processes: by gloo for what lies on the CPU, by NCCL for what lies on GPUs."""
        if self.size == 1:
            yield
            return
        store, rank, size = next(dist.rendezvous("env://", timeout=TIMEOUT))
        # After a restart torchrun's store still holds the addresses of the processes before, who answer no more.
        store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
        try:
            yield
        except PreemptedError:  # all end together
            dist.destroy_process_group()
            raise
        # After an error no leave is taken: of processes that are in the middle of something it can last for ever.
        dist.destroy_process_group()

    def sum(self, values: Tensor) -> Tensor:
        """Add up a tensor over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: T) -> list[T]:
        """Collect a value of each process, in every process, by rank."""
        if self.size == 1:
            return [value]
        values: list = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def gather_on_main(self, value: T) -> list[T] | None:
        """Collect a value of each process in the main one, by rank; the others get None."""
        if self.size == 1:
            return [value]
        values: list | None = [None] * self.size if self.is_main else None
        dist.gather_object(value, values)
        return values

    def run_on_main_and_broadcast(self, make: Callable[[], T]) -> T:
        """Call `make` in the main process and give what it returns in all of them.

        Raises:
            OtherProcessError: in the others, if it fails in the main one, where the error comes through.
        """
        if self.size == 1:
            return make()
        outcome: list[Any] = [False, None]
        error = None
        if self.is_main:
            try:
                outcome = [True, make()]
            except Exception as failure:
                error = failure
        dist.broadcast_object_list(outcome)
        if error is not None:
            raise error
        if not outcome[0]:
            raise OtherProcessError("the main process failed")
        return outcome[1]

    @contextlib.contextmanager
    def raise_together(self) -> Iterator[None]:
        """Let all processes pass the end of this context or none; a mistake that all make is told once.

        Raises:
            ValueError, OSError: in the main process, the first of any process.
            Exception: of another kind, in the process where it came up.
            OtherProcessError: in the others.
        """
        if self.size == 1:
            yield
            return
        error = None
        try:
            yield
        except Exception as failure:
            error = failure
        is_mistake = isinstance(error, ValueError | OSError)
        known = error if error is None or is_mistake else OtherProcessError("another process failed")
        errors = [found for found in self.gather(known) if found is not None]
        if not errors:
            return
        if error is not None and not is_mistake:
            raise error
        mistakes = [found for found in errors if not isinstance(found, OtherProcessError)]
        raise mistakes[0] if mistakes and self.is_main else OtherProcessError("another process failed")

    def wrap_ddp(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Wrap a model so that its gradients are averaged over the processes."""
        if self.size == 1:
            return model
        # Statistics of batch norms are averaged when they are needed, see `average_statistics`.
        known = inspect.signature(DistributedDataParallel).parameters
        switch = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # its old name
        return DistributedDataParallel(
            model,
            device_ids=[device.index] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            **{switch: False},
        )

    def average_statistics(self, model: nn.Module) -> None:
        """Average the running statistics of batch norms, which each process gathers on its own images."""
        if self.size == 1:
            return
        statistics = [
            buffer
            for module in model.modules()
            if isinstance(module, _BatchNorm)
            for buffer in (module.running_mean, module.running_var)
            if buffer is not None
        ]
        if not statistics:
            return
        mean = self.sum(torch.cat([buffer.flatten() for buffer in statistics])) / self.size
        for buffer, part in zip(statistics, mean.split([buffer.numel() for buffer in statistics]), strict=True):
            buffer.copy_(part.view_as(buffer))


SINGLE_PROCESS = DistributedContext()


def read_distributed_context() -> DistributedContext:
    """Find this process's place in what torchrun has started; alone without it."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if not all(name in os.environ for name in names):
        return SINGLE_PROCESS
    return DistributedContext(*(int(os.environ[name]) for name in names))
