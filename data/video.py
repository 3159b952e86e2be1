"""Videos, read and written frame by frame by PyAV, which is needed for nothing else and may be missing."""

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

# Quality of the video: libx264's constant rate factor, and for other encoders the bits of a pixel.
_CRF, _BITS_PER_PIXEL = "20", 0.2
# The most that MPEG-4 takes for the denominator of a frame rate.
_FINEST_RATE = 65535
_DEFAULT_RATE = Fraction(25)


class VideoError(ValueError):
    """A video that cannot be read; the message names the file."""


class Video(NamedTuple):
    """An open video.

    Attributes:
        frames: how many there are, None if the file does not say.
        rate: frames in a second, on average.
        images: yields each frame upright, as `(3, H, W)` uint8 tensor; raises `VideoError` where one cannot be read.
    """

    frames: int | None
    rate: Fraction
    images: Iterator[Tensor]


def load_av() -> ModuleType:
    """Import PyAV.

    Raises:
        ValueError: if it is not installed.
    """
    try:
        import av
    except ImportError:
        raise ValueError("videos are read by PyAV, which is not installed: pip install av") from None
    return av


@contextmanager
def open_video(path: Path) -> Iterator[Video]:
    """Open a video to read.

    Raises:
        VideoError: if it is no video.
    """
    av = load_av()
    try:
        container = av.open(str(path))
    except (av.error.FFmpegError, OSError) as error:
        raise VideoError(f"video {path} cannot be read: {error}") from None
    with container:
        if not container.streams.video:
            raise VideoError(f"video {path} cannot be read: it holds no pictures")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        yield Video(stream.frames or None, stream.average_rate or _DEFAULT_RATE, _images(av, container, path))


def _images(av: ModuleType, container: Any, path: Path) -> Iterator[Tensor]:
    count = 0
    try:
        for frame in container.decode(video=0):
            upright = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))  # counter-clockwise
            yield torch.from_numpy(upright.copy()).permute(2, 0, 1)
            count += 1
    except (av.error.FFmpegError, OSError) as error:
        raise VideoError(f"video {path} cannot be read after frame {count}: {error}") from None


class VideoWriter:
    """Writes an .mp4 without sound; a context in whose end the file appears, and which an error leaves without one.

    H.264 where PyAV has libx264, else MPEG-4. An odd width or height grows by a pixel, which both need.

    Args:
        path: the file.
        rate: frames in a second.
        comment: what the file says of itself.
    """

    def __init__(self, path: Path, rate: Fraction, comment: str) -> None:
        self.path = path
        self.rate = Fraction(rate).limit_denominator(_FINEST_RATE)
        self.comment = comment
        self._av = load_av()
        self._partial = path.with_name(f"{path.name}.partial")
        self._container: Any = None
        self._stream: Any = None

    def __enter__(self) -> "VideoWriter":
        """Begin; the file is opened with the first frame."""
        return self

    def write(self, image: Tensor) -> None:
        """Add a frame, `(3, H, W)` uint8, all of one size."""
        height, width = image.shape[1:]
        array = np.pad(image.permute(1, 2, 0).numpy(), ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if self._container is None:
            self._open(array.shape[1], array.shape[0])
        for packet in self._stream.encode(self._av.VideoFrame.from_ndarray(array, format="rgb24")):
            self._container.mux(packet)

    def _open(self, width: int, height: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._container = self._av.open(str(self._partial), "w", format="mp4")
        self._container.metadata["comment"] = self.comment
        codec = "libx264" if "libx264" in self._av.codecs_available else "mpeg4"
        self._stream = self._container.add_stream(codec, rate=self.rate)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        if codec == "libx264":
            self._stream.options = {"crf": _CRF}
        else:
            self._stream.bit_rate = int(width * height * self.rate * _BITS_PER_PIXEL)

    def __exit__(self, kind: type | None, *_: object) -> None:
        """Finish the file, or after an error take it away."""
        if self._container is None:
            return
        try:
            if kind is None:
                for packet in self._stream.encode():
                    self._container.mux(packet)
            self._container.close()
            if kind is None:
                self._partial.replace(self.path)
        finally:
            self._partial.unlink(missing_ok=True)


def video_comment(path: Path) -> str | None:
    """What a video says of itself, None if it is no video or says nothing."""
    av = load_av()
    try:
        with av.open(str(path)) as container:
            return container.metadata.get("comment")
    except (av.error.FFmpegError, OSError):
        return None
