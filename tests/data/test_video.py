"""Videos that PyAV writes and reads, compared with this project's functions."""

import builtins
import os
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data.video import VideoError, _read_frames, load_av, open_video, video_comment, video_writer

av = pytest.importorskip("av")

HEIGHT, WIDTH = 48, 80


def frame(index, height=HEIGHT, width=WIDTH):
    """Return a grey frame that is brighter with the index, with red on the left."""
    picture = np.full((height, width, 3), 40 + 20 * index, np.uint8)
    picture[:, : width // 2] = (200, 0, 0)
    return picture


@pytest.fixture
def clip(tmp_path):
    """Write a video of 7 frames at 5.25 frames per second with PyAV."""
    file = tmp_path / "clip.mp4"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(21, 4))
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = WIDTH, HEIGHT, "yuv420p", 4_000_000
        for index in range(7):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame(index), format="rgb24")))
        container.mux(stream.encode())
    return file


def as_image(array):
    return torch.from_numpy(array).permute(2, 0, 1)


def close(found, expected):
    return np.abs(found.permute(1, 2, 0).numpy().astype(int) - expected).mean() < 6


def test_every_frame_is_read(clip):
    with open_video(clip) as video:
        assert (video.frames, video.rate) == (7, Fraction(21, 4))
        images = [*video.images]
    assert len(images) == 7
    for index, (image, time) in enumerate(images):
        assert time == index / Fraction(21, 4)
        assert image.shape == (3, HEIGHT, WIDTH)
        assert image.dtype == torch.uint8
        assert close(image, frame(index))


def test_a_phone_held_upright(clip):
    unity = b"".join(n.to_bytes(4, "big") for n in (0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000))
    # x' = -y, y' = x: a quarter turn clockwise, as in QuickTime's description of a track's matrix
    turned = b"".join(n.to_bytes(4, "big") for n in (0, 0x10000, 0, 0xFFFF0000, 0, 0, 0, 0, 0x40000000))
    content = clip.read_bytes()
    track = content.index(b"tkhd")
    place = content.index(unity, track)
    clip.write_bytes(content[:place] + turned + content[place + len(turned) :])
    with open_video(clip) as video:
        image, _ = next(video.images)
    assert image.shape == (3, WIDTH, HEIGHT)
    assert close(image, np.rot90(frame(0), -1))  # red is on top now


