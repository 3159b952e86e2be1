"""Reading and writing videos frame by frame with PyAV, an optional dependency."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .files import atomic_file

# Quality: the constant rate factor of libx264, and the bits per pixel of other encoders.
_CRF, _BITS_PER_PIXEL = "20", 0.2
# Maximum denominator of a frame rate in MPEG-4.
_MAX_RATE_DENOMINATOR = 65535
_DEFAULT_RATE = Fraction(25)


class VideoError(ValueError):
    """A video cannot be read; the message contains the file name."""


class Video(NamedTuple):
    """An open video.

    Attributes:
        frames: Number of frames, None if the file does not contain it.
        rate: Average number of frames per second.
        images: Iterator over the upright frames, `(3, H, W)` uint8; raises `VideoError` if a frame cannot be read.
    """

    frames: int | None
    rate: Fraction
    images: Iterator[Tensor]


def load_av() -> ModuleType:
    """Import PyAV.

    Raises:
        ValueError: If PyAV is not installed.
    """
    try:
        import av
    except ImportError:
        raise ValueError("videos need PyAV, which is not installed; run: pip install av") from None
    return av


@contextmanager
def open_video(path: Path) -> Iterator[Video]:
    """Open a video to read.

    Raises:
        VideoError: If the file is not a video.
    """
    av = load_av()
    try:
        container = av.open(str(path))
    except (av.error.FFmpegError, OSError) as error:
        raise VideoError(f"video {path} cannot be read: {error}") from None
    with container:
        if not container.streams.video:
            raise VideoError(f"video {path} cannot be read: it contains no video stream")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        yield Video(stream.frames or None, stream.average_rate or _DEFAULT_RATE, _read_frames(av, container, path))


def _read_frames(av: ModuleType, container: Any, path: Path) -> Iterator[Tensor]:
    count = 0
    try:
        for frame in container.decode(video=0):
            upright = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))  # counter-clockwise
            yield torch.from_numpy(upright.copy()).permute(2, 0, 1)
            count += 1
    except (av.error.FFmpegError, OSError) as error:
        raise VideoError(f"video {path} cannot be read after frame {count}: {error}") from None


@contextmanager
def video_writer(path: Path, rate: Fraction, comment: str) -> Iterator[Callable[[Tensor], None]]:
    """Write an .mp4 file without sound, atomically; without frames no file is written.

    The codec is H.264 if PyAV has libx264, otherwise MPEG-4. Both need an even width and height, so an odd side grows
    by a pixel.

    Args:
        path: Video file; its folder is created.
        rate: Frames per second.
        comment: Comment in the file's metadata.

    Yields:
        A function that adds a frame, `(3, H, W)` uint8; all frames must have the same size.
    """
    av = load_av()
    stream = None
    with ExitStack() as files:

        def write(image: Tensor) -> None:
            nonlocal stream
            height, width = image.shape[1:]
            array = np.pad(image.permute(1, 2, 0).numpy(), ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            if stream is None:
                file = files.enter_context(atomic_file(path))
                container = files.enter_context(av.open(file, "w", format="mp4"))
                container.metadata["comment"] = comment
                stream = _add_stream(av, container, rate, array.shape[1], array.shape[0])
            stream.container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))

        yield write
        if stream is not None:
            stream.container.mux(stream.encode())  # flush the encoder


def _add_stream(av: ModuleType, container: Any, rate: Fraction, width: int, height: int) -> Any:
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    rate = Fraction(rate).limit_denominator(_MAX_RATE_DENOMINATOR)
    stream = container.add_stream(codec, rate=rate)
    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
    if codec == "libx264":
        stream.options = {"crf": _CRF}
    else:
        stream.bit_rate = int(width * height * rate * _BITS_PER_PIXEL)
    return stream


def video_comment(path: Path) -> str | None:
    """Return the comment in a video's metadata; None without a comment or if the file is not a video."""
    av = load_av()
    try:
        with av.open(str(path)) as container:
            return container.metadata.get("comment")
    except (av.error.FFmpegError, OSError):
        return None
