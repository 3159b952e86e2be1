"""Devices, number formats, memory and versions."""

from .environment import available_memory, describe, git_revision, peak_memory_gib, pick_device
from .precision import autocast, set_tf32, to_device
