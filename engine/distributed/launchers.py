"""The place of this process among those that a launcher has started, from the launcher's environment variables.

torchrun sets all variables. Other launchers set some of them, or only their own. A process that ignored them would
train alone: N processes would do N separate trainings and write the same files.
"""

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

import torch

from .processes import SINGLE_PROCESS, DistributedContext


class LauncherError(ValueError):
    """Environment variables of a launcher that are missing, not valid or contradictory."""


class Launcher(NamedTuple):
    """The names of a launcher's variables; `sizes` are alternatives, the best first."""

    name: str
    rank: str
    sizes: tuple[str, ...]
    local_rank: str
    local_size: str | None = None


TORCHRUN = Launcher("torchrun", "RANK", ("WORLD_SIZE",), "LOCAL_RANK", "LOCAL_WORLD_SIZE")
# A batch script of SLURM has SLURM_PROCID=0 and SLURM_NTASKS too, although it is a single process.
SLURM = Launcher("srun", "SLURM_PROCID", ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS"), "SLURM_LOCALID")
SCHEDULERS = (
    Launcher(
        "Open MPI",
        "OMPI_COMM_WORLD_RANK",
        ("OMPI_COMM_WORLD_SIZE",),
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    Launcher("MVAPICH", "MV2_COMM_WORLD_RANK", ("MV2_COMM_WORLD_SIZE",), "MV2_COMM_WORLD_LOCAL_RANK"),
    Launcher("MPI", "PMI_RANK", ("PMI_SIZE",), "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    Launcher("PMIx", "PMIX_RANK", ("PMIX_SIZE",), "PMIX_LOCAL_RANK"),
    Launcher("PALS", "PALS_RANKID", ("PALS_SIZE",), "PALS_LOCAL_RANKID", "PALS_LOCAL_SIZE"),
    Launcher("jsrun", "JSM_NAMESPACE_RANK", ("JSM_NAMESPACE_SIZE",), "JSM_NAMESPACE_LOCAL_RANK"),
    Launcher("flux", "FLUX_TASK_RANK", ("FLUX_JOB_SIZE",), "FLUX_TASK_LOCAL_ID"),
    Launcher("Horovod", "HOROVOD_RANK", ("HOROVOD_SIZE",), "HOROVOD_LOCAL_RANK", "HOROVOD_LOCAL_SIZE"),
    SLURM,
)
_ALONE = "To run this process alone, set RANK=0 and WORLD_SIZE=1"


def read_distributed_context(environment: Mapping[str, str] | None = None) -> DistributedContext:
    """Return the place of this process, or `SINGLE_PROCESS` if no launcher has started several processes.

    RANK and WORLD_SIZE are enough, as Azure ML and Kubeflow set them, and so are the variables of a scheduler. Several
    processes need MASTER_ADDR and MASTER_PORT too, where they find each other.

    Args:
        environment: environment variables; None: those of this process.

    Raises:
        LauncherError: if variables are missing, not valid or contradictory.
    """
    environment = os.environ if environment is None else environment
    launcher = _find_launcher(environment)
    if launcher is None:
        return SINGLE_PROCESS
    size_name = _size_name(launcher, environment)
    rank, size = _number(environment, launcher.rank), _number(environment, size_name, low=1)
    if rank >= size:
        raise LauncherError(f"{launcher.rank} must be below {size_name}={size}, got {rank}")
    if size == 1:
        return SINGLE_PROCESS
    found = f"{launcher.name} started {size} processes ({launcher.rank}={rank}, {size_name}={size})"
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not environment.get(name):
            raise LauncherError(
                f"{name} is missing: {found}, which need MASTER_ADDR and MASTER_PORT of rank 0 to find each other. "
                f"Set both, or start with torchrun. {_ALONE}"
            )
    if not 0 < (port := _number(environment, "MASTER_PORT")) < 2**16:
        raise LauncherError(f"MASTER_PORT must be from 1 to 65535, got {port}")
    return DistributedContext(rank, size, *_local_place(environment, launcher, rank, size))


def check_single_process(environment: Mapping[str, str] | None = None) -> None:
    """Check that no launcher has started several processes of a tool that would write the same files in each.

    Raises:
        LauncherError: if there are several processes.
    """
    environment = os.environ if environment is None else environment
    launcher = _find_launcher(environment)
    if launcher is None:
        return
    size_name = _size_name(launcher, environment)
    rank, size = _number(environment, launcher.rank), _number(environment, size_name, low=1)
    is_script = launcher is SLURM and size_name != SLURM.sizes[0] and rank == 0
    if size > 1 and not is_script:
        raise LauncherError(
            f"this tool runs in one process, but {launcher.name} started {size} ({launcher.rank}={rank}, "
            f"{size_name}={size}), which would write the same files. {_ALONE}"
        )


def _find_launcher(environment: Mapping[str, str]) -> Launcher | None:
    """Return the launcher of several processes, torchrun's names first."""
    alone = {"WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    if "RANK" in environment or any(environment.get(name, value) != value for name, value in alone.items()):
        for name, other in (("RANK", "WORLD_SIZE"), ("WORLD_SIZE", "RANK")):
            if name not in environment:
                given = [f"{key}={environment[key]}" for key in (other, *alone) if key in environment]
                raise LauncherError(
                    f"{name} is missing, but a launcher has set {', '.join(dict.fromkeys(given))}. Set RANK, "
                    f"WORLD_SIZE, MASTER_ADDR and MASTER_PORT, or start with torchrun. {_ALONE}"
                )
        return TORCHRUN
    for launcher in SCHEDULERS:
        if launcher.rank in environment and (
            any(name in environment for name in launcher.sizes) or _number(environment, launcher.rank) > 0
        ):
            return launcher
    return None


def _size_name(launcher: Launcher, environment: Mapping[str, str]) -> str:
    for name in launcher.sizes:
        if name in environment:
            return name
    raise LauncherError(
        f"{launcher.sizes[0]} is missing, but {launcher.name} has set {launcher.rank}={environment[launcher.rank]}. "
        f"Set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, or start with torchrun. {_ALONE}"
    )


def _local_place(environment: Mapping[str, str], launcher: Launcher, rank: int, size: int) -> tuple[int, int]:
    """Return the rank of this process on its machine, and how many processes are there, as far as is known."""
    same = [launcher] + [
        other
        for other in SCHEDULERS
        if other is not launcher and environment.get(other.rank) == str(rank)  # RANK=$SLURM_PROCID
    ]
    known = next((other for other in same if other.local_rank in environment), None)
    if known is None:  # one process on each machine, or one for each GPU
        gpus = torch.cuda.device_count()
        return (rank % gpus, min(size, gpus)) if gpus else (0, 1)
    local_rank = _number(environment, known.local_rank)
    if known.local_size not in environment:
        if local_rank > rank:
            raise LauncherError(f"{known.local_rank} must not be above {launcher.rank}={rank}, got {local_rank}")
        return local_rank, local_rank + 1  # at least
    local_size = _number(environment, known.local_size, low=1)
    if local_rank >= local_size:
        raise LauncherError(f"{known.local_rank} must be below {known.local_size}={local_size}, got {local_rank}")
    if local_size > size:
        raise LauncherError(f"{known.local_size} must not be above the number of processes, {size}, got {local_size}")
    return local_rank, local_size


def _number(environment: Mapping[str, str], name: str, low: int = 0) -> int:
    text = environment[name].strip()
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) < low:
        raise LauncherError(f"{name} must be a whole number from {low}, got {environment[name][:40]!r}")
    return int(text)
