# SPDX-License-Identifier: Apache-2.0
"""Clips: what is read, what is refused, cuts, windows, threads, and videos that are written."""

import struct
import threading
import time
import wave
from contextlib import suppress
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest
from flexor.models.pose.video import Behind, Frame, Movie, SourceError, ahead, open_clip, shots, windows
from PIL import Image
from pose_clips import frames_of, picture, walk, write_video


def test_a_video_is_read_frame_by_frame(tmp_path):
    _, pictures = walk(5)
    clip = open_clip([write_video(tmp_path / "in.mkv", pictures, rate=Fraction(30000, 1001))])
    assert (clip.name, clip.video, clip.size, clip.fps) == ("in.mkv", True, (192, 96), Fraction(30000, 1001))
    found = list(clip.frames)
    assert [frame.index for frame in found] == list(range(5)) and all(frame.name == "in.mkv" for frame in found)
    assert all(np.array_equal(frame.image, image) for frame, image in zip(found, pictures, strict=True))


def test_a_video_lies_as_its_camera_was_held(tmp_path):
    (_, picture_before) = walk(1)
    write_video(tmp_path / "in.mp4", picture_before, "mpeg4", "yuv420p")
    data = bytearray((tmp_path / "in.mp4").read_bytes())
    place = data.index(b"tkhd") + 44  # of the matrix that says how to show it
    for clockwise, (a, b, c, d) in ((1, (0, 1, -1, 0)), (2, (-1, 0, 0, -1)), (3, (0, -1, 1, 0))):
        data[place : place + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
        (tmp_path / "turned.mp4").write_bytes(data)
        clip = open_clip([tmp_path / "turned.mp4"])
        (frame,) = clip.frames
        wanted = np.rot90(picture_before[0], -clockwise)
        assert clip.size == wanted.shape[1::-1] and frame.image.shape == wanted.shape
        assert np.abs(frame.image.astype(int) - wanted).mean() < 4


def test_images_are_read_by_name_and_a_bad_one_is_a_frame_without_an_image(tmp_path):
    for name in ("b.png", "a.png"):
        Image.fromarray(picture([])).save(tmp_path / name)
    (tmp_path / "c.png").write_bytes((tmp_path / "a.png").read_bytes()[:100])
    (tmp_path / "notes.txt").write_text("no image")
    clip = open_clip([tmp_path])
    found = list(clip.frames)
    assert not clip.video and [frame.name for frame in found] == ["a.png", "b.png", "c.png"]
    assert found[0].image is not None and found[2].image is None and found[2].error
    assert [frame.name for frame in open_clip([tmp_path / "b.png", tmp_path / "a.png"]).frames] == ["b.png", "a.png"]


def test_clips_that_cannot_be_used(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty").mkdir()
    with wave.open(str(tmp_path / "sound.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(1600))
    for sources, message in (
        (["nosuch.mp4"], "nosuch.mp4: no such file"),
        (["empty"], "empty: no images in this folder"),
        (["text.mp4"], "text.mp4: neither an image nor a video that can be read"),
        (["sound.wav"], "sound.wav: holds no video"),
        (["text.mp4", "sound.wav"], "text.mp4: not an image; videos are taken one at a time"),
        (["text.mp4", "empty"], "text.mp4: not an image"),
    ):
        with pytest.raises(SourceError, match=message):
            open_clip([tmp_path / name for name in sources])


def test_a_video_without_frames_and_one_that_changes_its_size(tmp_path):
    write_video(tmp_path / "whole.avi", walk(1)[1], "mjpeg", "yuvj420p")
    data = (tmp_path / "whole.avi").read_bytes()
    (tmp_path / "none.avi").write_bytes(data.replace(b"00dc", b"JUNK"))  # every packet
    with pytest.raises(SourceError, match=r"none.avi: (holds no frame that can be decoded|cannot be read)"):
        list(open_clip([tmp_path / "none.avi"]).frames)
    stream = b""
    for size in ((96, 128), (96, 128), (64, 64)):
        Image.fromarray(picture([], size)).save(tmp_path / "one.jpg")
        stream += (tmp_path / "one.jpg").read_bytes()
    (tmp_path / "two.mjpeg").write_bytes(stream)
    taken = windows(open_clip([tmp_path / "two.mjpeg"]).frames, (0, 1))
    assert [next(taken)[0].index for _ in range(2)] == [0, 1]
    with pytest.raises(SourceError, match="frame 2 is 64x64, but those before are 128x96: cut it there"):
        next(taken)


def test_a_bad_packet_is_one_frame(tmp_path):
    pictures = walk(6)[1]
    write_video(tmp_path / "in.avi", pictures, "mjpeg", "yuvj420p")
    data = bytearray((tmp_path / "in.avi").read_bytes())
    places = [place for place in range(data.index(b"movi"), len(data)) if data[place : place + 4] == b"00dc"][:6]
    length = int.from_bytes(data[places[2] + 4 : places[2] + 8], "little")
    data[places[2] + 8 : places[2] + 8 + length] = bytes(length)
    (tmp_path / "bad.avi").write_bytes(data)
    found = list(open_clip([tmp_path / "bad.avi"]).frames)
    assert [frame.index for frame in found] == list(range(6))
    assert [frame.image is None for frame in found] == [False, False, True, False, False, False]
    assert "Invalid data" in found[2].error


def test_cuts_are_found_where_the_scene_changes():
    noise = np.random.default_rng(0).integers(0, 255, (3, 12, 40, 3), dtype=np.uint8)
    scenes = [np.kron(one, np.ones((8, 8, 1), np.uint8)) for one in noise]
    pan = [scenes[0][:, 4 * t : 4 * t + 128] for t in range(8)]  # two pixels of 18 rows are moved by, no cut
    dark = [np.zeros((96, 128, 3), np.uint8) + t % 2 for t in range(3)]  # next to black, noise of one level
    other = [scenes[1][:, :128]] * 3 + [scenes[2][:, :128]] * 2
    small = [scenes[2][:48, :64]] * 2
    found = [frame.shot for frame in shots(frames_of(pan + dark + other + small))]
    starts = [index for index, (a, b) in enumerate(pairwise(found), start=1) if a != b]
    assert starts == [8, 11, 14, 16] and found[-1] == 4


def test_windows_at_ends_cuts_and_unreadable_frames():
    image = picture([])
    marks = [Frame(index, None if index == 5 else image, int(index >= 3), "") for index in range(8)]
    found = [[frame.index for frame in window] for window in windows(marks, (0, -2, -1, 1, 2))]
    assert found == [
        [0, 0, 0, 1, 2], [1, 1, 0, 2, 1], [2, 0, 1, 2, 2],
        [3, 3, 3, 4, 3], [4, 4, 3, 4, 6], [5, 3, 4, 6, 7], [6, 4, 6, 7, 6], [7, 7, 6, 7, 7],
    ]  # fmt: skip
    assert [[frame.index for frame in window] for window in windows(marks[:1], (0, -1, 1))] == [[0, 0, 0]]
    assert [len(list(windows(marks, offsets))) for offsets in ((0,), (0, 1), (0, -1), (0, 3))] == [8] * 4


def test_frames_are_read_ahead_and_no_thread_is_left():
    asked = []

    def source():
        for number in range(100):
            asked.append(number)
            yield number
        raise SourceError("the end")

    before = threading.active_count()
    taken = ahead(source(), depth=4)
    assert next(taken) == 0
    for _ in range(100):
        time.sleep(0.01)
        if len(asked) >= 6:
            break
    assert len(asked) == 6  # one taken, four waiting, one in hand
    taken.close()
    assert threading.active_count() == before
    rest = ahead(source(), depth=4)
    assert [next(rest) for _ in range(100)] == list(range(100))
    with pytest.raises(SourceError, match="the end"):
        next(rest)


def test_errors_of_a_thread_behind_come_forward():
    def work(item):
        if item == 2:
            raise OSError(28, "No space left on device")

    behind = Behind(work)
    behind.put(1)
    with suppress(OSError):  # the thread may be that fast
        behind.put(2)
    with pytest.raises(OSError, match="No space left"):
        behind.close()


@pytest.mark.parametrize("size", [(96, 192), (95, 191)])
def test_a_movie_keeps_rate_and_size_and_is_the_same_twice(size, tmp_path):
    pictures = walk(6, size)[1]
    for name in ("a.mp4", "b.mp4"):
        movie = Movie(tmp_path / name, Fraction(30000, 1001))
        for image in pictures:
            movie.write(image)
        movie.close()
    with av.open(str(tmp_path / "a.mp4")) as file:
        stream = file.streams.video[0]
        assert stream.average_rate == Fraction(30000, 1001)
        found = [frame.to_ndarray(format="rgb24") for frame in file.decode(stream)]
    assert [image.shape[:2] for image in found] == [size] * 6
    assert all(np.abs(a.astype(int) - b).mean() < 6 for a, b in zip(found, pictures, strict=True))
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    movie = Movie(tmp_path / "c.mp4", Fraction(25))
    movie.write(pictures[0])
    movie.close(keep=False)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]
