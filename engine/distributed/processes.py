"""Distributed training in processes that torchrun starts. With a single process nothing here has an effect.

Every process runs the same program. Rank 0, the main process, writes files and logs. Work of rank 0 alone goes through
`DistributedContext.run_on_main_and_broadcast`, so that no process waits for a main process that has failed.
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
# Rank 0 evaluates while the other processes wait; pycocotools needs minutes for a large validation set.
TIMEOUT = timedelta(hours=2)
# How long the processes wait for each other at the start; a scheduler may start machines minutes apart.
JOIN_TIMEOUT = timedelta(minutes=15)


class OtherProcessError(Exception):
    """Another process failed and reports the error; this process only ends."""


class LostProcessError(RuntimeError):
    """Another process has ended without a word, for example because it was killed."""


@dataclass(frozen=True)
class DistributedContext:
    """The processes of a distributed training.

    Attributes:
        rank: rank of this process.
        size: number of processes (world size).
        local_rank: rank of this process on its machine.
        local_size: number of processes on this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes files and logs."""
        return self.rank == 0

    @contextlib.contextmanager
    def process_group(self) -> Iterator[None]:
        """Context of an initialized process group: gloo for CPU tensors, NCCL for CUDA tensors."""
        if self.size == 1:
            yield
            return
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        try:
            store, _, _ = next(dist.rendezvous("env://", self.rank, self.size, timeout=JOIN_TIMEOUT))
            store.set_timeout(TIMEOUT)
            # after a restart, torchrun's store still has the addresses of the previous processes
            store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
            dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.size, timeout=TIMEOUT)
        except (RuntimeError, OSError, ValueError) as error:
            raise ValueError(
                f"the {self.size} processes cannot find each other at MASTER_ADDR={os.environ.get('MASTER_ADDR')} and "
                f"MASTER_PORT={os.environ.get('MASTER_PORT')} (this is rank {self.rank}): {str(error).splitlines()[0]}"
            ) from None
        try:
            yield
        except PreemptedError:  # raised on all ranks
            dist.destroy_process_group()
            raise
        except RuntimeError as error:
            if not _is_lost_connection(error):
                raise
            raise LostProcessError(
                f"another process of this job has ended, and its output has the cause; rank {self.rank} cannot "
                "continue without it. --resume auto continues training from its last checkpoint"
            ) from error
        # not after an error: destroy_process_group() can block while another rank is in a collective call
        dist.destroy_process_group()

    def sum(self, values: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place, and return it."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, by rank, in every process."""
        if self.size == 1:
            return [value]
        values: list = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def gather_on_main(self, value: T) -> list[T] | None:
        """Return the values of all processes, by rank, in the main process, and None in the others."""
        if self.size == 1:
            return [value]
        values: list | None = [None] * self.size if self.is_main else None
        dist.gather_object(value, values)
        return values

    def run_on_main_and_broadcast(self, make: Callable[[], T]) -> T:
        """Call `make` in the main process and return its result in all processes.

        Raises:
            Exception: in the main process, the error of `make`.
            OtherProcessError: in the other processes, if `make` fails.
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
        """Context that raises on all ranks if its body fails on any rank.

        Rank 0 raises the first `ValueError` or `OSError` of any rank, so that an error of all ranks is printed once.

        Raises:
            ValueError, OSError: in the main process, the first one of any process.
            Exception: any other error, in the process where it occurred.
            OtherProcessError: in all other processes.
        """
        if self.size == 1:
            yield
            return
        error = None
        try:
            yield
        except Exception as failure:
            error = failure
        is_user_error = isinstance(error, ValueError | OSError)
        known = error if error is None or is_user_error else OtherProcessError("another process failed")
        errors = [found for found in self.gather(known) if found is not None]
        if not errors:
            return
        if error is not None and not is_user_error:
            raise error
        user_errors = [found for found in errors if not isinstance(found, OtherProcessError)]
        raise user_errors[0] if user_errors and self.is_main else OtherProcessError("another process failed")

    def wrap_ddp(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Wrap a model in `DistributedDataParallel`, which averages its gradients over the processes."""
        if self.size == 1:
            return model
        # `average_statistics` averages the running statistics of batch norms instead
        known = inspect.signature(DistributedDataParallel).parameters
        # the second name is that of older releases of PyTorch
        switch = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        return DistributedDataParallel(
            model,
            device_ids=[device.index] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            **{switch: False},
        )

    def average_statistics(self, model: nn.Module) -> None:
        """Average the running statistics of batch norms over the processes, in place."""
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


def _is_lost_connection(error: RuntimeError) -> bool:
    """Whether a collective call failed because another process is gone; gloo has no type for this error."""
    return isinstance(error, dist.DistError) or "/gloo/transport/" in str(error)


SINGLE_PROCESS = DistributedContext()
