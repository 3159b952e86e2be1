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
from .regular_files import NotRegularFileError, open_regular

# Quality: the constant rate factor of libx264, and the bits per pixel of other encoders.
_CRF, _BITS_PER_PIXEL = "20", 0.2
# Maximum denominator of a time in MPEG-4.
_MAX_DENOMINATOR = 65535
_DEFAULT_RATE = Fraction(25)
# FFmpeg's names of the formats of `VIDEO_SUFFIXES`, of raw streams, and of a sound without images.
_FORMATS = (
    "mov",
    "mp4",
    "avi",
    "matroska",
    "webm",
    "mpeg",
    "mpegvideo",
    "mpegts",
    "asf",
    "flv",
    "ogg",
    "m4v",
    "h264",
    "wav",
)


class VideoError(ValueError):
    """A video cannot be read; the message contains the file name."""


class Video(NamedTuple):
    """An open video.

    Attributes:
        frames: Number of frames, None if the file does not contain it.
        rate: Average number of frames per second.
        images: Iterator over the upright frames, `(3, H, W)` uint8, and the time of each in seconds after the first;
            raises `VideoError` if a frame cannot be read.
    """

    frames: int | None
    rate: Fraction
    images: Iterator[tuple[Tensor, Fraction]]


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
        container = _open(av, path)
    except av.error.ArgumentError:  # FFmpeg's error about `_FORMATS`
        raise VideoError(f"video {path} cannot be read: it has none of the formats {', '.join(_FORMATS)}") from None
    except NotRegularFileError as error:
        raise VideoError(f"video {path} {error.strerror}") from None
    except (av.error.FFmpegError, OSError) as error:
        raise VideoError(f"video {path} cannot be read: {error.strerror or error}") from None
    with container:
        if not container.streams.video:
            raise VideoError(f"video {path} cannot be read: it contains no video stream")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        rate = stream.average_rate or _DEFAULT_RATE
        yield Video(stream.frames or None, rate, _read_frames(av, container, path, rate))


def _open(av: ModuleType, path: Path) -> Any:
    open_regular(path).close()  # FFmpeg would wait for a named pipe
    # playlists, of any name, would open further files and addresses
    return av.open(str(path), options={"format_whitelist": ",".join(_FORMATS), "protocol_whitelist": "file"})


def _read_frames(av: ModuleType, container: Any, path: Path, rate: Fraction) -> Iterator[tuple[Tensor, Fraction]]:
    count, time, start, size = 0, Fraction(0), Fraction(0), None
    try:
        for frame in container.decode(video=0):
            upright = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))  # counter-clockwise
            if size is not None and upright.shape != size:
                raise VideoError(
                    f"video {path} cannot be read after frame {count}: its size changes from {size[1]}x{size[0]} to "
                    f"{upright.shape[1]}x{upright.shape[0]}"
                )
            stated = None if frame.pts is None else frame.pts * Fraction(frame.time_base)
            if count and (stated is None or stated - start <= time):  # no time, or times that begin again
                time += 1 / Fraction(rate)
                start = start if stated is None else stated - time
            elif count:
                time = stated - start
            else:
                start = stated or Fraction(0)
            yield torch.from_numpy(upright.copy()).permute(2, 0, 1), time
            count, size = count + 1, upright.shape
    except (av.error.FFmpegError, OSError) as error:
        raise VideoError(f"video {path} cannot be read after frame {count}: {error}") from None


@contextmanager
def video_writer(path: Path, rate: Fraction, comment: str) -> Iterator[Callable[[Tensor, Fraction], None]]:
    """Write an .mp4 file without sound, atomically; without frames no file is written.

    The codec is H.264 if PyAV has libx264, otherwise MPEG-4. Both need an even width and height, so an odd side grows
    by a pixel.

    Args:
        path: Video file; its folder is created.
        rate: Average number of frames per second.
        comment: Comment in the file's metadata.

    Yields:
        A function that adds a frame, `(3, H, W)` uint8, at a time in seconds. All frames must have the same size, and
        their times must increase.
    """
    av = load_av()
    stream, last, unit = None, -1, _time_unit(rate)
    with ExitStack() as files:

        def write(image: Tensor, time: Fraction) -> None:
            nonlocal stream, last
            height, width = image.shape[1:]
            array = np.pad(image.permute(1, 2, 0).numpy(), ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            if stream is None:
                file = files.enter_context(atomic_file(path))
                container = files.enter_context(av.open(file, "w", format="mp4"))
                container.metadata["comment"] = comment
                stream = _add_stream(av, container, rate, unit, array.shape[1], array.shape[0])
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            last = max(round(time / unit), last + 1)
            frame.pts, frame.time_base = last, unit
            stream.container.mux(stream.encode(frame))

        yield write
        if stream is not None:
            stream.container.mux(stream.encode())  # flush the encoder


def _time_unit(rate: Fraction) -> Fraction:
    """Return a unit of time of which frames at a constant rate have whole numbers."""
    frame = (1 / Fraction(rate)).limit_denominator(_MAX_DENOMINATOR)
    return Fraction(1, frame.denominator * (_MAX_DENOMINATOR // frame.denominator))


def _add_stream(av: ModuleType, container: Any, rate: Fraction, unit: Fraction, width: int, height: int) -> Any:
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    stream = container.add_stream(codec, rate=Fraction(rate).limit_denominator(_MAX_DENOMINATOR))
    stream.codec_context.time_base = unit
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
        with _open(av, path) as container:
            return container.metadata.get("comment")
    except (av.error.FFmpegError, OSError):
        return None
