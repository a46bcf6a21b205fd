"""Videos: which frames come, upright, and what damage does."""

import struct
from pathlib import Path

import numpy as np
import pytest
from videos import number_of, numbered, save_video

from hai.data.video import read_frames, uniform_positions
from hai.errors import DataError


def test_positions_are_the_middles_of_equal_parts():
    assert uniform_positions(100, 4) == [12, 37, 62, 87]
    assert uniform_positions(3, 16) == [0, 1, 2]
    assert uniform_positions(10, 1) == [5]
    assert uniform_positions(0, 4) == []


@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "h264"), ("mkv", "mpeg4"), ("avi", "mpeg4"), ("webm", "vp9")])
def test_frames_are_spread_over_the_whole_video(tmp_path, suffix, codec):
    path = save_video(tmp_path / f"a.{suffix}", numbered(50), codec=codec)
    frames = list(read_frames(path, 5))
    assert [frame.index for frame in frames] == [5, 15, 25, 35, 45]
    assert [number_of(frame.image) for frame in frames] == [5, 15, 25, 35, 45]
    assert [round(frame.time, 1) for frame in frames] == [0.5, 1.5, 2.5, 3.5, 4.5]
    assert frames[0].image.shape == (48, 64, 3)


def test_a_short_video_gives_every_frame_once(tmp_path):
    path = save_video(tmp_path / "a.mp4", numbered(7))
    assert [number_of(frame.image) for frame in read_frames(path, 16)] == list(range(7))


def test_a_time_of_day_in_a_name_is_no_protocol(tmp_path, monkeypatch):
    path = save_video(tmp_path / "a.mp4", numbered(3)).rename(tmp_path / "2024-05-01T12:30:00.mp4")
    monkeypatch.chdir(tmp_path)
    assert len(list(read_frames(Path(path.name), 3))) == 3


def test_a_turned_video_is_set_upright(tmp_path):
    path = save_video(tmp_path / "a.mp4", numbered(4))
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 4 + 4 + 20 + 8 + 8
    quarter = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 48 << 16, 0, 1 << 30)  # as a phone held upright
    assert struct.unpack_from(">9i", content, matrix)[0] == 1 << 16
    content[matrix : matrix + 36] = quarter
    path.write_bytes(content)
    (frame,) = read_frames(path, 1)
    assert frame.image.shape == (64, 48, 3)
    corners = [frame.image[y : y + 8, x : x + 6].mean() for y in (0, 56) for x in (0, 42)]
    assert int(np.argmax(corners)) == 1  # the white corner went from top left to top right


def test_a_video_that_breaks_off_gives_what_comes_before(tmp_path):
    path = save_video(tmp_path / "a.mkv", numbered(50))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    numbers = [number_of(frame.image) for frame in read_frames(path, 8)]
    assert len(numbers) == 8
    assert numbers == sorted(set(numbers))
    assert max(numbers) < 30


def test_damage_in_the_middle_is_passed_over(tmp_path):
    path = save_video(tmp_path / "a.avi", numbered(60))
    content = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    middle = len(content) // 2
    content[middle : middle + 600] = rng.integers(0, 256, 600, dtype=np.uint8).tobytes()
    path.write_bytes(content)
    numbers = [frame.index for frame in read_frames(path, 10)]
    assert 3 <= len(numbers) <= 10
    assert numbers == sorted(set(numbers))


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty"), (b"hello", "cannot be opened"), (b"\x00\x00\x00\x18ftypmp42" + bytes(200), "cannot be opened")],
)
def test_what_is_no_video_says_so(tmp_path, content, reason):
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason):
        list(read_frames(path, 4))


def test_sound_alone_is_no_video(tmp_path):
    import av

    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(DataError, match="no video stream"):
        list(read_frames(path, 4))


def test_large_frames_are_refused_from_the_header(tmp_path):
    path = save_video(tmp_path / "a.mp4", numbered(2))
    with pytest.raises(DataError, match=r"64x48 pixels a frame; at most 0\.001 megapixels"):
        list(read_frames(path, 4, max_megapixels=0.001))


def test_clips_of_people_give_sixteen_frames(real_data):
    for path in sorted((real_data / "videos").rglob("*.mp4")):
        frames = list(read_frames(path, 16))
        assert len(frames) == 16
        assert len({frame.image.shape for frame in frames}) == 1
        assert len({frame.image.tobytes() for frame in frames}) == 16


def test_frames_that_grow_behind_the_header_are_refused(tmp_path):
    small = save_video(tmp_path / "small.ts", numbered(6), codec="mpeg2video")
    large = save_video(tmp_path / "large.ts", numbered(6, 96, 128), codec="mpeg2video")
    both = tmp_path / "both.ts"
    both.write_bytes(small.read_bytes() + large.read_bytes())
    assert len({frame.image.shape for frame in read_frames(both, 12)}) == 2
    with pytest.raises(DataError, match=r"128x96 pixels a frame; at most 0\.01 megapixels"):
        list(read_frames(both, 12, max_megapixels=0.01))


@pytest.mark.parametrize(
    "playlist",
    ["ffconcat version 1.0\nfile b.avi\n", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nb.ts\n#EXT-X-ENDLIST\n"],
)
def test_a_playlist_is_no_video(tmp_path, playlist):
    save_video(tmp_path / "b.avi", numbered(4))
    save_video(tmp_path / "b.ts", numbered(4), codec="mpeg2video")
    path = tmp_path / ("a.mp4" if "concat" in playlist else "a.m3u8")
    path.write_text(playlist, encoding="utf-8")
    with pytest.raises(DataError, match="cannot be opened as a video"):
        list(read_frames(path, 4))


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [("mov", "h264"), ("m4v", "mpeg4"), ("mpg", "mpeg2video"), ("mpeg", "mpeg1video"), ("wmv", "wmv2"),
     ("flv", "flv"), ("3gp", "h264"), ("ts", "mpeg2video")],
)  # fmt: skip
def test_every_kind_of_video_is_read(tmp_path, suffix, codec):
    rate = 25 if codec.startswith("mpeg") else 10
    path = save_video(tmp_path / f"a.{suffix}", numbered(8), codec=codec, rate=rate)
    assert len(list(read_frames(path, 4))) == 4
