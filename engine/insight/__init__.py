"""The deformable layers of a detector in numbers and figures."""

from .capture import SamplingRecord, capture_sampling, deformable_layers
from .diagnosis import largest_offset
from .figures import box_centres, dcn_figures
from .health import Health
