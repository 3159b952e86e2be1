"""`Predictor`: a trained detector that accepts images of any kind."""

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .band_files import RGB
from .checkpoint import LAST, choose_weights, load_checkpoint, restore_detector
from .detectors import DETECTORS
from .image_inputs import ImageInput, image_tensor
from .masks import select_detections, unpasted_masks
from .options import read_options
from .pixels import PixelRange
from .score_thresholds import ScoreThreshold, check_threshold, label_thresholds, lowest_threshold
from .tiling import OVERLAP, TiledDetector, check_tile, unit_range

AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Predictor:
    """Detector for images in files, Pillow images, arrays and tensors.

    Args:
        model: Detector, see `models.detector`; it is moved to the device and set to eval mode.
        class_names: Names of labels 1, 2, ...
        device: Device of the model.
        amp: Autocast dtype: "off", "bf16" or "fp16".
        pixel_range: Values of black and white in images with more than 8 bits, as in the config's `data.pixel_range`.
        channels: Number of channels of the images.
        score_thresholds: Minimum score of labels 1, 2, ...; None keeps all detections of the model.
        tile: Side in pixels of the tiles in which objects are detected, for large images with small objects, see
            `models.tiling`. None detects in whole images.
        overlap: Fraction of a tile that neighbours share at least.

    Raises:
        ValueError: If the tile is smaller than 32 pixels, or the overlap is not from 0 to 0.9.

    Example:
        ```python
        detections = Predictor.load("runs/r50_dcn")("street.jpg")
        ```
    """

    def __init__(
        self,
        model: nn.Module,
        class_names: Sequence[str],
        *,
        device: torch.device | str = "cpu",
        amp: str = "off",
        pixel_range: PixelRange | None = None,
        channels: int = RGB,
        score_thresholds: Sequence[float] | None = None,
        tile: int | None = None,
        overlap: float = OVERLAP,
    ) -> None:
        if tile is not None:
            check_tile(tile, overlap)
        self.model = model.to(device).eval()
        self.class_names = list(class_names)
        self.device = torch.device(device)
        self.amp = amp
        self.pixel_range = pixel_range and tuple(pixel_range)
        self.channels = channels
        self.score_thresholds = score_thresholds and tuple(score_thresholds)
        self.tile, self.overlap = tile, overlap

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        *,
        device: str | None = None,
        score_threshold: ScoreThreshold = 0.5,
        weights: str | None = None,
        tile: int | None = None,
        overlap: float = OVERLAP,
    ) -> "Predictor":
        """Load a detector that was trained with tools/train.py.

        The model uses autocast as in the run's `train.amp`. The settings `train.tf32`, `tta.flip` and `tile` are not
        applied.

        Args:
            path: Checkpoint, or run folder, of which last.pt is loaded.
            device: "cpu", "cuda", "cuda:1", "mps", or "auto" for a GPU if one is available. None uses the device of
                the run's config.
            score_threshold: Minimum score of all classes, or a score by class name. "best" uses the score with the
                highest F1 of each class in the last evaluation of the training. Detections below the config's
                `score_threshold` are not returned either.
            weights: "raw" or "ema". None loads the EMA weights if the checkpoint has them, which its metrics refer to.
            tile: See `Predictor`.
            overlap: See `Predictor`.

        Raises:
            ValueError: If the checkpoint is missing, damaged or inconsistent, or an argument is invalid.
        """
        file = Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser() raises for an unknown user
        file = file / LAST if file.is_dir() else file
        state = load_checkpoint(file)
        config = state["config"]
        thresholds = label_thresholds(score_threshold, state, choose_weights(state, weights, file), file)
        limited = set_score_threshold(config, lowest_threshold(score_threshold, thresholds))
        model = restore_detector(state, file, config=limited, weights=weights)
        device = device or config.get("device", "auto")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        data = config.get("data", {})
        return cls(
            model,
            state["class_names"],
            device=device,
            amp=config.get("train", {}).get("amp", "off"),
            pixel_range=data.get("pixel_range"),
            channels=data.get("channels", RGB),
            score_thresholds=thresholds,
            tile=tile,
            overlap=overlap,
        )

    def __call__(
        self, images: ImageInput | Sequence[ImageInput], *, batch_size: int = 1, paste_masks: bool = True
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Detect objects in an image or in a list of images.

        Each result is a dict of CPU tensors and names, in descending order of scores:

        - `boxes`: `(n, 4)` float32, xyxy in pixels of the upright image.
        - `labels`: `(n,)` int64, counted from 1.
        - `scores`: `(n,)` float32.
        - `names`: list of n class names.
        - `masks`: `(n, 1, H, W)` float32, the probability of each pixel; only from detectors with masks.

        Args:
            images: An image or a list of images. An image is a path, a Pillow image, an array `(H, W, channels)` or
                `(H, W)`, or a tensor `(channels, H, W)`, uint8, or float32 from 0 to 1. Files and Pillow images are
                rotated according to EXIF. For 3 channels, grey images, palettes and alpha channels are converted to
                RGB. Arrays may have any numbers, see `pixels.scaled`.
            batch_size: Number of images, or tiles of an image, per forward pass. Images are padded to the largest image
                of the batch, which can change detections slightly. With 1 the detections do not depend on other images.
            paste_masks: False returns `mask_patches` and `mask_boxes` instead of `masks`, of which
                `models.masks.paste_masks` makes a few masks at a time. All masks of a large image need much memory.

        Returns:
            A dict for an image, and a list of dicts for a list.

        Raises:
            ValueError: If an image is missing, corrupt or not supported.
        """
        if not isinstance(images, list | tuple):
            return self([images], batch_size=batch_size, paste_masks=paste_masks)[0]
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {batch_size}")
        model, step = self.model, batch_size
        if self.tile is not None:
            model, step = TiledDetector(model, self.tile, self.overlap, batch_size=batch_size).eval(), 1
        found = []
        with nullcontext() if paste_masks else unpasted_masks(model):
            for start in range(0, len(images), step):
                found += self._detect(
                    model,
                    [image_tensor(image, self.pixel_range, self.channels) for image in images[start : start + step]],
                )
        return found

    @torch.inference_mode()
    def _detect(self, model: nn.Module, images: list[Tensor]) -> list[dict[str, Any]]:
        is_tiled = isinstance(model, TiledDetector)  # it converts its tiles
        inputs = images if is_tiled else [unit_range(image.to(self.device)) for image in images]
        with torch.autocast(self.device.type, dtype=AMP_DTYPES.get(self.amp), enabled=self.amp != "off"):
            outputs = model(inputs)
        found = []
        for output in outputs:
            tensors = {
                name: (values.float() if values.is_floating_point() else values).cpu()
                for name, values in output.items()
            }
            if self.score_thresholds is not None:
                least = tensors["scores"].new_tensor(self.score_thresholds)
                tensors = select_detections(tensors, tensors["scores"] >= least[tensors["labels"] - 1])
            found.append(tensors | {"names": [self.class_names[label - 1] for label in tensors["labels"].tolist()]})
        return found


def set_score_threshold(config: Mapping[str, Any], score_threshold: float) -> dict[str, Any]:
    """Return a config whose detector has at least this score threshold, see `build_detector`.

    The detector applies the threshold before it computes masks. NMS starts with the highest scores, so detections above
    the threshold do not change.

    Raises:
        ValueError: If the threshold is not from 0 to 1.
    """
    check_threshold(score_threshold)
    model = config["model"]
    name = model["detector"]
    options = model.get(name, {})
    minimum = max(score_threshold, read_options(DETECTORS[name].options, options, f"model.{name}").score_threshold)
    return {**config, "model": {**model, name: {**options, "score_threshold": minimum}}}
