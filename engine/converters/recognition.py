"""Detection of the source framework from the names of tensors."""

import re
from collections.abc import Iterable

from data.shown import shown

from .detectron2_keys import DETECTRON2
from .mmdetection_keys import MMDETECTION
from .paddle_keys import PADDLE
from .source import Source
from .torchvision_keys import TORCHVISION
from .wrapper_keys import DEVELOPER0HYE, PYTORCH_DEFORM_CONV_V2, YOLACT

# the first match counts: deformable layers inside torchvision's networks come before torchvision
SOURCES: dict[str, Source] = {
    "pytorch-deform-conv-v2": PYTORCH_DEFORM_CONV_V2,
    "developer0hye": DEVELOPER0HYE,
    "yolact": YOLACT,
    "torchvision": TORCHVISION,
    "mmdetection": MMDETECTION,
    "detectron2": DETECTRON2,
    "paddledetection": PADDLE,
}


def detect_source(names: Iterable[str], asked: str | None = None) -> Source:
    """Detect the source framework from tensor names.

    Args:
        names: names of all tensors of a file.
        asked: key of `SOURCES` that skips the detection.

    Raises:
        ValueError: if no known source matches, with the names that were searched.
    """
    names = list(names)
    if asked is not None:
        if asked not in SOURCES:
            raise ValueError(f"unknown source {asked!r}, known: {', '.join(SOURCES)}")
        return SOURCES[asked]
    for source in SOURCES.values():
        if any(re.fullmatch(source.signature, name) for name in names):
            return source
    looked_for = [f"  - {source.title}: {source.example}" for source in SOURCES.values()]
    first = ", ".join(shown(name, 100) for name in sorted(names)[:3])
    raise ValueError(
        "\n".join(
            [
                f"the source framework is unknown: none of the {len(names)} tensors has one of these names:",
                *looked_for,
                f"the first names in the checkpoint are {first}",
            ]
        )
    )
