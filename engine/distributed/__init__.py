"""Processes that train together, and requests to stop."""

from .preemption import PreemptedError, StopRequest
from .processes import ALONE, OtherProcessError, World, read_world
