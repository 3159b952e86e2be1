"""Videos that PyAV writes and reads, compared with this project's functions."""

import builtins
from fractions import Fraction

import numpy as np
import pytest
import torch

from data.video import VideoError, load_av, open_video, video_comment, video_writer

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


def close(found, expected):
    return np.abs(found.permute(1, 2, 0).numpy().astype(int) - expected).mean() < 6


def test_every_frame_is_read(clip):
    with open_video(clip) as video:
        assert (video.frames, video.rate) == (7, Fraction(21, 4))
        images = [*video.images]
    assert len(images) == 7
    for index, image in enumerate(images):
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
        image = next(video.images)
    assert image.shape == (3, WIDTH, HEIGHT)
    assert close(image, np.rot90(frame(0), -1))  # red is on top now


@pytest.mark.parametrize("codecs", [None, set()])
@pytest.mark.parametrize(("height", "width"), [(48, 80), (47, 81)])
def test_what_is_written_is_read_by_av(tmp_path, monkeypatch, codecs, height, width):
    file = tmp_path / "deep/written.mp4"
    if codecs is not None:  # without libx264
        monkeypatch.setattr(av, "codecs_available", codecs)
    with video_writer(file, Fraction(30000, 1001), "by this test") as write:
        for index in range(5):
            write(torch.from_numpy(frame(index, height, width)).permute(2, 0, 1))
            assert not file.exists()
    with av.open(str(file)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == Fraction(30000, 1001)
        assert stream.codec_context.name in ({"h264"} if codecs is None else {"mpeg4"})
        images = [one.to_ndarray(format="rgb24") for one in container.decode(video=0)]
    assert len(images) == 5
    for index, image in enumerate(images):
        assert image.shape == (48, width + width % 2, 3)
        assert close(torch.from_numpy(image[:height, :width]).permute(2, 0, 1), frame(index, height, width))
    assert video_comment(file) == "by this test"
    assert [path.name for path in file.parent.iterdir()] == ["written.mp4"]


def test_an_error_leaves_no_file_and_keeps_an_earlier_one(tmp_path):
    file = tmp_path / "written.mp4"
    file.write_text("earlier")
    image = torch.from_numpy(frame(0)).permute(2, 0, 1)

    def write_some():
        with video_writer(file, Fraction(25), "") as write:
            for _ in range(80):  # the encoder buffers some frames
                write(image)
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
