"""Processes that train together, and requests to stop."""

from .preemption import PreemptedError, StopRequest
from .processes import SINGLE_PROCESS, DistributedContext, OtherProcessError, read_distributed_context
