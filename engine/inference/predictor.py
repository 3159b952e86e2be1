"""A trained detector to be called with pictures."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2.functional import pil_to_tensor

from data import read_image, rgb_image

from ..building import check_dcn_backend
from ..config import with_overrides
from ..devices import autocast, pick_device, set_tf32, to_device
from ..weights import Trained, load_trained
from .restored import as_tested, restore_model

Picture = str | os.PathLike | Image.Image | np.ndarray | Tensor


class Predictor:
    """Finds objects in pictures of any kind: `Predictor.load("runs/r50_dcn")(Image.open("street.jpg"))`.

    Args:
        model: detector, see `models.faster_rcnn`; it is moved to the device.
        class_names: name of label 1, 2, ...
        device: to compute on.
        amp: "off", "bf16" or "fp16", see `autocast`.
    """

    def __init__(self, model: nn.Module, class_names: Sequence[str], *, device: torch.device, amp: str = "off") -> None:
        self.model = model.to(device).eval()
        self.class_names = list(class_names)
        self.device = device
        self.amp = amp

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        *,
        device: str | None = None,
        score_threshold: float = 0.5,
        weights: str | None = None,
        overrides: Sequence[str] = (),
    ) -> "Predictor":
        """Load a detector that tools/train.py left.

        Args:
            path: a run's folder, whose last.pt is used, or a checkpoint.
            device: "cpu", "cuda", "cuda:1", "mps", or "auto" for a GPU if there is one; None: as the run's config says.
            score_threshold: detections below are left out, as are those below the config's `score_threshold`.
            weights: "raw" or "ema", of a run with averaged weights; None: those that the run was judged by.
            overrides: `key=value` for the run's config, as in "test.flip=true".

        Raises:
            ValueError: if there is no checkpoint, or it is damaged, or something does not fit.
        """
        device = [] if device is None else [f"device={device}"]
        trained = load_trained(Path(path), [*overrides, *device])
        return predictor_of(trained, score_threshold=score_threshold, weights=weights)

    def __call__(
        self, images: Picture | Sequence[Picture], *, batch_size: int = 1
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Find objects in a picture, or in each of a list.

        Args:
            images: paths, Pillow's images, uint8 or uint16 arrays `(H, W)` or `(H, W, 3)` in RGB, or uint8 tensors
                `(3, H, W)`. Pictures in files and Pillow's are turned upright as their EXIF says; greys, palettes and
                alpha become RGB.
            batch_size: how many pictures of a list are looked at together. They are padded to the largest of them, by
                which what is found may change a little; with 1 it does not depend on the others.

        Returns:
            For each picture a dict, on the CPU and the best detection first: `boxes` `(n, 4)` float32 (xyxy pixels of
            the upright picture), `labels` `(n,)` int64 from 1, `scores` `(n,)` float32, `names`, a list of n names of
            classes, and for detectors with masks `masks` `(n, 1, H, W)` float32, the probability of each pixel. Of a
            list, a list of such dicts.

        Raises:
            ValueError: if a picture is missing or corrupt, or of another kind.
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
        inputs, _ = to_device(images, [], self.device)
        with autocast(self.device, self.amp):
            outputs = self.model(inputs)
        found = []
        for output in outputs:
            tensors = {
                name: (values.float() if values.is_floating_point() else values).cpu()
                for name, values in output.items()
            }
            found.append(tensors | {"names": [self.class_names[label - 1] for label in tensors["labels"].tolist()]})
        return found


def predictor_of(trained: Trained, *, score_threshold: float = 0.5, weights: str | None = None) -> Predictor:
    """Make a predictor of a checkpoint that was read; see `Predictor.load`."""
    if not 0 <= score_threshold <= 1:
        raise ValueError(f"the score threshold must be from 0 to 1, got {score_threshold}")
    config, detector = trained.config, trained.config.model.detector
    # The detector itself leaves them out, before it makes their masks. NMS goes from the best on, so that what is below
    # changes nothing above.
    least = max(score_threshold, config.model.options.score_threshold)
    override = f"model.{detector}.score_threshold={least}"
    config = with_overrides(config.model_dump(mode="json"), [override], str(trained.path))
    device = pick_device(config.device)
    check_dcn_backend(config.model, device)
    set_tf32(config.train.tf32)
    model = as_tested(restore_model(trained._replace(config=config), weights=weights), config)
    return Predictor(model, trained.state["class_names"], device=device, amp=config.train.amp)


def image_tensor(image: Picture) -> Tensor:
    """Turn a picture of any kind, see `Predictor`, into a `(3, H, W)` uint8 tensor.

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
    if isinstance(image, str | os.PathLike):
        return pil_to_tensor(read_image(Path(image)))
    if isinstance(image, np.ndarray):
        is_image = image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (3, 4))
        if image.dtype.name not in ("uint8", "uint16") or not is_image or not image.size:
            raise ValueError(
                f"an array must be an image of height x width or height x width x 3 in uint8 or uint16, "
                f"got {image.dtype} {list(image.shape)}"
            )
        if image.dtype == np.uint16:
            image = (image // 257).astype(np.uint8)  # Pillow has 16-bit greys only
        return pil_to_tensor(rgb_image(Image.fromarray(image)))
    if isinstance(image, Image.Image):
        return pil_to_tensor(rgb_image(image))
    raise ValueError(f"an image must be a path, a Pillow image, an array or a tensor, got {type(image).__name__}")
