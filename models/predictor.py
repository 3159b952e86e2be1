"""A trained detector to be called with images of any kind."""

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torchvision.transforms.v2.functional import pil_to_tensor

from .checkpoint import LAST, load_checkpoint, restore_detector
from .detectors import DETECTORS
from .options import read_options

AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

ImageInput = str | os.PathLike | Image.Image | np.ndarray | Tensor


class Predictor:
    """Detects objects in images: `Predictor.load("runs/r50_dcn")("street.jpg")`.

    Args:
        model: detector, see `models.detector`; it is moved to the device and set to eval mode.
        class_names: name of label 1, 2, ...
        device: to compute on.
        amp: "off", "bf16" or "fp16": the type that the model computes in, by autocast.
    """

    def __init__(
        self, model: nn.Module, class_names: Sequence[str], *, device: torch.device | str = "cpu", amp: str = "off"
    ) -> None:
        self.model = model.to(device).eval()
        self.class_names = list(class_names)
        self.device = torch.device(device)
        self.amp = amp

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        *,
        device: str | None = None,
        score_threshold: float = 0.5,
        weights: str | None = None,
    ) -> "Predictor":
        """Load a detector that tools/train.py trained.

        It computes in the type of the run's `train.amp`; `train.tf32` and `tta.flip` change nothing here.

        Args:
            path: a checkpoint, or the folder of a run, whose last.pt is used.
            device: "cpu", "cuda", "cuda:1", "mps", or "auto" for a GPU if there is one; None: the device of the run's
                config.
            score_threshold: detections below are left out, as are those below the config's `score_threshold`.
            weights: "raw" or "ema", of a run with averaged weights; None: those that the run was evaluated by.

        Raises:
            ValueError: if there is no checkpoint, or it is damaged, or something does not fit.
        """
        file = Path(path)
        file = file / LAST if file.is_dir() else file
        state = load_checkpoint(file)
        config = state["config"]
        model = restore_detector(state, file, config=set_score_threshold(config, score_threshold), weights=weights)
        device = device or config.get("device", "auto")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(model, state["class_names"], device=device, amp=config.get("train", {}).get("amp", "off"))

    def __call__(
        self, images: ImageInput | Sequence[ImageInput], *, batch_size: int = 1
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Detect objects in an image, or in each of a list.

        Args:
            images: paths, Pillow's images, uint8 or uint16 arrays `(H, W)` or `(H, W, 3)` in RGB, or uint8 tensors
                `(3, H, W)`. Images in files and Pillow's are turned upright as their EXIF says; grey images, palettes
                and alpha become RGB.
            batch_size: how many images of a list the model gets together. They are padded to the largest of them,
                which may change detections a little; with 1 they do not depend on the other images.

        Returns:
            For each image a dict, on the CPU and the best detection first: `boxes` `(n, 4)` float32 (xyxy pixels of
            the upright image), `labels` `(n,)` int64 from 1, `scores` `(n,)` float32, `names`, a list of n names of
            classes, and for detectors with masks `masks` `(n, 1, H, W)` float32, the probability of each pixel. For a
            list, a list of such dicts.

        Raises:
            ValueError: if an image is missing or corrupt, or of another kind.
        """
        if not isinstance(images, list | tuple):
            return self([images])[0]
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {batch_size}")
        found = []
        for start in range(0, len(images), batch_size):
            found += self._detect([image_tensor(image) for image in images[start : start + batch_size]])
        return found

    @torch.inference_mode()
    def _detect(self, images: list[Tensor]) -> list[dict[str, Any]]:
        inputs = [image.to(self.device).to(torch.float32).div_(255) for image in images]
        with torch.autocast(self.device.type, dtype=AMP_DTYPES.get(self.amp), enabled=self.amp != "off"):
            outputs = self.model(inputs)
        found = []
        for output in outputs:
            tensors = {
                name: (values.float() if values.is_floating_point() else values).cpu()
                for name, values in output.items()
            }
            found.append(tensors | {"names": [self.class_names[label - 1] for label in tensors["labels"].tolist()]})
        return found


def set_score_threshold(config: Mapping[str, Any], score_threshold: float) -> dict[str, Any]:
    """Return a config, see `build_detector`, whose detector leaves out what scores less, unless it does so already.

    The detector itself does, before it makes masks. As NMS goes from the best score on, nothing above changes.

    Raises:
        ValueError: if the threshold is not from 0 to 1.
    """
    if not 0 <= score_threshold <= 1:
        raise ValueError(f"the score threshold must be from 0 to 1, got {score_threshold}")
    model = config["model"]
    name = model["detector"]
    options = model.get(name, {})
    least = max(score_threshold, read_options(DETECTORS[name].options, options, f"model.{name}").score_threshold)
    return {**config, "model": {**model, name: {**options, "score_threshold": least}}}


def image_tensor(image: ImageInput) -> Tensor:
    """Turn an image of any kind, see `Predictor`, into a `(3, H, W)` uint8 tensor.

    Raises:
        ValueError: if it is missing or corrupt, or of another kind.
    """
    if isinstance(image, Tensor):
        if image.dtype != torch.uint8 or image.ndim != 3 or len(image) != 3 or not image.numel():
            raise ValueError(
                f"a tensor must be an image of 3 x height x width in uint8, got {image.dtype} {list(image.shape)}; one "
                "in [0, 1] becomes that by torchvision's v2.functional.to_dtype(image, torch.uint8, scale=True)"
            )
        return image
    if isinstance(image, np.ndarray):
        is_image = image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (3, 4))
        if image.dtype.name not in ("uint8", "uint16") or not is_image or not image.size:
            raise ValueError(
                f"an array must be an image of height x width or height x width x 3 in uint8 or uint16, "
                f"got {image.dtype} {list(image.shape)}"
            )
        # Pillow has 16-bit greys only
        image = Image.fromarray((image // 257).astype(np.uint8) if image.dtype == np.uint16 else image)
    if not isinstance(image, str | os.PathLike | Image.Image):
        raise ValueError(f"an image must be a path, a Pillow image, an array or a tensor, got {type(image).__name__}")
    return pil_to_tensor(_upright_rgb(image))


def _upright_rgb(image: str | os.PathLike | Image.Image) -> Image.Image:
    """Read an image as `data/images.py` does, which is not installed."""
    name = f"image {image if isinstance(image, str | os.PathLike) else getattr(image, 'filename', '')}".strip()
    try:
        with contextlib.ExitStack() as files:
            if not isinstance(image, Image.Image):
                image = files.enter_context(Image.open(image))
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I") or image.mode == "F":
                # Pillow cuts 16-bit greys at 255 in place of scaling them
                image = image.convert("F").point(lambda value: value * (1 / 257)).convert("L")
            return image.convert("RGB")
    except FileNotFoundError:
        raise ValueError(f"{name} does not exist") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} cannot be read, it is cut short, corrupt or no picture: {error}") from None
