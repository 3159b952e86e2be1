"""Distributed training, and signals to stop."""

from .launchers import LauncherError, check_single_process, read_distributed_context
from .preemption import PreemptedError, StopRequest
from .processes import SINGLE_PROCESS, DistributedContext, LostProcessError, OtherProcessError
