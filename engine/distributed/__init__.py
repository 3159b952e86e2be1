"""Distributed training, and signals to stop."""

from .preemption import PreemptedError, StopRequest
from .processes import SINGLE_PROCESS, DistributedContext, OtherProcessError, read_distributed_context
