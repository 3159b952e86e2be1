"""Self-contained HTML pages: templates with a common frame, and images inside the page."""

import base64
import io
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from data.shown import escaped

from ..display import percent

JPEG_QUALITY = 88


def page_templates(folder: Path) -> Environment:
    """Return the templates of a folder; `page.html.j2` is the frame that a page extends.

    All values are escaped because names of classes and folders are user data. Plots are inserted with `|safe`.
    """
    environment = Environment(
        loader=FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=True,
        finalize=_plain,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent}
    return environment


def embedded_jpeg(image: Tensor, quality: int = JPEG_QUALITY) -> str:
    """Return a `(3, H, W)` uint8 image as the address of a JPEG inside the page."""
    file = io.BytesIO()
    to_pil_image(image).save(file, "JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _plain(value: Any) -> Any:
    """Escape control characters, which HTML does not allow; names of classes and folders are user data."""
    return type(value)(escaped(str(value), keep="\n\t")) if isinstance(value, str) else value  # also of Markup