@pytest.mark.parametrize("codecs", [None, set()])
@pytest.mark.parametrize(("height", "width"), [(48, 80), (47, 81)])
def test_what_is_written_is_read_by_av(tmp_path, monkeypatch, codecs, height, width):
    file = tmp_path / "deep/written.mp4"
    if codecs is not None:  # without libx264
        monkeypatch.setattr(av, "codecs_available", codecs)
    rate = Fraction(30000, 1001)
    with video_writer(file, rate, "by this test") as write:
        for index in range(5):
            write(as_image(frame(index, height, width)), index / rate)
            assert not file.exists()
    with av.open(str(file)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == rate
        assert stream.codec_context.name in ({"h264"} if codecs is None else {"mpeg4"})
        images = [one.to_ndarray(format="rgb24") for one in container.decode(video=0)]
    assert len(images) == 5
    for index, image in enumerate(images):
        assert image.shape == (48, width + width % 2, 3)
        assert close(as_image(image[:height, :width]), frame(index, height, width))
    assert video_comment(file) == "by this test"
    assert [path.name for path in file.parent.iterdir()] == ["written.mp4"]


def test_an_error_leaves_no_file_and_keeps_an_earlier_one(tmp_path):
    file = tmp_path / "written.mp4"
    file.write_text("earlier")
    image = as_image(frame(0))

    def write_some():
        with video_writer(file, Fraction(25), "") as write:
            for index in range(80):  # the encoder buffers some frames
                write(image, Fraction(index, 25))
            assert [*tmp_path.glob("written.mp4.*.partial")]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_some()
    assert file.read_text() == "earlier"
    assert [*tmp_path.iterdir()] == [file]
    with video_writer(tmp_path / "none.mp4", Fraction(25), ""):
        pass  # not a frame
    assert [*tmp_path.iterdir()] == [file]


def test_a_truncated_video_and_other_files(clip, tmp_path):
    text = tmp_path / "text.mp4"
    text.write_text("no video " * 100)
    with pytest.raises(VideoError, match=r"video .*text\.mp4 cannot be read"), open_video(text):
        pass
    with pytest.raises(VideoError, match=r"gone\.mp4 cannot be read"), open_video(tmp_path / "gone.mp4"):
        pass
    assert video_comment(text) is None
    assert video_comment(clip) is None
    sound = tmp_path / "sound.wav"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        samples.sample_rate = 8000
        container.mux(stream.encode(samples))
    with pytest.raises(VideoError, match="it contains no video stream"), open_video(sound):
        pass


def test_advice_without_av(monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name == "av":
            raise ImportError("none")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match="pip install av"):
        load_av()


@pytest.fixture
def write_video(tmp_path):
    """`write_video(times, name)`: a video of frames at these times in seconds, with PyAV alone."""

    def write(times, name="clip.mp4", codec="mpeg4", sizes=None):
        unit = Fraction(1, 1000)
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream(codec, rate=30)
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            stream.codec_context.time_base = unit
            for index, time in enumerate(times):
                one = av.VideoFrame.from_ndarray(frame(index % 10), format="rgb24")
                one.pts, one.time_base = round(time / unit), unit
                container.mux(stream.encode(one))
            container.mux(stream.encode())
        return tmp_path / name

    return write


UNEVEN = [Fraction(n, 10) for n in (0, 1, 2, 3, 8, 20, 21, 35)]


def times_of(file):
    with av.open(str(file)) as container:
        return [frame.time for frame in container.decode(video=0)]


@pytest.mark.parametrize("codecs", [None, set()])
@pytest.mark.parametrize("offset", [0, 5])
@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
def test_frames_keep_their_times(write_video, tmp_path, monkeypatch, codecs, offset, name):
    file = write_video([time + offset for time in UNEVEN], name)
    if codecs is not None:
        monkeypatch.setattr(av, "codecs_available", codecs)
    with open_video(file) as video:
        frames = [*video.images]
        with video_writer(tmp_path / "copy.mp4", video.rate, "") as write:
            for image, time in frames:
                write(image, time)
    assert [time for _, time in frames] == UNEVEN
    assert times_of(tmp_path / "copy.mp4") == pytest.approx([float(time) for time in UNEVEN], abs=1e-3)


class Frames:
    """A container whose frames have these times, as of files that no encoder here writes."""

    def __init__(self, times, sizes=None):
        self.times, self.sizes = times, sizes or [(4, 6)] * len(times)

    def decode(self, video):
        for time, size in zip(self.times, self.sizes, strict=True):
            pixels = np.zeros((*size, 3), np.uint8)
            decode = lambda format, pixels=pixels: pixels  # noqa: E731
            yield SimpleNamespace(pts=time, time_base=Fraction(1, 10), rotation=0, to_ndarray=decode)


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([None, None, None], [0, 2, 4]),
        ([0, 5, None, 30], [0, 5, 7, 30]),
        ([7, 9, 0, 4], [0, 2, 4, 8]),
        ([7, 7, 7, 8], [0, 2, 4, 5]),
        ([-5, 0, 5], [0, 5, 10]),
    ],
    ids=["none", "some", "they begin again", "equal", "negative"],
)
def test_times_always_increase(times, expected):
    frames = _read_frames(av, Frames(times), Path("a.mp4"), Fraction(5))
    assert [time for _, time in frames] == [Fraction(time, 10) for time in expected]


def test_a_change_of_the_size_is_an_error():
    frames = _read_frames(av, Frames([0, 1, 2], [(4, 6), (4, 6), (8, 6)]), Path("a.mp4"), Fraction(5))
    assert [next(frames)[0].shape, next(frames)[0].shape] == [(3, 4, 6)] * 2
    with pytest.raises(VideoError, match=r"a\.mp4 cannot be read after frame 2: its size changes from 6x4 to 6x8"):
        next(frames)


def test_a_playlist_opens_no_other_file(clip, tmp_path):
    (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile {clip.name}\n")
    playlist = ["#EXTM3U", "#EXT-X-TARGETDURATION:9", "#EXTINF:9,", clip.name, "#EXT-X-ENDLIST", ""]
    (tmp_path / "stream.m3u8").write_text("\n".join(playlist))
    for name in ("list.mp4", "stream.m3u8"):
        with (
            pytest.raises(VideoError, match=f"{name} cannot be read: it has none of the formats mov"),
            open_video(tmp_path / name),
        ):
            pass


@pytest.mark.parametrize(
    ("make", "kind"),
    [(os.mkfifo, "a named pipe"), (lambda path: path.symlink_to("/dev/zero"), "a device"), (Path.mkdir, "a folder")],
)
def test_special_files_are_named_at_once(tmp_path, make, kind):
    make(tmp_path / "a.mp4")
    with pytest.raises(VideoError, match=f"a.mp4 must be a regular file, got {kind}"), open_video(tmp_path / "a.mp4"):
        pass
    assert video_comment(tmp_path / "a.mp4") is None
