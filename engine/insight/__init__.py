"""What the deformable layers of a detector learned, in numbers and pictures."""

from .diagnosis import largest_offset
from .health import Health
from .pictures import box_centres, dcn_pictures
from .watch import Sampling, deformable_layers, watched
