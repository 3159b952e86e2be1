"""Processes that train together, and requests to stop."""

from .preemption import PreemptedError, StopRequest
from .processes import ALONE, OtherProcessError, World, read_world

__all__ = [
    "ALONE",
    "OtherProcessError",
    "PreemptedError",
    "StopRequest",
    "World",
    "read_world",
]
