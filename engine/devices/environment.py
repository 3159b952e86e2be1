"""Device, versions and memory of the machine."""

import math
import platform
import subprocess
from pathlib import Path

import torch
import torchvision

try:
    import resource
except ImportError:  # Windows
    resource = None

from ..display import counted
from ..distributed import SINGLE_PROCESS, DistributedContext

# Limit and use of a container's memory, in version 2 and 1 of cgroups
_CGROUP_FILES = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def pick_device(name: str, distributed: DistributedContext = SINGLE_PROCESS) -> torch.device:
    """Return the device for a name or "auto"; each process on a machine gets its own GPU.

    Raises:
        ValueError: if the device is not available, or if there are fewer GPUs than processes.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if distributed.size > 1 and name not in ("cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu or cuda for {distributed.size} processes, got {name!r}")
    if name == "cuda" and distributed.size > 1:
        if torch.cuda.device_count() < distributed.local_size:
            raise ValueError(
                f"{distributed.local_size} processes on this machine need {distributed.local_size} GPUs, but "
                f"{torch.cuda.device_count()} are available: reduce --nproc-per-node of torchrun, or set device=cpu"
            )
        name = f"cuda:{distributed.local_rank}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ValueError(f"device {name!r} is not available: {str(error).splitlines()[0]}") from None
    if device.type == "cuda" and distributed.size > 1:
        torch.cuda.set_device(device)
    return device


def describe(device: torch.device) -> str:
    """Return one line with the device and the versions, for the log."""
    if device.type == "cuda":
        gib = torch.cuda.get_device_properties(device).total_memory / 2**30
        hardware = f"{torch.cuda.get_device_name(device)}, {gib:.0f} GiB"
    else:
        hardware = f"{counted(torch.get_num_threads(), 'thread')} on {processor_name()}"
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}, Python {platform.python_version()}"
    return f"{device} ({hardware}), {versions}"


def processor_name() -> str:
    """Return the model of the CPU, or its architecture if the model is unknown."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def git_revision() -> str:
    """Return the commit of the clone, with "-dirty" if files were changed, or "unknown" outside a clone."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def available_memory(device: torch.device) -> int:
    """Return the free bytes of a GPU, or what this process may still use of the main memory, also in a container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = [_meminfo_bytes()]
    for limit, used in _CGROUP_FILES:
        try:
            found.append(int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # not this version of cgroups, or "max"
            continue
    return max(min(found), 0)


def _meminfo_bytes() -> int:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        raise ValueError("train.batch_size auto needs /proc/meminfo or a GPU; set a number on this system") from None


def peak_memory_gib(device: torch.device) -> float:
    """Return the peak memory so far in GiB: of tensors on a GPU, or of this process without its loader workers.

    Windows does not measure the memory of a process in this way: the value is NaN there.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if resource is None:
        return math.nan
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib * (1 if platform.system() == "Darwin" else 1024) / 2**30
